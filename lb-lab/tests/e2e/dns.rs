// SPDX-License-Identifier: MIT OR Apache-2.0
//! A real DNS server behind the cluster's DNS address: resolve a name, then dial what it says.
//!
//! `knotd` serves the zone `cluster.local` as `CoreDNS` would: Service names lead to cluster
//! addresses, names of headless Services to pods. **Invariant:** `kdig` asks once, without a
//! second try. Read next: `fixed_port.rs`, for clients that keep their port.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lb_lab::{Builder, Host, Pod, Service};

use crate::cluster::{Cluster, TARGET, Vip, get, in_default_and_routed, pause};
use crate::inspect;
use crate::load::assert_no_retransmission;

/// Where the DNS server listens in its pod.
const PORT: u16 = 53;
/// How long the server may take to start.
const START_MAX: Duration = Duration::from_secs(10);

/// A running `knotd`; it ends when dropped.
pub(crate) struct Knot(Child);

impl Drop for Knot {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One name of the zone with its addresses, as lines of a zone file.
pub(crate) fn records(name: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::new();
    for address in addresses {
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        // Writing to a String has no error case.
        writeln!(text, "{name} {kind} {address}").unwrap_or_default();
    }
    text
}

/// Starts the server in a pod and waits until it answers there.
pub(crate) fn serve_zone(pod: &Pod, cluster: &Cluster, records: &str) -> Knot {
    let dir = cluster.lab.dir().join(format!("knot-{}", pod.name()));
    fs::create_dir(&dir).unwrap();
    let (path, [v4, v6]) = (dir.display(), pod.addresses());
    let config = format!(
        "server:\n  rundir: {path}\n  listen: [ {v4}@{PORT}, {v6}@{PORT} ]\n\
         database:\n  storage: {path}\nlog:\n  - target: stderr\n    any: info\n\
         zone:\n  - domain: cluster.local\n    storage: {path}\n    file: zone\n"
    );
    let zone = format!(
        "$ORIGIN cluster.local.\n$TTL 5\n@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n\
         @ NS ns.dns\n{records}"
    );
    fs::write(dir.join("knot.conf"), config).unwrap();
    fs::write(dir.join("zone"), zone).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = pod.command("knotd").unwrap();
    command.arg("--config").arg(dir.join("knot.conf"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let knot = Knot(command.spawn().unwrap());
    let until = Instant::now() + START_MAX;
    for address in pod.addresses() {
        let dial = || TcpStream::connect(SocketAddr::new(address, PORT)).is_ok();
        while !pod.run(dial).unwrap() {
            let log = fs::read_to_string(dir.join("log")).unwrap();
            assert!(Instant::now() < until, "knotd does not listen:\n{log}");
            pause(Duration::from_millis(20));
        }
    }
    knot
}

/// What the server at `dns` says about a name, sorted; an answer must come at the first try.
fn resolve(client: &Host, dns: SocketAddr, options: &str, name: &str, kind: &str) -> Vec<IpAddr> {
    let question = format!(
        "kdig @{} -p {} +noretry +timeout=2 {options} {name}.cluster.local {kind}",
        dns.ip(),
        dns.port()
    );
    let answer = client.output(&question).unwrap();
    assert!(answer.contains("status: NOERROR"), "{question}: {answer}");
    let from = format!("From {}@{}", dns.ip(), dns.port());
    assert!(answer.contains(&from), "{question}: {answer}");
    let lines = answer.lines().filter(|line| !line.starts_with(';'));
    let fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let records = fields.filter(|fields| fields.get(3) == Some(&kind));
    let mut addresses: Vec<_> = records.map(|fields| fields[4].parse().unwrap()).collect();
    addresses.sort();
    addresses
}

/// Resolves both families by this way.
pub(crate) fn resolve_both(
    client: &Host,
    dns: SocketAddr,
    options: &str,
    name: &str,
) -> Vec<IpAddr> {
    let mut addresses = resolve(client, dns, options, name, "A");
    addresses.extend(resolve(client, dns, options, name, "AAAA"));
    addresses
}

fn sorted(pods: &[&Pod]) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = pods.iter().flat_map(|pod| pod.addresses()).collect();
    // IPv4 addresses come before IPv6 ones.
    addresses.sort();
    addresses
}

/// The cluster's DNS: port 53 over TCP and UDP.
pub(crate) fn kube_dns() -> Vip {
    let mut vip = Vip::new("kube-dns", 10);
    let addresses = vip.remotes().map(|remote| remote.ip());
    vip.service = Service::new("kube-dns", &addresses)
        .namespace("kube-system")
        .udp(53, PORT)
        .tcp(53, PORT);
    vip.v4.set_port(53);
    vip.v6.set_port(53);
    vip
}

/// A headless Service and its slices, marked as the controller marks them.
fn publish_headless(cluster: &Cluster, name: &str, pods: &[&Pod]) {
    let headless = Service::new(name, &[])
        .tcp(TARGET, TARGET)
        .spec("clusterIP: None")
        .spec("clusterIPs: [None]")
        .spec("ipFamilies: [IPv4, IPv6]");
    cluster.manifests.service(&headless).unwrap();
    let any = ["10.0.1.99", "fd00:10:0:1::99"].map(|text| text.parse().unwrap());
    let like = Service::new(name, &any).tcp(TARGET, TARGET);
    let endpoints: Vec<_> = pods.iter().map(|pod| (*pod).into()).collect();
    let slices = like.endpoints_to_yaml(&endpoints).replace(
        "  labels:\n",
        "  labels:\n    service.kubernetes.io/headless: \"\"\n",
    );
    let file = format!("endpoints-default-{name}.yaml");
    cluster.manifests.write(&file, &slices).unwrap();
}

#[test]
fn names_are_resolved_through_the_dns_service_and_what_they_say_is_reached() {
    in_default_and_routed(resolve_and_dial);
}

fn resolve_and_dial(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let clients = [cluster.pod(0, "client-0"), cluster.pod(1, "client-1")];
    let servers = [cluster.pod(0, "dns-0"), cluster.pod(1, "dns-1")];
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let (web, dns) = (Vip::new("web", 1), kube_dns());
    cluster.publish(&web, &[&near]);
    cluster.publish(&dns, &[&servers[0], &servers[1]]);
    publish_headless(&cluster, "db", &[&near, &far]);
    let many: Vec<IpAddr> = (1..=100)
        .map(|host| IpAddr::from([10, 9, 8, host]))
        .collect();
    let zone = [
        records("ns.dns", &dns.remotes().map(|remote| remote.ip())),
        records("web.default.svc", &web.remotes().map(|remote| remote.ip())),
        records("db.default.svc", &sorted(&[&near, &far])),
        records("many.default.svc", &many),
    ]
    .concat();
    let knots = servers
        .each_ref()
        .map(|pod| serve_zone(pod, &cluster, &zone));
    cluster.start_agents();
    let entries = inspect::entries(cluster.node(0), "FRONTENDS_V4");
    assert_eq!(
        entries.len(),
        4,
        "web and DNS, nothing headless: {entries:#?}"
    );
    for client in &clients {
        let capture = client.capture("eth0").unwrap();
        for server in dns.remotes() {
            for options in ["+notcp", "+tcp"] {
                // Two questions each, so that both servers have their turns.
                let addresses = resolve_both(client, server, options, "web.default.svc");
                assert_eq!(addresses, web.remotes().map(|remote| remote.ip()));
                for address in addresses {
                    let remote = SocketAddr::new(address, 80);
                    assert_eq!(get(client, remote, "/").text(), "near");
                }
                let addresses = resolve_both(client, server, options, "db.default.svc");
                assert_eq!(addresses, sorted(&[&near, &far]));
                for address in addresses {
                    let remote = SocketAddr::new(address, TARGET);
                    let name = get(client, remote, "/").text().to_owned();
                    let pod = [&near, &far].into_iter().find(|pod| pod.name() == name);
                    assert!(pod.unwrap().addresses().contains(&address), "{remote}");
                }
            }
            // An answer too large for UDP: the client is told so and comes again over TCP.
            let addresses = resolve(client, server, "+bufsize=512", "many.default.svc", "A");
            assert_eq!(addresses, many);
        }
        assert_no_retransmission(&capture.stop().unwrap());
    }
    // One server goes; every question finds the other at the first try.
    cluster.set_endpoints(&dns, &[&servers[1]]);
    let [gone, _stays] = knots;
    drop(gone);
    for client in &clients {
        for server in dns.remotes() {
            for options in ["+notcp", "+tcp"] {
                for _ in 0..2 {
                    let addresses = resolve_both(client, server, options, "web.default.svc");
                    assert_eq!(addresses, web.remotes().map(|remote| remote.ip()));
                }
            }
        }
    }
}
