// SPDX-License-Identifier: MIT OR Apache-2.0
//! Edits the example's EndpointSlices as text, as a person with an editor would.
//!
//! An endpoint is a block that begins with `- addresses:` and goes on while lines are indented.
//! **Invariant:** whatever is not the endpoint in question stays as it is, byte for byte.
//! Read next: `../../demo/hostnames.yaml`.

use std::net::IpAddr;

/// The manifests that the demo gives to the agent.
pub(super) const HOSTNAMES: &str = include_str!("../../demo/hostnames.yaml");

const ENDPOINT: &str = "- addresses:";

/// One line, or all lines of one endpoint.
enum Block {
    Line(String),
    Endpoint(String),
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for line in text.split_inclusive('\n') {
        match blocks.last_mut() {
            _ if line.starts_with(ENDPOINT) => blocks.push(Block::Endpoint(line.to_owned())),
            Some(Block::Endpoint(endpoint)) if line.starts_with(' ') => endpoint.push_str(line),
            _ => blocks.push(Block::Line(line.to_owned())),
        }
    }
    blocks
}

fn is_of(endpoint: &str, pod: &str) -> bool {
    let wanted = format!("name: {pod}");
    endpoint.lines().any(|line| line.trim() == wanted)
}

/// The manifests without the endpoints of `pod`, in whichever slices they are.
pub(super) fn without(text: &str, pod: &str) -> String {
    let kept = blocks(text).into_iter().filter_map(|block| match block {
        Block::Endpoint(endpoint) => (!is_of(&endpoint, pod)).then_some(endpoint),
        Block::Line(line) => Some(line),
    });
    kept.collect()
}

/// The manifests with one more endpoint per slice: a ready `pod` on `node`.
///
/// It stands before the endpoint that is the first of each slice now; a slice without endpoints
/// stays as it is.
pub(super) fn with(text: &str, pod: &str, node: &str, addresses: &[IpAddr]) -> String {
    let (mut edited, mut family, mut first) = (String::new(), String::new(), true);
    for block in blocks(text) {
        match block {
            Block::Line(line) => {
                if let Some(name) = line.strip_prefix("addressType: ") {
                    name.trim().clone_into(&mut family);
                    first = true;
                }
                edited.push_str(&line);
            }
            Block::Endpoint(endpoint) => {
                let of_family = |address: &&IpAddr| address.is_ipv4() == (family == "IPv4");
                if let Some(address) = addresses.iter().find(of_family).filter(|_| first) {
                    edited.push_str(&endpoint_of(pod, node, *address));
                }
                first = false;
                edited.push_str(&endpoint);
            }
        }
    }
    edited
}

fn endpoint_of(pod: &str, node: &str, address: IpAddr) -> String {
    format!(
        "{ENDPOINT}\n  - \"{address}\"\n  conditions:\n    ready: true\n  nodeName: {node}\n  \
         targetRef:\n    kind: Pod\n    name: {pod}\n    namespace: default\n"
    )
}

/// The endpoints that two versions do not share, marked `-` and `+`, one per line.
pub(super) fn difference(old: &str, new: &str) -> Vec<String> {
    let (old, new) = (endpoints(old), endpoints(new));
    let removed = old.iter().filter(|endpoint| !new.contains(endpoint));
    let added = new.iter().filter(|endpoint| !old.contains(endpoint));
    let removed = removed.map(|endpoint| format!("- {endpoint}"));
    removed
        .chain(added.map(|endpoint| format!("+ {endpoint}")))
        .collect()
}

/// Each endpoint in a line: pod, address and node.
fn endpoints(text: &str) -> Vec<String> {
    let line = |endpoint: String| {
        let field = |name| {
            let mut values = endpoint
                .lines()
                .filter_map(|line| line.trim().strip_prefix(name));
            values
                .next()
                .unwrap_or_default()
                .trim_matches('"')
                .to_owned()
        };
        let (pod, address, node) = (field("name: "), field("- "), field("nodeName: "));
        format!("{pod:<16}  {address:<18}  on {node}")
    };
    let endpoints = blocks(text).into_iter().filter_map(|block| match block {
        Block::Endpoint(endpoint) => endpoint.split_once('\n').map(|(_, rest)| rest.to_owned()),
        Block::Line(_) => None,
    });
    endpoints.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 3] = ["hostnames-0uton", "hostnames-yp2kp", "hostnames-bvc05"];

    #[test]
    fn a_pod_taken_out_is_gone_from_both_slices_and_nothing_else_is() {
        let left = without(HOSTNAMES, ALL[1]);
        assert!(!left.contains("10.244.0.6") && !left.contains("fd00:10:244::6"));
        assert_eq!(left.lines().count(), HOSTNAMES.lines().count() - 2 * 9);
        for kept in [ALL[0], ALL[2]] {
            assert_eq!(left.matches(kept).count(), 2);
        }
        assert_eq!(without(&left, ALL[1]), left);
    }

    #[test]
    fn a_pod_added_and_taken_out_again_leaves_the_file_as_it_was() {
        let addresses = ["10.244.1.5", "fd00:10:244:1::5"].map(|text| text.parse().unwrap());
        let more = with(HOSTNAMES, "hostnames-k3x9q", "node-1", &addresses);
        assert_eq!(more.matches("name: hostnames-k3x9q").count(), 2);
        assert_eq!(more.matches("\"10.244.1.5\"").count(), 1);
        assert_eq!(more.matches("\"fd00:10:244:1::5\"").count(), 1);
        let ipv6 = more.split("addressType: IPv6").nth(1).unwrap();
        assert!(ipv6.contains("fd00:10:244:1::5") && !ipv6.contains("10.244.1.5\""));
        assert_eq!(without(&more, "hostnames-k3x9q"), HOSTNAMES);
    }

    #[test]
    fn the_example_is_the_one_that_is_told() {
        for told in ["10.0.1.175", "port: 80\n", "port: 9376", "10.244.0.7"] {
            assert!(HOSTNAMES.contains(told), "{told}");
        }
        for (host, pod) in ALL.iter().enumerate() {
            let (_, rest) = HOSTNAMES
                .split_once(&format!("10.244.0.{}", 5 + host))
                .unwrap();
            let name = rest.lines().find(|line| line.contains("name: ")).unwrap();
            assert_eq!(name.trim(), format!("name: {pod}"));
        }
    }

    #[test]
    fn a_difference_shows_the_endpoints_that_went_and_came() {
        let left = without(HOSTNAMES, ALL[1]);
        let went = difference(HOSTNAMES, &left);
        assert_eq!(
            went,
            [
                "- hostnames-yp2kp   10.244.0.6          on node-0",
                "- hostnames-yp2kp   fd00:10:244::6      on node-0"
            ]
        );
        let came = difference(&left, HOSTNAMES);
        assert!(came.iter().all(|line| line.starts_with("+ ")) && came.len() == 2);
        assert!(difference(&left, &left).is_empty());
    }
}
