// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every topology carries direct traffic under every rule of a real node, and the switches
//! do what they say.
//!
//! **Invariant:** each test makes its own lab, so they run at once. Read next: `cleanup.rs`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use common::{assert_direct, can_run};
use lb_lab::agent::{Agent, find_binary};
use lb_lab::{
    Builder, Endpoint, HttpClient, Lab, LabError, Manifests, Place, PodAddress, RpFilter, RuleTool,
    ServerOptions, Service, Topology, TxOffload, UdpClient, Underlay, topology,
};

fn carries_direct_traffic(builder: Builder) {
    let lab = builder.nodes(2).build().unwrap();
    let a = lab.node(0).pod("a", 5).unwrap();
    let b = lab.node(0).pod("b", 6).unwrap();
    let c = lab.node(1).pod("c", 5).unwrap();
    let _servers = [&a, &b, &c].map(|pod| pod.serve(9376).unwrap());
    for (from, to) in [(&a, &b), (&a, &c), (&c, &a)] {
        assert_direct(from, to, 9376);
    }
    let reply = lab
        .node(0)
        .http_get(SocketAddr::new(c.v4().into(), 9376), "/")
        .unwrap();
    assert_eq!(reply.text(), "c");
}

#[test]
fn pods_see_each_others_addresses_in_every_topology() {
    if !can_run() {
        return;
    }
    for (topology, underlay) in topology::EVERY {
        carries_direct_traffic(Lab::builder().topology(topology).underlay(underlay));
    }
}

#[test]
fn pods_see_each_others_addresses_under_iptables_rules() {
    if !can_run() {
        return;
    }
    for topology in [Topology::Bridge { br_netfilter: true }, Topology::Routed] {
        carries_direct_traffic(Lab::builder().topology(topology).rules(RuleTool::Iptables));
    }
}

#[test]
fn a_lab_of_two_nodes_and_three_pods_is_there_in_seconds() {
    if !can_run() {
        return;
    }
    let start = Instant::now();
    let lab = Lab::builder()
        .underlay(Underlay::Vxlan)
        .nodes(2)
        .build()
        .unwrap();
    for name in ["hostnames-0uton", "hostnames-yp2kp", "hostnames-bvc05"] {
        lab.node(0).pod(name, PodAddress::Next).unwrap();
    }
    // A fifth of a second on an idle machine; other tests make namespaces at the same time.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn every_device_of_a_node_has_the_strict_reverse_path_filter() {
    if !can_run() {
        return;
    }
    for (topology, underlay) in topology::EVERY {
        let lab = Lab::builder()
            .topology(topology)
            .underlay(underlay)
            .build()
            .unwrap();
        let node = lab.node(0);
        let pod = node.pod("a-pod-with-a-long-name-0uton", 5).unwrap();
        assert!(pod.device().len() <= 15, "{}", pod.device());
        let bridge = matches!(topology, Topology::Bridge { .. }).then_some("cni0");
        let devices = ["all", "default", pod.device()];
        for device in devices
            .into_iter()
            .chain(bridge)
            .chain(node.uplinks().iter().copied())
        {
            let value = node
                .netns()
                .read_sysctl(&format!("ipv4/conf/{device}/rp_filter"));
            assert_eq!(value.unwrap(), "1", "{device}");
        }
        if let Topology::Bridge { br_netfilter } = topology {
            let value = node
                .netns()
                .read_sysctl("bridge/bridge-nf-call-iptables")
                .unwrap();
            assert_eq!(value == "1", br_netfilter);
        }
    }
}

