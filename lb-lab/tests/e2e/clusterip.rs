// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pod to ClusterIP in every topology: who answers, what both sides see, how it is spread.
//!
//! All labs have the strict reverse-path filter, FORWARD policy DROP, the drop of INVALID and
//! the CNI's masquerade. **Invariant:** every connect counts, none is repeated.
//! Read next: `load.rs`, which makes the connections.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_lab::{Builder, HttpClient, Lab, Pod, RuleTool};

use crate::cluster::{CONNECT_MAX, Cluster, Vip, get, in_default_and_routed, own, soak};
use crate::common::can_run;
use crate::load::{
    Request, assert_even, assert_no_failure, assert_no_retransmission, count, datagrams, parallel,
    sequential, tally,
};

in_every_topology!(
    both_sides_see_the_addresses_they_should_and_every_checksum_is_right,
    a_thousand_connections_are_spread_evenly_one_by_one_and_by_eight_clients,
    a_thousand_random_choices_are_even_by_chi_square_and_follow_no_order,
);

/// TCP and UDP to one Service whose only backend is `server`, in both families.
fn talk(client: &Pod, vip: &Vip, server: &Pod) {
    for (remote, source) in vip.remotes().into_iter().zip(client.addresses()) {
        let reply = get(client, remote, "/");
        assert_eq!(reply.text(), server.name(), "{remote}");
        let reply = get(client, remote, "/source");
        let seen = format!("{source} {}", reply.local.port());
        assert_eq!(reply.text(), seen, "the server does not see its client");
        let connect = || HttpClient::new(remote).connect();
        let mut connection = client.run(connect).unwrap().unwrap();
        assert!(connection.connect_time() < CONNECT_MAX, "{remote}");
        assert_eq!(connection.stream().peer_addr().unwrap(), remote);
        connection.download(300_000).unwrap();
        connection.upload(300_000).unwrap();
        // These sockets are connected: an answer from another address would not be seen.
        assert_eq!(client.udp_ask(remote, "hostname").unwrap(), server.name());
        let seen = client.udp_ask(remote, "source").unwrap();
        assert_eq!(seen.split(' ').next().unwrap(), source.to_string());
        // Odd and even lengths, because a checksum takes two bytes at a time.
        for length in [1, 2, 3, 512, 1373] {
            let text = "x".repeat(length);
            assert_eq!(client.udp_ask(remote, &text).unwrap(), text);
        }
    }
}

/// Talks while both ends record, and judges the recordings.
fn talk_recorded(client: &Pod, vip: &Vip, server: &Pod, finished_by_pods: bool, what: &str) {
    let what = format!("{what}, {} to {}", client.name(), server.name());
    let (here, there) = (client.capture("eth0"), server.capture("eth0"));
    let (here, there) = (here.unwrap(), there.unwrap());
    talk(client, vip, server);
    let (here, there) = (here.stop().unwrap(), there.stop().unwrap());
    for (recording, pod) in [(&here, client), (&there, server)] {
        assert_no_retransmission(recording);
        for address in pod.addresses() {
            let bad = recording.bad_checksums_to(address);
            assert_eq!(bad, Vec::<String>::new(), "{what}: at {pod:?}");
        }
        if finished_by_pods {
            let complaints = recording.tcpdump_complaints().unwrap();
            assert_eq!(complaints, Vec::<String>::new(), "{what}: at {pod:?}");
            assert_eq!(recording.bad_checksums(), Vec::<String>::new(), "{what}");
        }
    }
    for (remote, [own, peer]) in vip
        .remotes()
        .into_iter()
        .zip([0, 1].map(|family| [client.addresses()[family], server.addresses()[family]]))
    {
        let dialled =
            here.count(|from, _, to, port| from == own && (to, port) == (remote.ip(), 80));
        assert!(dialled > 20, "{what}: {dialled} packets to {remote}");
        let leaked = here.count(|from, _, to, port| port != 0 && (from == peer || to == peer));
        assert_eq!(leaked, 0, "{what}: the client saw the backend's address");
        let leaked = there.count(|from, _, to, _| from == remote.ip() || to == remote.ip());
        assert_eq!(leaked, 0, "{what}: the server saw the Service's address");
    }
}

