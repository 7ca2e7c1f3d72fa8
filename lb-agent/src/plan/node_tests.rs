// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which addresses serve node ports, and when pods can be told apart.

use super::*;

fn ips(words: &str) -> Vec<IpAddr> {
    words
        .split_whitespace()
        .map(|w| w.parse().unwrap())
        .collect()
}

fn node(addresses: &str) -> Node {
    Node {
        leaving: false,
        name: "node-a".to_owned(),
        addresses: ips(addresses),
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        zone: None,
    }
}

fn served(
    choice: &[&str],
    kernel: Option<&str>,
    registered: &str,
    virtual_ips: &str,
) -> Vec<IpAddr> {
    let words: Vec<String> = choice.iter().map(|word| (*word).to_owned()).collect();
    let kernel: Option<BTreeSet<IpAddr>> = kernel.map(|words| ips(words).into_iter().collect());
    let virtual_ips = ips(virtual_ips);
    NodeAddresses::new(
        &NodePortAddresses::from_words(&words).unwrap(),
        kernel.as_ref(),
        Some(&node(registered)),
        |ip| virtual_ips.contains(&ip),
    )
    .node_ports
}

#[test]
fn without_the_kernel_the_node_object_tells_the_addresses() {
    let both = "192.0.2.1 fd00::1 198.51.100.7";
    assert_eq!(
        served(&[], None, both, ""),
        ips("192.0.2.1 198.51.100.7 fd00::1")
    );
    assert_eq!(
        served(&["primary"], None, both, ""),
        ips("192.0.2.1 fd00::1")
    );
}

#[test]
fn the_kernel_tells_all_addresses_but_those_that_nobody_else_can_dial() {
    let kernel = "127.0.0.1 ::1 fe80::1 192.0.2.1 10.244.0.1";
    let found = served(&[], Some(kernel), "192.0.2.1", "");
    assert_eq!(found, ips("10.244.0.1 192.0.2.1"));
}

#[test]
fn ranges_choose_and_a_family_without_one_has_all() {
    let kernel = "192.0.2.1 10.244.0.1 fd00::1";
    let found = served(&["192.0.2.0/24"], Some(kernel), "192.0.2.1", "");
    assert_eq!(found, ips("192.0.2.1 fd00::1"));
}

#[test]
fn an_address_of_a_service_serves_no_node_ports_unless_it_is_registered() {
    let kernel = "192.0.2.1 203.0.113.9";
    let found = served(&[], Some(kernel), "192.0.2.1", "203.0.113.9 192.0.2.1");
    assert_eq!(found, ips("192.0.2.1"));
}

#[test]
fn words_that_do_not_fit_together_are_refused() {
    for words in [&["primary", "10.0.0.0/8"][..], &["all"], &["10.0.0.0"]] {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        assert!(NodePortAddresses::from_words(&words).is_err(), "{words:?}");
    }
}

#[test]
fn pods_are_told_apart_in_the_families_that_have_a_range() {
    let node = node("192.0.2.1");
    let ranges = DetectLocal::ClusterCidr(vec!["fd00:10::/48".parse().unwrap()]);
    let works = |mode: &DetectLocal| {
        [IpFamily::V4, IpFamily::V6].map(|family| mode.works(family, Some(&node)))
    };
    assert_eq!(works(&ranges), [false, true]);
    assert_eq!(works(&DetectLocal::NodeCidr), [true, false]);
    assert_eq!(works(&DetectLocal::Device), [true, true]);
    assert!(!DetectLocal::NodeCidr.works(IpFamily::V4, None));
}