#[test]
fn the_reverse_path_filter_refuses_a_source_that_is_routed_elsewhere() {
    if !can_run() {
        return;
    }
    for (rp_filter, passes) in [(RpFilter::Strict, false), (RpFilter::Off, true)] {
        let lab = Lab::builder()
            .topology(Topology::Routed)
            .rp_filter(rp_filter)
            .build()
            .unwrap();
        let (a, b) = (
            lab.node(0).pod("a", 5).unwrap(),
            lab.node(0).pod("b", 6).unwrap(),
        );
        let server = b.serve(9376).unwrap();
        // An address that the node does not route to this pod.
        a.output("ip addr add 10.244.0.99/32 dev eth0").unwrap();
        a.output("ip route replace default via 169.254.1.1 dev eth0 src 10.244.0.99")
            .unwrap();
        let remote = SocketAddr::new(b.v4().into(), 9376);
        let capture = b.capture("eth0").unwrap();
        let result = a.run(|| UdpClient::bind(remote, None).unwrap().exchange(b"x"));
        assert!(
            result.unwrap().is_err(),
            "the answer has no way back in either case"
        );
        assert_eq!(server.answers() > 0, passes);
        let seen = capture.stop().unwrap().count(|_, _, _, port| port == 9376);
        assert_eq!(seen > 0, passes, "{rp_filter:?}");
    }
}

#[test]
fn forward_policy_drop_stops_what_is_not_for_pods() {
    if !can_run() {
        return;
    }
    for tool in [RuleTool::Nftables, RuleTool::Iptables] {
        for (drop, passes) in [(true, false), (false, true)] {
            let lab = Lab::builder()
                .rules(tool)
                .forward_drop(drop)
                .build()
                .unwrap();
            let near = lab.client("near", Place::Underlay).unwrap();
            let far = lab.client("far", Place::BeyondRouter).unwrap();
            let _server = far.serve(80).unwrap();
            let remote = SocketAddr::new(far.v4().into(), 80);
            assert_eq!(near.http_get(remote, "/").unwrap().text(), "far");
            // By way of the node, which is no router for such traffic.
            near.output("ip route add 203.0.113.0/24 via 192.168.50.10")
                .unwrap();
            let client = HttpClient::new(remote).timeout(Duration::from_millis(600));
            let result = near.run(|| client.get("/")).unwrap();
            assert_eq!(result.is_ok(), passes, "{tool:?} {result:?}");
        }
    }
}

#[test]
fn masquerade_shows_the_nodes_address_outside_and_only_there() {
    if !can_run() {
        return;
    }
    for tool in [RuleTool::Nftables, RuleTool::Iptables] {
        for masquerade in [true, false] {
            let lab = Lab::builder()
                .rules(tool)
                .masquerade(masquerade)
                .build()
                .unwrap();
            let pod = lab.node(0).pod("a", 5).unwrap();
            for place in [Place::Underlay, Place::BeyondRouter] {
                let client = lab
                    .client(&format!("{place:?}").to_lowercase(), place)
                    .unwrap();
                let _server = client.serve(80).unwrap();
                let expected = if masquerade {
                    lab.node(0).addresses()
                } else {
                    pod.addresses()
                };
                for (address, expected) in client.addresses().into_iter().zip(expected) {
                    let remote = SocketAddr::new(address, 80);
                    let source = pod.http_get(remote, "/source").unwrap();
                    let source = source.text().split(' ').next().unwrap().to_owned();
                    assert_eq!(source, expected.to_string(), "{tool:?} {place:?}");
                }
            }
        }
    }
}

