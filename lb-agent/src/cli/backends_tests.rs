// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables made by planning, shown as text.

use super::*;
use crate::cli::{contract, fixture};

fn shown() -> BackendsText {
    let fixture = fixture::planned();
    let mut slots = Slots::new();
    for (key, backend) in &fixture.content.slots {
        if let Some(count) = slots
            .entry(*backend)
            .or_default()
            .get_mut(usize::from(key.list))
        {
            *count += 1;
        }
    }
    let flows = BTreeMap::from([(fixture.backend("10.244.0.6"), 7)]);
    BackendsText::new(&fixture.content, &fixture.names(), &slots, &flows)
}

#[test]
fn backends_are_named_and_those_in_no_list_are_there_too() {
    let text = shown().to_table(None);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let expected = "\
SERVICE BACKEND STATE SLOTS LOCAL FLOWS POD NODE
default/web http 10.244.0.5:9376 TCP serving 1 0 0 web-7d4b9c-xk2p9 node-b
default/web http 10.244.0.6:9376 TCP serving 1 0 7 web-7d4b9c-9qq4w node-b
default/web http 10.244.0.7:9376 TCP serving 1 0 0 - node-b
default/web http [fd00:10:244::5]:9376 TCP serving 1 0 0 web-7d4b9c-xk2p9 node-b
monitoring/prometheus-main-prometheus-alertmanager mesh 10.244.0.9:9094 UDP serving 1 1 0 alertmanager-0 node-a (this node)
monitoring/prometheus-main-prometheus-alertmanager mesh 10.244.1.9:9094 UDP serving 1 0 0 alertmanager-1 node-b
monitoring/prometheus-main-prometheus-alertmanager mesh 10.244.1.10:9094 UDP terminating 0 0 0 alertmanager-2 node-b
";
    let expected: Vec<Vec<&str>> = expected
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows, expected, "\n{text}");
}

#[test]
fn lines_of_a_narrow_terminal_are_no_longer_than_it() {
    for width in [80, 120] {
        let text = shown().to_table(Some(width));
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(width), "\n{text}");
    }
}

#[test]
fn the_json_keeps_to_the_schema() {
    assert_eq!(contract::broken("backends", &shown()), [""; 0]);
    let content = fixture::planned().content;
    let nameless = BackendsText::new(&content, &Names::default(), &Slots::new(), &BTreeMap::new());
    assert_eq!(contract::broken("backends", &nameless), [""; 0]);
    assert!(
        nameless
            .backends
            .iter()
            .any(|backend| backend.state == "kept")
    );
}
