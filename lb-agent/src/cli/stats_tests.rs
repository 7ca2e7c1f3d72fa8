// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters as a person reads them.

use super::*;
use crate::cli::contract;

fn shown() -> StatsText {
    let reason = |name, count| ReasonText {
        name,
        code: 0,
        class: "drop",
        count,
        meaning: "Words.",
    };
    let service = |id, opened, rejected| ServiceText {
        service: None,
        port_name: None,
        service_id: id,
        family: Some("IPv4"),
        protocol: (id != 2).then(|| "TCP".to_owned()),
        opened,
        rejected,
        cell: format!("default/s{id}"),
    };
    StatsText {
        flows: FlowsText {
            established: 3,
            half_open: 1,
        },
        reasons: vec![reason("no-backend", 0), reason("policy-drop", 12)],
        maps: vec![
            MapText {
                name: "CONNS_V4",
                entries: 131_072,
                capacity: 262_144,
            },
            MapText {
                name: "CONNS_V6",
                entries: 0,
                capacity: 262_144,
            },
        ],
        services: vec![service(1, 5, 0), service(2, 0, 9), service(3, 5, 0)],
        masquerades: Vec::new(),
    }
}

#[test]
fn what_never_happened_is_shown_on_demand_only() {
    let mut shown = shown();
    shown.keep_top(2);
    let expected = "\
3 established flows, 1 half-open

REASON       PACKET  COUNT  MEANING
policy-drop  drop       12  Words.

MAP       ENTRIES      OF  FULL
CONNS_V4   131072  262144   50%

SERVICE     FAMILY  PROTOCOL  OPENED  REJECTED
default/s2  IPv4    -              0         9
default/s1  IPv4    TCP            5         0
";
    assert_eq!(shown.to_table(false, None), expected);
    let all = shown.to_table(true, None);
    assert!(
        all.contains("no-backend") && all.contains("CONNS_V6"),
        "{all}"
    );
}

#[test]
fn the_backend_with_most_ports_is_told_for_each_masquerade_address() {
    let address: IpAddr = [192, 168, 50, 10].into();
    let backend = |last| (IpAddr::from([10, 244, 1, last]), 9376, 6);
    let of = Masquerades {
        flows: 12,
        towards: BTreeMap::from([(backend(1), 2), (backend(2), 10)]),
    };
    let texts = masquerade_texts(&BTreeMap::from([(address, of)]));
    let shown = StatsText {
        masquerades: texts,
        ..shown()
    };
    assert_eq!(contract::broken("stats", &shown), [""; 0]);
    let [text] = &shown.masquerades[..] else {
        unreachable!("one address")
    };
    assert_eq!((text.flows, text.most_ports), (12, 10));
    assert_eq!(text.most_address, IpAddr::from([10, 244, 1, 2]));
}