fn both_sides_see_the_addresses_they_should_and_every_checksum_is_right(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vips = [Vip::new("near", 1), Vip::new("far", 2)];
    for (vip, pod) in vips.iter().zip([&near, &far]) {
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    let pods = [&client, &near, &far];
    let everywhere = |what: &str, finished_by_pods| {
        for (vip, server) in vips.iter().zip([&near, &far]) {
            talk_recorded(&client, vip, server, finished_by_pods, what);
        }
    };
    // Offload is on all the way to the receiver's own device, which finishes the checksum of
    // whatever the pseudo header's part says by then.
    Cluster::tx_off_towards(&pods);
    everywhere("offload on up to the last device", false);
    cluster.tx_off_on_nodes(&pods);
    everywhere("tx off on the host side", false);
    for pod in pods {
        pod.output("ethtool -K eth0 tx off").unwrap();
    }
    everywhere("tx off everywhere", true);
}

fn a_thousand_connections_are_spread_evenly_one_by_one_and_by_eight_clients(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods =
        [(0, "web-a"), (0, "web-b"), (1, "web-c")].map(|(node, name)| cluster.web(node, name));
    let vip = Vip::new("hostnames", 175);
    cluster.publish(&vip, &[&pods[0], &pods[1], &pods[2]]);
    cluster.start_agents();
    let capture = client.capture("eth0").unwrap();
    let each = soak(500);
    for remote in vip.remotes() {
        let requests = sequential(&client, remote, each);
        assert_no_failure(&requests);
        assert_even(&tally(&requests, remote), 3, each, "one by one");
    }
    let each = soak(125);
    for remote in vip.remotes() {
        let requests = parallel(&client, remote, 8, each);
        assert_no_failure(&requests);
        assert_even(&tally(&requests, remote), 3, 8 * each, "by eight clients");
        let names = datagrams(&client, remote, 300);
        assert_even(&count(names.iter()), 3, 300, "over UDP");
    }
    assert_no_retransmission(&capture.stop().unwrap());
    let server = |pod: &Pod| cluster.server(pod.name()).connections();
    let served: u64 = pods.iter().map(server).sum();
    assert_eq!(
        served,
        soak(3000) as u64,
        "the servers count what the client counts"
    );
}

/// Sum of squared differences from an even spread, each over the expected count.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn chi_square(counts: &BTreeMap<String, usize>) -> f64 {
    let expected = counts.values().sum::<usize>() as f64 / counts.len() as f64;
    let square = |count: &usize| (*count as f64 - expected).powi(2) / expected;
    counts.values().map(square).sum()
}

/// How often a name follows itself.
fn repeats(names: &[String]) -> usize {
    names.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

/// What an even choice among three (two degrees of freedom) exceeds with probability
/// exp(-23.03 / 2), once in 100,000 runs: nobody should have to look into chance.
const CHI_SQUARE_MAX: f64 = 23.03;

fn a_thousand_random_choices_are_even_by_chi_square_and_follow_no_order(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods =
        [(0, "web-a"), (0, "web-b"), (1, "web-c")].map(|(node, name)| cluster.web(node, name));
    let vip = Vip::new("hostnames", 175).random();
    cluster.publish(&vip, &[&pods[0], &pods[1], &pods[2]]);
    cluster.start_agents();
    let capture = client.capture("eth0").unwrap();
    let each = soak(500);
    let mut all = Vec::new();
    for remote in vip.remotes() {
        let requests = sequential(&client, remote, each);
        assert_no_failure(&requests);
        let name = |request: Request| request.result.unwrap().0;
        let names: Vec<_> = requests.into_iter().map(name).collect();
        // A third on average; a cursor would never repeat. 60 is ten deviations below 167.
        let again = repeats(&names);
        assert!(again > each * 60 / 500, "{again} repeats in {each}");
        all.extend(names);
    }
    assert_no_retransmission(&capture.stop().unwrap());
    let counts = count(all.iter());
    assert_eq!(counts.len(), 3, "{counts:?}");
    let chi_square = chi_square(&counts);
    assert!(chi_square < CHI_SQUARE_MAX, "{chi_square} {counts:?}");
}

#[test]
fn both_sides_see_the_addresses_they_should_under_iptables_rules() {
    in_default_and_routed(|builder| {
        both_sides_see_the_addresses_they_should_and_every_checksum_is_right(
            builder.rules(RuleTool::Iptables),
        );
    });
}

#[test]
fn clients_on_every_node_are_served_by_their_own_node() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let clients = [cluster.pod(0, "client-0"), cluster.pod(1, "client-1")];
    let web = cluster.web(1, "web");
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&web]);
    cluster.start_agents();
    for client in &clients {
        talk(client, &vip, &web);
    }
    // The Service's port is one thing, the pod's own another; both are there.
    for remote in vip.remotes() {
        let direct: SocketAddr = own(&web, remote, crate::cluster::TARGET);
        assert_eq!(get(&clients[0], direct, "/").text(), "web");
    }
}
