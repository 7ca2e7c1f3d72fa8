// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`: where no endpoint is ready, those that still serve while they go are asked.
//!
//! **Invariant:** under `Local` only this node's count, for the fallback as well.
//! Read next: `rolling.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use lb_lab::{Endpoint, Host, Place, Pod};

use super::{
    NODE_PORT, answered_by, at, cluster, dropped, health_is, refused, with_health_checks,
    with_node_port, with_spec,
};
use crate::cluster::{Cluster, Vip};

/// What a client at a Service of these pods meets, with each set of conditions in turn.
fn through(
    cluster: &mut Cluster,
    vip: &Vip,
    pods: [&Pod; 2],
    mut check: impl FnMut(&Cluster, &str),
) {
    let [first, second] = pods.map(Endpoint::from);
    let going = |endpoint: &Endpoint| endpoint.clone().terminating();
    let steps = [
        ("ready", vec![first.clone(), second.clone()]),
        ("one going", vec![going(&first), second.clone()]),
        ("both going", vec![going(&first), going(&second)]),
        ("first left", vec![going(&first)]),
        (
            "not serving",
            vec![going(&first).unready(), going(&second).unready()],
        ),
    ];
    for (what, endpoints) in steps {
        cluster.change(|manifests| manifests.endpoints_with(&vip.service, &endpoints));
        check(cluster, what);
    }
}

/// Two servers on different nodes, a client on each, agents that know of no endpoint.
fn start(vip: &Vip) -> Option<(Cluster, [Pod; 2], [Pod; 2], Host)> {
    let mut cluster = cluster()?;
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pods = [cluster.web(0, "a"), cluster.web(1, "b")];
    let clients = [cluster.pod(0, "client-0"), cluster.pod(1, "client-1")];
    cluster.publish(vip, &[]);
    cluster.start_agents();
    Some((cluster, pods, clients, outside))
}

#[test]
fn should_fallback_to_terminating_endpoints_when_there_are_no_ready_endpoints_with_internal_traffic_policy_cluster()
 {
    let vip = with_spec(Vip::new("web", 1), "internalTrafficPolicy: Cluster");
    let Some((mut cluster, pods, clients, _)) = start(&vip) else {
        return;
    };
    through(&mut cluster, &vip, pods.each_ref(), |_, what| {
        for client in &clients {
            match what {
                "one going" => answered_by(client, vip.remotes(), &["b"]),
                "first left" => answered_by(client, vip.remotes(), &["a"]),
                "not serving" => refused(client, vip.remotes()),
                _ => answered_by(client, vip.remotes(), &["a", "b"]),
            }
        }
    });
}

#[test]
fn should_fallback_to_local_terminating_endpoints_when_there_are_no_ready_endpoints_with_internal_traffic_policy_local()
 {
    let vip = with_spec(Vip::new("web", 1), "internalTrafficPolicy: Local");
    let Some((mut cluster, pods, clients, _)) = start(&vip) else {
        return;
    };
    through(&mut cluster, &vip, pods.each_ref(), |_, what| {
        let [near, far] = &clients;
        match what {
            "not serving" => {
                refused(near, vip.remotes());
                refused(far, vip.remotes());
            }
            "first left" => {
                answered_by(near, vip.remotes(), &["a"]);
                dropped(far, vip.remotes());
            }
            _ => {
                answered_by(near, vip.remotes(), &["a"]);
                answered_by(far, vip.remotes(), &["b"]);
            }
        }
    });
}

#[test]
fn should_fallback_to_terminating_endpoints_when_there_are_no_ready_endpoints_with_external_traffic_policy_cluster()
 {
    let vip = with_spec(with_node_port(), "externalTrafficPolicy: Cluster");
    let Some((mut cluster, pods, clients, outside)) = start(&vip) else {
        return;
    };
    through(&mut cluster, &vip, pods.each_ref(), |cluster, what| {
        for node in cluster.lab.nodes() {
            let everyone: [&Host; 2] = [&outside, &clients[0]];
            for client in everyone {
                match what {
                    "one going" => answered_by(client, at(node, NODE_PORT), &["b"]),
                    "first left" => answered_by(client, at(node, NODE_PORT), &["a"]),
                    "not serving" => refused(client, at(node, NODE_PORT)),
                    _ => answered_by(client, at(node, NODE_PORT), &["a", "b"]),
                }
            }
        }
    });
}

#[test]
fn should_fallback_to_local_terminating_endpoints_when_there_are_no_ready_endpoints_with_external_traffic_policy_local()
 {
    let vip = with_spec(with_node_port(), "externalTrafficPolicy: Local");
    let Some((mut cluster, pods, _, outside)) = start(&vip) else {
        return;
    };
    through(&mut cluster, &vip, pods.each_ref(), |cluster, what| {
        let [near, far] = [0, 1].map(|number| at(cluster.node(number), NODE_PORT));
        match what {
            "not serving" => {
                refused(&outside, near);
                refused(&outside, far);
            }
            "first left" => {
                answered_by(&outside, near, &["a"]);
                dropped(&outside, far);
            }
            _ => {
                answered_by(&outside, near, &["a"]);
                answered_by(&outside, far, &["b"]);
            }
        }
    });
}

#[test]
fn should_fail_health_check_node_port_if_there_are_only_terminating_endpoints() {
    let vip = with_health_checks(with_node_port());
    let Some((mut cluster, pods, _, outside)) = start(&vip) else {
        return;
    };
    health_is(&outside, cluster.node(0), Some(503));
    through(&mut cluster, &vip, pods.each_ref(), |cluster, what| {
        let status = |ready| Some(if ready { 200 } else { 503 });
        let [first, second] = [0, 1].map(|number| cluster.node(number));
        health_is(&outside, first, status(what == "ready"));
        health_is(
            &outside,
            second,
            status(what == "ready" || what == "one going"),
        );
        // Load balancers leave the node; what still comes is served.
        if what == "both going" {
            answered_by(&outside, at(first, NODE_PORT), &["a"]);
            answered_by(&outside, at(second, NODE_PORT), &["b"]);
        }
    });
}
