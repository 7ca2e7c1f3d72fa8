// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods of this node, as far as it matters whether their sockets are served.
//!
//! **Invariant:** whoever says `off` is obeyed, be it the pod or its namespace.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Which one it is.
    pub key: PodKey,
    /// By what the kubelet calls its cgroup.
    pub uid: String,
    /// Its sockets are to be left alone.
    pub sockets_off: bool,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// The sockets of its pods are to be left alone.
    pub sockets_off: bool,
}

/// Whose sockets are served, by the uid of their pod. Of others the objects say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRules(BTreeMap<String, bool>);

impl PodRules {
    /// What pods and their namespaces say. Where a pod's namespace is not known, only what it says
    /// itself counts.
    pub fn new<'a>(
        pods: impl Iterator<Item = &'a Pod>,
        namespaces: &BTreeMap<String, Namespace>,
    ) -> Self {
        let rule = |pod: &Pod| {
            let namespace = namespaces.get(&pod.key.namespace);
            let served = match (pod.sockets_off, namespace) {
                (true, _) => false,
                (false, Some(namespace)) => !namespace.sockets_off,
                (false, None) => return None,
            };
            Some((pod.uid.clone(), served))
        };
        Self(pods.filter_map(rule).collect())
    }

    /// Whether the sockets of a pod are served, if the objects say so or not.
    pub fn serves(&self, uid: &str) -> Option<bool> {
        self.0.get(uid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_or_its_namespace_may_say_no_and_both_must_be_known_for_a_yes() {
        let pod = |uid: &str, namespace: &str, sockets_off| Pod {
            key: PodKey {
                namespace: namespace.to_owned(),
                name: uid.to_owned(),
            },
            uid: uid.to_owned(),
            sockets_off,
        };
        let namespace = |name: &str, sockets_off| {
            let name = name.to_owned();
            (name.clone(), Namespace { name, sockets_off })
        };
        let pods = [
            pod("a", "open", false),
            pod("b", "open", true),
            pod("c", "closed", false),
            pod("d", "unknown", false),
            pod("e", "unknown", true),
        ];
        let namespaces = BTreeMap::from([namespace("open", false), namespace("closed", true)]);
        let rules = PodRules::new(pods.iter(), &namespaces);
        let told = ["a", "b", "c", "d", "e", "f"].map(|uid| rules.serves(uid));
        let wanted = [
            Some(true),
            Some(false),
            Some(false),
            None,
            Some(false),
            None,
        ];
        assert_eq!(told, wanted);
    }
}