#[test]
fn a_connection_stays_open_and_every_further_request_is_answered() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let (a, b) = (
        lab.node(0).pod("a", 5).unwrap(),
        lab.node(0).pod("b", 6).unwrap(),
    );
    let server = b.serve(9376).unwrap();
    for address in b.addresses() {
        let client = HttpClient::new(SocketAddr::new(address, 9376)).source_port(40_000);
        let mut connection = a.run(|| client.connect()).unwrap().unwrap();
        assert_eq!(connection.local().port(), 40_000);
        for _ in 0..3 {
            assert_eq!(connection.get("/").unwrap().text(), "b");
        }
        assert_eq!(
            connection
                .get("/stream?bytes=3000&ms=5")
                .unwrap()
                .body
                .len(),
            3000
        );
        connection.download(8 << 20).unwrap();
        connection.upload(8 << 20).unwrap();
        assert_eq!(
            connection.get("/source").unwrap().text().split(' ').nth(1),
            Some("40000")
        );
    }
    assert_eq!(server.connections(), 2);
    let mut connection = a
        .run(|| HttpClient::new(SocketAddr::new(b.v4().into(), 9376)).connect())
        .unwrap()
        .unwrap();
    connection.get("/").unwrap();
    server.stop();
    assert!(
        connection.get("/").is_err(),
        "a stopped server ends its connections"
    );
    let refused = a
        .http_get(SocketAddr::new(b.v4().into(), 9376), "/")
        .unwrap_err();
    let LabError::Io { source, .. } = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_thousand_short_connections_by_eight_clients_have_no_error() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let (a, b) = (
        lab.node(0).pod("a", 5).unwrap(),
        lab.node(0).pod("b", 6).unwrap(),
    );
    let server = b
        .serve_with(&ServerOptions::new("other-name", &[80, 81]))
        .unwrap();
    let capture = a.capture("eth0").unwrap();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (a, port) = (&a, 80 + client % 2);
            let address = if client < 4 {
                IpAddr::V4(b.v4())
            } else {
                IpAddr::V6(b.v6())
            };
            let work = move || {
                for _ in 0..125 {
                    let reply = HttpClient::new(SocketAddr::new(address, port))
                        .get("/")
                        .unwrap();
                    assert_eq!(reply.text(), "other-name");
                    assert!(reply.connect_time < Duration::from_millis(500));
                }
            };
            scope.spawn(move || a.run(work).unwrap());
        }
    });
    assert_eq!((server.connections(), server.answers()), (1000, 1000));
    let recording = capture.stop().unwrap();
    assert_eq!(recording.missed(), 0);
    assert_eq!(recording.syn_retransmissions(), Vec::<String>::new());
    assert!(recording.len() > 8_000, "{}", recording.len());
}

#[test]
fn checksums_are_complete_where_offload_is_off_and_partial_where_it_is_on() {
    if !can_run() {
        return;
    }
    for offload in [TxOffload::Off, TxOffload::OffOnNodes, TxOffload::On] {
        let lab = Lab::builder()
            .topology(Topology::Routed)
            .underlay(Underlay::Vxlan)
            .nodes(2)
            .tx_offload(offload)
            .build()
            .unwrap();
        let (a, b) = (
            lab.node(0).pod("a", 5).unwrap(),
            lab.node(1).pod("b", 5).unwrap(),
        );
        let _server = b.serve(9376).unwrap();
        let (there, here) = (b.capture("eth0").unwrap(), a.capture("eth0").unwrap());
        for address in b.addresses() {
            let remote = SocketAddr::new(address, 9376);
            a.http_get(remote, "/").unwrap();
            a.udp_ask(remote, "hostname").unwrap();
        }
        for (recording, complete) in [
            (there, offload == TxOffload::Off),
            (here, offload == TxOffload::Off),
        ] {
            let recording = recording.stop().unwrap();
            let bad = recording.bad_checksums();
            assert_eq!(bad.is_empty(), complete, "{offload:?} {bad:?}");
            let complaints = recording.tcpdump_complaints().unwrap();
            assert_eq!(
                complaints.is_empty(),
                complete,
                "{offload:?} {complaints:?}"
            );
        }
        let seen = {
            let capture = b.capture("eth0").unwrap();
            a.http_get(SocketAddr::new(b.v4().into(), 9376), "/")
                .unwrap();
            capture.stop().unwrap()
        };
        let to_b = seen.bad_checksums_to(b.v4().into());
        assert_eq!(
            to_b.is_empty(),
            offload != TxOffload::On,
            "{offload:?} {to_b:?}"
        );
    }
}

