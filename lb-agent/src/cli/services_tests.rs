// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables made by planning, shown as text and as JSON.

use super::*;
use crate::cli::{contract, fixture};

const LIMIT: Option<usize> = None;

fn shown() -> ServicesText {
    let fixture = fixture::planned();
    let counted = fixture.content.services().into_iter();
    let counted = counted.map(|id| {
        let stats = ServiceStats {
            opened: 1_234_567,
            rejected: u64::from(id),
        };
        (id, stats)
    });
    ServicesText::new(&fixture.content, &fixture.names(), &counted.collect())
}

#[test]
fn services_align_and_tell_only_what_is_unusual() {
    let expected = "\
SERVICE                                                  FRONTEND                   KIND          BACKENDS  LOCAL   OPENED  REJECTED  NOTES
default/web http                                         10.0.1.175:80 TCP          ClusterIP            3      0  1234567         1
default/web http                                         [fd00:10:0:1::175]:80 TCP  ClusterIP            1      0  1234567         2
monitoring/prometheus-main-prometheus-alertmanager mesh  10.0.44.201:9094 UDP       ClusterIP            2      1  1234567         3  maglev, affinity 10800 s
monitoring/prometheus-main-prometheus-alertmanager mesh  203.0.113.9:9094 UDP       LoadBalancer         2      1  1234567         3  maglev, affinity 10800 s, from 10.0.0.0/8, external: local list, pod: snat never
monitoring/prometheus-main-prometheus-alertmanager mesh  192.168.50.10:30094 UDP    NodePort             2      1  1234567         3  maglev, affinity 10800 s, external: local list, pod: snat never
";
    assert_eq!(shown().to_table(LIMIT), expected);
    for width in [80, 120] {
        let text = shown().to_table(Some(width));
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(width), "\n{text}");
    }
}

#[test]
fn the_json_keeps_to_the_schema() {
    let mut shown = shown();
    shown.problems.push("objects.yaml: no YAML".to_owned());
    assert_eq!(contract::broken("services", &shown), [""; 0]);
    let nameless = ServicesText::new(
        &fixture::planned().content,
        &Names::default(),
        &BTreeMap::new(),
    );
    assert_eq!(contract::broken("services", &nameless), [""; 0]);
}

#[test]
fn without_names_addresses_stand_alone() {
    let fixture = fixture::planned();
    let names = Names::new(None, &fixture.content);
    let shown = ServicesText::new(&fixture.content, &names, &BTreeMap::new());
    assert!(
        shown
            .frontends
            .iter()
            .all(|frontend| frontend.service.is_none())
    );
    let text = shown.to_table(LIMIT);
    assert!(text.lines().nth(1).unwrap().starts_with("id 1 "), "{text}");
    let refusal = needs_names(&names).unwrap_err();
    assert!(refusal.contains("--manifests DIR"), "{refusal}");
}
