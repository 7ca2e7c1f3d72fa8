// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a packet is meant to cost, and whether it does.
//!
//! **Invariant:** a target is judged only by the cases that it speaks of; without them it is left out.
//! Read next: lb-ebpf/README.md, which has the same table with a date.

use serde::Serialize;

use super::clock::Took;
use super::report::Line;

/// A target and what was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) wanted: String,
    pub(crate) measured: f64,
    pub(crate) met: bool,
}

/// How cases are compared with a target.
#[derive(Clone, Copy)]
enum By {
    /// The ratio to the empty program; of several cases, their sum.
    Floor,
    /// The first case by the second one of the same round: the median of the rounds.
    Each,
}

/// What is asked of cases whose names are these.
struct Wish {
    cases: &'static [&'static str],
    most: f64,
    by: By,
}

const fn floor(cases: &'static [&'static str], most: f64) -> Wish {
    Wish {
        cases,
        most,
        by: By::Floor,
    }
}

const fn each(cases: &'static [&'static str]) -> Wish {
    Wish {
        cases,
        most: 1.4,
        by: By::Each,
    }
}

const WISHES: [Wish; 19] = [
    floor(&["IPv4 TCP, not ours, ingress"], 4.0),
    floor(&["IPv4 TCP, not ours, SYN, ingress"], 4.0),
    floor(&["IPv4 TCP, not ours, egress"], 4.0),
    floor(&["IPv4 UDP, not ours, ingress"], 4.0),
    floor(&["IPv4 UDP, not ours, egress"], 4.0),
    floor(&["IPv4 TCP, ClusterIP, one flow"], 9.0),
    floor(&["IPv4 TCP, reply, one flow"], 9.0),
    floor(&["IPv4 UDP, ClusterIP, one flow"], 11.0),
    floor(&["IPv4 UDP, reply, one flow"], 11.0),
    each(&[
        "IPv4 TCP, ClusterIP, 65536 flows",
        "IPv4 TCP, smallest DNAT, 65536 flows",
    ]),
    each(&[
        "IPv4 TCP, reply, 65536 flows",
        "IPv4 TCP, smallest DNAT, 65536 flows",
    ]),
    each(&[
        "IPv4 UDP, ClusterIP, 65536 flows",
        "IPv4 UDP, smallest DNAT, 65536 flows",
    ]),
    each(&[
        "IPv4 UDP, reply, 65536 flows",
        "IPv4 UDP, smallest DNAT, 65536 flows",
    ]),
    floor(&["IPv4 TCP, first packet, free room"], 90.0),
    floor(&["IPv4 UDP, first packet, free room"], 90.0),
    floor(&["IPv4 TCP, first packet, evicting"], 140.0),
    floor(&["IPv4 UDP, first packet, evicting"], 140.0),
    floor(
        &[
            "IPv4 TCP, NodePort with SNAT, one flow, ingress",
            "IPv4 TCP, NodePort with SNAT, one flow, egress",
        ],
        20.0,
    ),
    floor(
        &[
            "IPv4 UDP, NodePort with SNAT, one flow, ingress",
            "IPv4 UDP, NodePort with SNAT, one flow, egress",
        ],
        20.0,
    ),
];

/// Every target for which there are numbers.
pub(crate) fn judge(cases: &[Line]) -> Vec<Target> {
    WISHES
        .iter()
        .filter_map(|wish| judge_one(wish, cases))
        .collect()
}

fn judge_one(wish: &Wish, cases: &[Line]) -> Option<Target> {
    let of = |name: &&str| cases.iter().find(|case| case.name == *name);
    let found: Vec<&Line> = wish.cases.iter().map(of).collect::<Option<_>>()?;
    let (joined, unit, measured) = match wish.by {
        By::Floor => {
            let sum = found.iter().map(|case| case.ratio_to_floor).sum();
            (" + ", "the floor", sum)
        }
        By::Each => {
            let [first, second] = found.as_slice() else {
                return None;
            };
            let rounds = first.rounds.iter().zip(&second.rounds);
            let ratios = rounds.map(|(first, second)| first / second).collect();
            (" by ", "times", Took::of(ratios).median)
        }
    };
    let measured = (measured * 100.0).round() / 100.0;
    Some(Target {
        name: wish.cases.join(joined),
        wanted: format!("<= {} {unit}", wish.most),
        measured,
        met: measured <= wish.most,
    })
}