#[test]
fn a_lost_syn_is_found_as_a_retransmission() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let (a, b) = (
        lab.node(0).pod("a", 5).unwrap(),
        lab.node(0).pod("b", 6).unwrap(),
    );
    b.unplug().unwrap();
    let capture = a.capture("any").unwrap();
    let client =
        HttpClient::new(SocketAddr::new(b.v4().into(), 80)).timeout(Duration::from_millis(1500));
    a.output(&format!(
        "ip neigh replace {} lladdr 02:00:00:00:00:09 dev eth0",
        b.v4()
    ))
    .unwrap();
    assert!(a.run(|| client.connect()).unwrap().is_err());
    assert_eq!(capture.stop().unwrap().syn_retransmissions().len(), 1);
}

#[test]
fn commands_run_in_the_hosts_namespace_and_cgroup() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let pod = lab.node(0).pod("a", 5).unwrap();
    let addresses = pod.output("ip -brief addr show dev eth0").unwrap();
    assert!(addresses.contains("10.244.0.5/24") && addresses.contains("fd00:10:244::5/64"));
    let cgroups = pod.output("cat /proc/self/cgroup").unwrap();
    let unified = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    assert!(
        pod.cgroup().ends_with(unified.trim_start_matches('/')),
        "{unified}"
    );
    assert!(pod.cgroup().starts_with(lab.node(0).cgroup()));
    let statfs = nix::sys::statfs::statfs(lab.node(0).bpffs()).unwrap();
    assert_eq!(statfs.filesystem_type(), nix::sys::statfs::BPF_FS_MAGIC);
    let error = pod.output("ls /does-not-exist").unwrap_err();
    assert!(error.to_string().contains("does-not-exist"), "{error}");
}

#[test]
fn a_name_is_given_once_and_must_be_a_name() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().node("one").build().unwrap();
    lab.node(0).pod("a", 5).unwrap();
    for name in ["a", "one", "router", "", "A", "../x", "-x"] {
        let error = lab.node(0).pod(name, 6).unwrap_err();
        assert!(
            matches!(error, LabError::Name { .. }),
            "{name:?}: {error:?}"
        );
    }
}

#[test]
fn an_agent_that_ends_early_is_an_error_with_its_log() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let manifests = Manifests::at(lab.dir().join("manifests")).unwrap();
    let error = lab
        .node(0)
        .start_agent("/bin/ls".as_ref(), manifests.dir(), &[])
        .unwrap_err();
    assert!(matches!(error, LabError::Ended { .. }), "{error:?}");
    assert!(error.to_string().contains("unrecognized option"), "{error}");
    let error = Agent::spawn(
        lab.node(0),
        "/does/not/exist".as_ref(),
        manifests.dir(),
        &[],
    );
    assert!(error.is_err());
}

#[test]
fn manifests_of_a_lab_are_what_they_were_told() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let pods = [5, 6].map(|host| lab.node(0).pod(&format!("p{host}"), host).unwrap());
    let manifests = Manifests::at(lab.dir().join("manifests")).unwrap();
    let vip = ["10.0.1.175", "fd00:10:0:1::175"].map(|text| text.parse().unwrap());
    let service = Service::new("hostnames", &vip).tcp(80, 9376).udp(80, 9376);
    manifests.service(&service).unwrap();
    manifests.node(lab.node(0)).unwrap();
    manifests
        .endpoints(&service, &[&pods[0], &pods[1]])
        .unwrap();
    let read = || std::fs::read_to_string(manifests.dir().join("endpoints-default-hostnames.yaml"));
    let text = read().unwrap();
    assert!(
        text.contains("10.244.0.5") && text.contains("fd00:10:244::6"),
        "{text}"
    );
    let leaving = Endpoint::from(&pods[0]).terminating();
    manifests.endpoints_with(&service, &[leaving]).unwrap();
    assert!(read().unwrap().contains("terminating: true"));
    manifests.delete(&service).unwrap();
    assert_eq!(
        std::fs::read_dir(manifests.dir()).unwrap().count(),
        1,
        "the node is left"
    );
    drop(find_binary());
}
