// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a rendered DaemonSet, with the ConfigMaps that lie beside it in the text.
//!
//! **Invariant:** what the lab cannot do as a kubelet does it is refused with a sentence, never left
//! out silently, except for what says nothing about rights: probes, resources, scheduling.
//! Read next: `mod.rs`, which starts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_yaml_ng::Value;

use super::capability::Capabilities;
use crate::error::LabError;

/// A DaemonSet of one container, and what it refers to.
#[derive(Debug, Clone)]
pub struct DaemonSet {
    pub(super) pod: PodSpec,
    /// Data of `ConfigMaps` by name.
    pub(super) configs: BTreeMap<String, BTreeMap<String, String>>,
}

/// A pod's own words, as far as they say what it may do.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    #[serde(default)]
    host_network: bool,
    #[serde(default, rename = "hostPID")]
    pub(super) host_pid: bool,
    #[serde(default)]
    init_containers: Vec<Value>,
    containers: Vec<ContainerSpec>,
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerSpec {
    #[serde(default)]
    pub(super) command: Vec<String>,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<EnvVar>,
    #[serde(default)]
    env_from: Vec<Value>,
    #[serde(default)]
    pub(super) volume_mounts: Vec<VolumeMount>,
    security_context: SecurityContext,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnvVar {
    pub(super) name: String,
    #[serde(default)]
    pub(super) value: Option<String>,
    #[serde(default)]
    pub(super) value_from: Option<ValueFrom>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ValueFrom {
    pub(super) field_ref: FieldRef,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FieldRef {
    pub(super) field_path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeMount {
    pub(super) name: String,
    pub(super) mount_path: PathBuf,
    #[serde(default)]
    pub(super) read_only: bool,
    /// How mounts that come later pass between host and container; nothing comes later in a lab.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted and without meaning here")]
    mount_propagation: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) name: String,
    #[serde(default)]
    pub(super) host_path: Option<HostPath>,
    #[serde(default)]
    pub(super) config_map: Option<ConfigMapVolume>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostPath {
    pub(super) path: PathBuf,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigMapVolume {
    pub(super) name: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    #[serde(default)]
    privileged: bool,
    #[serde(default = "yes")]
    allow_privilege_escalation: bool,
    #[serde(default)]
    read_only_root_filesystem: bool,
    #[serde(default)]
    run_as_user: u32,
    #[serde(default)]
    capabilities: CapabilityNames,
    #[serde(default)]
    seccomp_profile: Option<SeccompProfile>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct CapabilityNames {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct SeccompProfile {
    #[serde(rename = "type")]
    kind: String,
}

/// Kubernetes' own default.
const fn yes() -> bool {
    true
}

fn malformed(why: impl Into<String>) -> LabError {
    LabError::Malformed {
        what: "the DaemonSet".to_owned(),
        why: why.into(),
    }
}

impl DaemonSet {
    /// Reads what a chart renders: one DaemonSet among other objects.
    pub fn read(path: &Path) -> Result<Self, LabError> {
        let text = fs::read_to_string(path).map_err(LabError::file("read", path))?;
        Self::parse(&text)
    }

    /// The same, of a text.
    pub fn parse(text: &str) -> Result<Self, LabError> {
        let (mut pods, mut configs) = (Vec::new(), BTreeMap::new());
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let object = Value::deserialize(document).map_err(|e| malformed(e.to_string()))?;
            match object.get("kind").and_then(Value::as_str) {
                Some("DaemonSet") => {
                    let pod = ["spec", "template", "spec"]
                        .iter()
                        .try_fold(&object, |at, name| at.get(name));
                    let pod = pod.ok_or_else(|| malformed("it has no spec.template.spec"))?;
                    let pod = serde_yaml_ng::from_value::<PodSpec>(pod.clone());
                    pods.push(pod.map_err(|e| malformed(e.to_string()))?);
                }
                Some("ConfigMap") => {
                    let config = serde_yaml_ng::from_value::<ConfigMap>(object);
                    let config = config.map_err(|e| malformed(format!("a ConfigMap: {e}")))?;
                    configs.insert(config.metadata.name, config.data);
                }
                _ => {}
            }
        }
        let pod = pods.pop().ok_or_else(|| malformed("there is none"))?;
        if !pods.is_empty() {
            return Err(malformed("there are several"));
        }
        pod.check()?;
        Ok(Self { pod, configs })
    }

    /// What its container may do.
    pub fn capabilities(&self) -> Result<Capabilities, LabError> {
        let names = &self.container().security_context.capabilities.add;
        Capabilities::named(names).map_err(malformed)
    }

    /// The same container without one of its capabilities, such as `NET_ADMIN`.
    #[must_use]
    pub fn without_capability(mut self, name: &str) -> Self {
        for container in &mut self.pod.containers {
            let names = &mut container.security_context.capabilities.add;
            names.retain(|added| added != name);
        }
        self
    }

    /// Whether the runtime's own filter of system calls is asked for.
    pub(super) fn is_filtered(&self) -> bool {
        let profile = &self.container().security_context.seccomp_profile;
        profile.as_ref().is_some_and(|p| p.kind == "RuntimeDefault")
    }

    /// The only container.
    pub(super) fn container(&self) -> &ContainerSpec {
        &self.pod.containers[0]
    }
}

#[derive(Debug, Deserialize)]
struct ConfigMap {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
}

impl PodSpec {
    /// Refuses what the lab would do otherwise than a kubelet.
    fn check(&self) -> Result<(), LabError> {
        let [container] = self.containers.as_slice() else {
            return Err(malformed("the lab runs pods of one container"));
        };
        let security = &container.security_context;
        let profile = security.seccomp_profile.as_ref();
        let profile = profile.map_or("Unconfined", |profile| profile.kind.as_str());
        let wrong = [
            (!self.host_network, "hostNetwork is not true"),
            (!self.init_containers.is_empty(), "it has initContainers"),
            (!container.env_from.is_empty(), "it has envFrom"),
            (security.privileged, "it is privileged"),
            (
                security.allow_privilege_escalation,
                "allowPrivilegeEscalation is not false",
            ),
            (
                !security.read_only_root_filesystem,
                "readOnlyRootFilesystem is not true",
            ),
            (security.run_as_user != 0, "runAsUser is not 0"),
            (
                security.capabilities.drop != ["ALL"],
                "capabilities.drop is not [ALL]",
            ),
            (
                !["RuntimeDefault", "Unconfined"].contains(&profile),
                "seccompProfile is neither RuntimeDefault nor Unconfined",
            ),
        ];
        match wrong.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, why)) => Err(malformed(format!("{why}, which the lab does not run"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("daemonset.yaml");

    #[test]
    fn rights_are_read_and_one_of_them_can_be_taken_away() {
        let read = DaemonSet::parse(GOOD).unwrap();
        let all = read.capabilities().unwrap();
        assert_eq!(all.to_string(), "CAP_NET_ADMIN CAP_PERFMON CAP_BPF");
        let fewer = read.without_capability("BPF").capabilities().unwrap();
        assert_eq!(fewer.to_string(), "CAP_NET_ADMIN CAP_PERFMON");
    }

    #[test]
    fn what_the_lab_would_do_otherwise_is_refused_with_the_field() {
        for (good, bad, word) in [
            ("hostNetwork: true", "hostNetwork: false", "hostNetwork"),
            ("privileged: false", "privileged: true", "privileged"),
            (
                "readOnlyRootFilesystem: true",
                "readOnlyRootFilesystem: false",
                "readOnlyRootFilesystem",
            ),
            (
                "allowPrivilegeEscalation: false",
                "allowPrivilegeEscalation: true",
                "allowPrivilegeEscalation",
            ),
            ("drop: [ALL]", "drop: []", "drop"),
            ("type: RuntimeDefault", "type: Localhost", "seccompProfile"),
            ("add: [NET_ADMIN,", "add: [NET_ADMIM,", ""),
        ] {
            let text = GOOD.replacen(good, bad, 1);
            assert_ne!(text, GOOD, "{good}");
            let read = DaemonSet::parse(&text).and_then(|read| read.capabilities());
            let error = read.unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
        assert!(DaemonSet::parse("kind: ConfigMap\nmetadata: {name: a}").is_err());
    }
}
