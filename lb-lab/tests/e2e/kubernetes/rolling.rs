// SPDX-License-Identifier: MIT OR Apache-2.0
//! `loadbalancer.go`: pods are replaced one by one, and clients of the balancer never notice.
//!
//! **Invariant:** a pod that goes is first terminating and serving, then gone, as the
//! controller writes it, and its successor is ready before. Read next: `conntrack.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_lab::{Endpoint, Place, Pod};

use super::loadbalancer::{balanced, lead_to};
use super::{cluster, with_spec};
use crate::cluster::{Cluster, Vip, get, pause};
use crate::external::towards_other_nodes;
use crate::load::{assert_no_failure, during};

/// How long each step is in force while clients go on.
const STEP: Duration = Duration::from_millis(150);

/// Replaces each of the old pods by the new one of the same place.
fn roll(cluster: &mut Cluster, vip: &Vip, old: &[Pod], new: &[Pod]) {
    for (number, (leaving, coming)) in old.iter().zip(new).enumerate() {
        let replaced = new[..number].iter().chain(&old[number + 1..]);
        let others: Vec<_> = replaced.map(Endpoint::from).collect();
        let steps = [
            vec![Endpoint::from(leaving), Endpoint::from(coming)],
            vec![
                Endpoint::from(leaving).terminating(),
                Endpoint::from(coming),
            ],
            vec![Endpoint::from(coming)],
        ];
        for mut endpoints in steps {
            endpoints.extend(others.iter().cloned());
            cluster.change(|manifests| manifests.endpoints_with(&vip.service, &endpoints));
            pause(STEP);
        }
    }
}

/// A rolling update under four clients outside; `Local` asks the second node, which has two.
fn rolling_update(policy: &str) {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let places = [0, 1, 1];
    let mut pods = |kind: &str| {
        let web = |(number, node)| cluster.web(node, &format!("{kind}-{number}"));
        places.into_iter().enumerate().map(web).collect::<Vec<_>>()
    };
    let (old, new) = (pods("old"), pods("new"));
    let vip = with_spec(balanced(), &format!("externalTrafficPolicy: {policy}"));
    cluster.publish(&vip, &old.iter().collect::<Vec<_>>());
    cluster.start_agents();
    let balancer = lead_to(&cluster, 1);
    let ((), requests) = during(&outside, balancer, 4, || {
        roll(&mut cluster, &vip, &old, &new);
    });
    assert_no_failure(&requests);
    let asked = |pods: &[Pod]| {
        let by = |pod: &&Pod| requests.iter().any(|request| request.is_by(pod.name()));
        pods.iter().filter(by).count()
    };
    let expected = if policy == "Local" { 2 } else { 3 };
    assert_eq!((asked(&old), asked(&new)), (expected, expected));
    // Whom the servers see: the client, but where a backend on another node was chosen.
    for (family, remote) in balancer.into_iter().enumerate() {
        let node = towards_other_nodes(&cluster, 1, family);
        let own = outside.addresses()[family];
        let mut seen = BTreeSet::new();
        for _ in 0..2 * new.len() {
            let reply = get(&outside, remote, "/source");
            let (source, _) = reply.text().split_once(' ').unwrap();
            seen.insert(source.parse::<IpAddr>().unwrap());
        }
        let kept = [own].into();
        let both = [own, node].into();
        assert_eq!(seen, if policy == "Local" { kept } else { both });
    }
}

#[test]
fn should_not_have_connectivity_disruption_during_rolling_update_with_external_traffic_policy_local()
 {
    rolling_update("Local");
}

#[test]
fn should_not_have_connectivity_disruption_during_rolling_update_with_external_traffic_policy_cluster()
 {
    rolling_update("Cluster");
}
