// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rule of endpoint selection, case by case.
//!
//! An endpoint is written as `ready`, `draining` or `gone`, with `+local`, `+zN` (hint for zone N)
//! and `+nN` (hint for node N); `published` is ready while it terminates. This node is `n1` in zone
//! `z1`.
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
        ready: state == "ready" || state == "published",
        serving: state != "gone" && state != "unready",
        terminating: state == "draining" || state == "published" || state == "gone",
        node: None,
        pod: None,
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
        weight: 1,
    };
    let mut local = false;
    for word in words {
        match word.chars().next().unwrap() {
            'l' => local = true,
            'z' => drop(endpoint.zone_hints.insert(word.to_owned())),
            'w' => endpoint.weight = word[1..].parse().unwrap(),
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

/// Endpoints, cluster list, local list, union, any.
type Case = (
    &'static [&'static str],
    &'static [usize],
    &'static [usize],
    &'static [usize],
    bool,
);

#[track_caller]
fn table(context: (bool, bool, NodeContext<'_>), cases: &[Case]) {
    for (endpoints, cluster, local, reachable, has_any) in cases {
        check(context, endpoints, (cluster, local, reachable), *has_any);
    }
}

#[test]
fn every_topology_mode_with_the_cluster_list_alone() {
    table(
        CLUSTER,
        &[
            // All have hints and one is ours: hints count.
            (
                &["ready+z1", "ready+z1+z2", "ready+z2"],
                &[0, 1],
                &[],
                &[0, 1],
                true,
            ),
            (&["ready+n1", "ready+n2"], &[0], &[], &[0], true),
            (&["ready+n1+n2", "ready+n2"], &[0], &[], &[0], true),
            // Ours is the only one.
            (&["ready+z1"], &[0], &[], &[0], true),
            // One without a hint of the level makes the level void.
            (&["ready+n1", "ready"], &[0, 1], &[], &[0, 1], true),
            (&["ready+n1+z2", "ready+z1"], &[1], &[], &[1], true),
            (&["ready+n1+z2", "ready+z2"], &[0, 1], &[], &[0, 1], true),
            // Hints that name others only.
            (&["ready+n2", "ready+n3"], &[0, 1], &[], &[0, 1], true),
            (&["ready+n2+z2", "ready+n3+z3"], &[0, 1], &[], &[0, 1], true),
            // What is not ready has no say, with a hint or without.
            (&["ready+z2", "unready+z1"], &[0], &[], &[0], true),
            (&["ready+z1", "ready+z2", "unready"], &[0], &[], &[0], true),
            (&["ready+n1", "draining", "gone"], &[0], &[], &[0], true),
            // Ready ones elsewhere by hints are no reason to fall back.
            (
                &["ready+z1", "ready+z2", "draining+z1"],
                &[0],
                &[],
                &[0],
                true,
            ),
            // Being on this node is no hint.
            (&["ready+local", "ready"], &[0, 1], &[], &[0, 1], true),
            (&["ready+z2+local", "ready+z1"], &[1], &[], &[1], true),
        ],
    );
}

#[test]
fn a_published_endpoint_counts_as_ready_while_it_terminates() {
    table(
        BOTH,
        &[
            (&["published+local", "ready"], &[0, 1], &[0], &[0, 1], true),
            (&["published", "draining+local"], &[0], &[1], &[0, 1], true),
            (&["published+z2", "ready+z1"], &[1], &[], &[1], true),
        ],
    );
}

#[test]
fn any_is_told_apart_from_none_for_each_use() {
    // With the cluster list it is the list itself that says so.
    table(
        CLUSTER,
        &[
            (&["unready"], &[], &[], &[], false),
            (&["unready", "gone"], &[], &[], &[], false),
            (&["draining", "unready"], &[0], &[], &[0], true),
        ],
    );
    // With the local list alone, what others have counts too.
    table(
        LOCAL,
        &[
            (&["unready+local"], &[], &[], &[], false),
            (&["unready+local", "ready"], &[], &[], &[], true),
            (&["unready+local", "draining"], &[], &[], &[], true),
            (&["gone+local", "unready", "gone"], &[], &[], &[], false),
            (&["draining+local", "gone"], &[], &[0], &[0], true),
        ],
    );
    table(
        BOTH,
        &[
            (&["unready+local", "unready"], &[], &[], &[], false),
            (&["gone+local", "draining"], &[1], &[], &[1], true),
        ],
    );
}

#[test]
fn the_union_has_what_either_list_has_and_each_once() {
    table(
        BOTH,
        &[
            // The local list is a part of the cluster list, so the union is the latter.
            (
                &["ready+local", "ready", "draining+local"],
                &[0, 1],
                &[0],
                &[0, 1],
                true,
            ),
            // Hints leave the local one out of the cluster list.
            (&["ready+z2+local", "ready+z1"], &[1], &[0], &[0, 1], true),
            (&["ready+z1+local", "ready+z2"], &[0], &[0], &[0], true),
            (&["ready+n2+local", "ready+n1"], &[1], &[0], &[0, 1], true),
            // Only the local list falls back.
            (
                &["draining+local", "ready", "draining"],
                &[1],
                &[0],
                &[0, 1],
                true,
            ),
            (&["draining+local", "ready+z1"], &[1], &[0], &[0, 1], true),
            // Both fall back.
            (
                &["draining+local", "draining", "gone+local"],
                &[0, 1],
                &[0],
                &[0, 1],
                true,
            ),
            // Nothing local.
            (
                &["ready", "ready+z1", "gone+local"],
                &[0, 1],
                &[],
                &[0, 1],
                true,
            ),
        ],
    );
}

#[test]
fn a_hint_counts_only_where_all_that_are_ready_have_one() {
    // Over all worlds of three endpoints: without a hint on some ready one, all ready ones are
    // taken.
    let kinds = [
        "ready",
        "ready+z1",
        "ready+z2",
        "unready",
        "draining+z1",
        "gone",
    ];
    for a in kinds {
        for b in kinds {
            for c in kinds {
                let endpoints = [a, b, c];
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
                let found = select(&all, true, false, NODE);
                let at = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
                    (0..3).filter(|at| wanted(endpoints[*at])).collect()
                };
                let ready = at(&|words| words.starts_with("ready"));
                let here = at(&|words| words == "ready+z1");
                let expected = if ready.is_empty() {
                    at(&|words| words.starts_with("draining"))
                } else if here.is_empty() || endpoints.contains(&"ready") {
                    ready
                } else {
                    here
                };
                assert_eq!(found.cluster, expected, "{endpoints:?}");
                assert_eq!(found.has_any, !expected.is_empty(), "{endpoints:?}");
                assert_eq!(found.reachable, expected, "{endpoints:?}");
            }
        }
    }
}

#[test]
fn an_endpoint_of_weight_0_leaves_each_list_that_has_others() {
    check(CLUSTER, &["ready+w0", "ready"], (&[1], &[], &[1]), true);
    check(
        CLUSTER,
        &["ready+w0", "ready+w0"],
        (&[0, 1], &[], &[0, 1]),
        true,
    );
    check(
        CLUSTER,
        &["draining+w0", "draining+w9"],
        (&[1], &[], &[1]),
        true,
    );
    // It counts as ready all the same: those that drain do not come back for it.
    check(CLUSTER, &["ready+w0", "draining"], (&[0], &[], &[0]), true);
    check(
        BOTH,
        &["ready+local+w0", "ready"],
        (&[1], &[0], &[0, 1]),
        true,
    );
}
