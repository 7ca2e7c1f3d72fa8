// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rule of endpoint selection, case by case.
//!
//! An endpoint is written as `ready`, `draining` or `gone`, with `+local`, `+zN` (hint for zone N)
//! and `+nN` (hint for node N). This node is `n1` in zone `z1`.
//! **Invariant:** each case names both lists, so that none falls back by accident.

use super::*;

const NODE: NodeContext<'static> = NodeContext {
    name: "n1",
    zone: Some("z1"),
};

fn endpoint(words: &str) -> (Endpoint, bool) {
    let mut words = words.split('+');
    let state = words.next().unwrap();
    let mut endpoint = Endpoint {
        address: "10.0.0.1".parse().unwrap(),
        ready: state == "ready",
        serving: state != "gone",
        terminating: state == "draining",
        node: None,
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
    };
    let mut local = false;
    for word in words {
        match word.chars().next().unwrap() {
            'l' => local = true,
            'z' => drop(endpoint.zone_hints.insert(word.to_owned())),
            'n' => drop(endpoint.node_hints.insert(word.to_owned())),
            other => panic!("{other}"),
        }
    }
    (endpoint, local)
}

/// Selects among `endpoints` and checks the lists.
#[track_caller]
fn check(
    (uses_cluster, uses_local, node): (bool, bool, NodeContext<'_>),
    endpoints: &[&str],
    (cluster, local, reachable): (&[usize], &[usize], &[usize]),
    has_any: bool,
) {
    let parsed: Vec<_> = endpoints.iter().map(|words| endpoint(words)).collect();
    let all: Vec<Candidate<'_>> = parsed
        .iter()
        .zip(1u16..)
        .map(|((endpoint, local), port)| Candidate {
            address: (endpoint.address, port),
            endpoint,
            local: *local,
        })
        .collect();
    let expected = Selection {
        cluster: cluster.to_vec(),
        local: local.to_vec(),
        reachable: reachable.to_vec(),
        has_any,
    };
    assert_eq!(
        select(&all, uses_cluster, uses_local, node),
        expected,
        "{endpoints:?}"
    );
}

const CLUSTER: (bool, bool, NodeContext<'static>) = (true, false, NODE);
const LOCAL: (bool, bool, NodeContext<'static>) = (false, true, NODE);
const BOTH: (bool, bool, NodeContext<'static>) = (true, true, NODE);

#[test]
fn no_endpoints_lead_nowhere() {
    check(CLUSTER, &[], (&[], &[], &[]), false);
    check(BOTH, &[], (&[], &[], &[]), false);
}

#[test]
fn the_cluster_list_takes_ready_endpoints_and_else_draining_ones() {
    check(
        CLUSTER,
        &["ready", "draining", "gone"],
        (&[0], &[], &[0]),
        true,
    );
    check(CLUSTER, &["gone", "draining"], (&[1], &[], &[1]), true);
    check(CLUSTER, &["gone"], (&[], &[], &[]), false);
}

#[test]
fn the_local_list_takes_this_nodes_endpoints_and_falls_back_by_itself() {
    check(LOCAL, &["ready+local", "ready"], (&[], &[0], &[0]), true);
    check(LOCAL, &["draining+local", "ready"], (&[], &[0], &[0]), true);
    check(LOCAL, &["ready"], (&[], &[], &[]), true);
    check(LOCAL, &["draining"], (&[], &[], &[]), true);
    check(LOCAL, &["gone+local"], (&[], &[], &[]), false);
}

#[test]
fn both_lists_are_filled_independently_and_reachable_is_their_union() {
    check(
        BOTH,
        &["ready+local", "ready"],
        (&[0, 1], &[0], &[0, 1]),
        true,
    );
    check(
        BOTH,
        &["draining+local", "ready"],
        (&[1], &[0], &[0, 1]),
        true,
    );
    check(BOTH, &["ready"], (&[0], &[], &[0]), true);
}

#[test]
fn zone_hints_count_when_every_ready_endpoint_has_one_and_one_is_ours() {
    check(CLUSTER, &["ready+z1", "ready+z2"], (&[0], &[], &[0]), true);
    check(
        CLUSTER,
        &["ready+z1", "ready"],
        (&[0, 1], &[], &[0, 1]),
        true,
    );
    check(
        CLUSTER,
        &["ready+z2", "ready+z3"],
        (&[0, 1], &[], &[0, 1]),
        true,
    );
    check(
        CLUSTER,
        &["ready+z1", "gone", "draining"],
        (&[0], &[], &[0]),
        true,
    );
    let nowhere = NodeContext {
        name: "n1",
        zone: None,
    };
    check(
        (true, false, nowhere),
        &["ready+z1", "ready+z2"],
        (&[0, 1], &[], &[0, 1]),
        true,
    );
}

#[test]
fn node_hints_go_before_zone_hints() {
    check(
        CLUSTER,
        &["ready+z1+n2", "ready+z1+n1"],
        (&[1], &[], &[1]),
        true,
    );
    check(
        CLUSTER,
        &["ready+z1+n2", "ready+z2+n3"],
        (&[0], &[], &[0]),
        true,
    );
    check(
        CLUSTER,
        &["ready+z1", "ready+z2+n1"],
        (&[0], &[], &[0]),
        true,
    );
}

#[test]
fn hints_never_narrow_the_local_list() {
    check(
        BOTH,
        &["ready+z1", "ready+z2+local"],
        (&[0], &[1], &[0, 1]),
        true,
    );
}

#[test]
fn draining_endpoints_are_not_narrowed_by_hints() {
    check(
        CLUSTER,
        &["draining+z2", "draining+z1"],
        (&[0, 1], &[], &[0, 1]),
        true,
    );
}
