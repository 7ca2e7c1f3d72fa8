// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a lab offers to tests: servers and clients, captures, commands, agents, manifests.
//!
//! **Invariant:** each test makes its own lab, so they run at once. Read next: `cleanup.rs`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at the first failure"
)]

mod common;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use common::{assert_direct, can_run};
use lb_lab::agent::Agent;
use lb_lab::{
    Endpoint, Host, HttpClient, Lab, LabError, Manifests, ServerOptions, Service, Topology,
    TxOffload, Underlay,
};

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
        let complete = offload == TxOffload::Off;
        for recording in [there, here] {
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
    let server = b.serve(9376).unwrap();
    let capture = a.capture("any").unwrap();
    assert_direct(&a, &b, 9376);
    assert!(capture.stop().unwrap().syn_retransmissions().is_empty());
    server.stop();
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
}

/// Where the kernel says that the listener on this port of a host belongs.
fn cgroup_of_listener(host: &Host, port: u16) -> String {
    let question = format!("ss --no-header --listening --tcp --cgroup sport = :{port}");
    let answer = host.output(&question).unwrap();
    let mut words = answer.split_whitespace();
    let cgroup = words.find_map(|word| word.strip_prefix("cgroup:"));
    cgroup.expect(&answer).to_owned()
}

/// The cgroup that this process is in.
fn own_cgroup() -> String {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let mut lines = text.lines();
    let own = lines.find_map(|line| line.strip_prefix("0::"));
    own.expect(&text).to_owned()
}

#[test]
fn sockets_of_a_process_are_in_its_hosts_cgroup_and_this_process_comes_back() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let pod = node.pod("a", 5).unwrap();
    let agent = node.host_network_pod("agent").unwrap();
    assert!(agent.cgroup().starts_with(node.cgroup()) && agent.netns() == node.netns());
    let home = own_cgroup();
    let below = |path: &str| format!("/lb-lab.{}/node-node-0{path}", lab.id());
    for (port, host, expected) in [
        (81, Host::clone(node), home.clone()),
        (82, node.process(), below("")),
        (83, agent.clone(), below("/podagent")),
        (84, pod.process(), below("/poda")),
    ] {
        let listen = || TcpListener::bind((host.v4(), port)).unwrap();
        let _listener = host.run(listen).unwrap();
        let cgroup = cgroup_of_listener(&host, port);
        assert!(cgroup.ends_with(&expected), "{host:?}: {cgroup}");
        assert_eq!(own_cgroup(), home);
    }
    // One within another, on its thread.
    let inner = || agent.run(own_cgroup).unwrap();
    let [inner, outer] = node.process().run(|| [inner(), own_cgroup()]).unwrap();
    assert!(inner.ends_with(&below("/podagent")), "{inner}");
    assert!(outer.ends_with(&below("")), "{outer}");
    assert_eq!(own_cgroup(), home);
    let process = node.process();
    let panics = || process.run(|| panic!("in the node's cgroup"));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(own_cgroup(), home);
}

#[test]
fn a_lab_that_is_removed_while_this_process_is_in_it_lets_the_process_go() {
    if !can_run() {
        return;
    }
    let home = own_cgroup();
    let lab = Lab::builder().build().unwrap();
    let process = lab.node(0).process();
    process.run(|| lab.remove().unwrap()).unwrap();
    assert_eq!(own_cgroup(), home);
    assert!(!process.cgroup().exists());
}
