// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the metrics say of dials, packets and bytes through Services, while flows live and after they
//! end.
//!
//! **Invariant:** every look at the metrics is compared with the one before: no sum may fall.
//! Read next: `lb-agent/src/datapath/traffic.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::Reason;
use lb_lab::{Host, HttpClient, Lab, LabError, Node, UdpClient};

use crate::cluster::{Cluster, TARGET, Vip, get, own, pause};
use crate::common::can_run;
use crate::inspect;

/// Where an agent serves its metrics.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
/// Flows of UDP are over soon, so that all of them are swept within the test.
const ARGUMENTS: [&str; 2] = [
    "--conntrack-udp-timeout-stream=8s",
    "--conntrack-udp-timeout=8s",
];
/// Time for the longest rest between two passes of the sweeper, and for the pass.
const SUMMED_WITHIN: Duration = Duration::from_secs(30);
/// The same, with the time that ended flows keep their entries.
const SWEPT_WITHIN: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(250);

const UPLOAD: u64 = 1_000_000;
const DOWNLOAD: u64 = 3_000_000;
const QUESTIONS: u64 = 40;
const QUESTION: u64 = 700;

/// All counters by their names and labels.
struct Meter<'a> {
    node: &'a Node,
    last: BTreeMap<String, u64>,
}

/// The counters of ours that an agent shows now.
pub(crate) fn counters(node: &Node) -> BTreeMap<String, u64> {
    let reply = node.http_get(METRICS, "/metrics").unwrap();
    let lines = reply.text().lines();
    let is_total = |about: &str| about.split('{').next().unwrap().ends_with("_total");
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(about, _)| about.starts_with("lb_") && is_total(about))
        .map(|(about, value)| (about.to_owned(), value.parse().unwrap()))
        .collect()
}

impl<'a> Meter<'a> {
    const fn new(node: &'a Node) -> Self {
        let last = BTreeMap::new();
        Self { node, last }
    }

    /// Looks again.
    fn look(&mut self) {
        let now = counters(self.node);
        for (about, before) in &self.last {
            let now = now.get(about);
            assert!(now >= Some(before), "{about} {before}, then {now:?}");
        }
        self.last = now;
    }

    fn look_until(&mut self, what: &str, within: Duration, holds: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        self.look();
        while !holds(self) {
            assert!(begin.elapsed() < within, "{what}: {:#?}", self.last);
            pause(LOOK);
            self.look();
        }
    }

    /// The dials of a Service's port that were `opened` or `rejected`, which have a line before the
    /// first one.
    fn dials(&self, what: &str, (name, port): (&str, &str)) -> u64 {
        let labels = format!("{{namespace=\"default\",name=\"{name}\",port=\"{port}\"}}");
        self.last[&format!("lb_service_{what}_total{labels}")]
    }

    /// How often a reason has occurred, which has a line before the first time.
    fn reason(&self, reason: Reason) -> u64 {
        self.last[&format!("lb_reasons_total{{reason=\"{}\"}}", reason.name())]
    }

    /// The number for a Service's port and a direction.
    fn service(&self, what: &str, (name, port): (&str, &str), direction: &str) -> u64 {
        let about = format!(
            "lb_service_{what}_total{{namespace=\"default\",name=\"{name}\",port=\"{port}\",\
             direction=\"{direction}\"}}"
        );
        *self.last.get(&about).unwrap_or(&0)
    }

    /// The numbers of all backends of a Service's port, by backend and direction.
    fn backends(&self, what: &str, (name, port): (&str, &str)) -> BTreeMap<String, u64> {
        let about = format!(
            "lb_backend_{what}_total{{namespace=\"default\",name=\"{name}\",port=\"{port}\",backend="
        );
        let found = self.last.iter().filter_map(|(key, value)| {
            let rest = key.strip_prefix(&about)?;
            Some((rest.replace(['"', '}'], ""), *value))
        });
        found.collect()
    }
}

/// Transfers over TCP and questions over UDP, at both addresses, each on a flow of its own.
fn talk(client: &Host, vip: &Vip) {
    for remote in vip.remotes() {
        let transfer = || {
            let mut connection = HttpClient::new(remote).connect().unwrap();
            connection.upload(UPLOAD).unwrap();
            connection.download(DOWNLOAD).unwrap();
        };
        client.run(transfer).unwrap();
        let ask = || {
            let socket = UdpClient::bind(remote, None).unwrap();
            let question = "x".repeat(usize::try_from(QUESTION).unwrap());
            for _ in 0..QUESTIONS {
                assert_eq!(socket.ask(&question).unwrap(), question);
            }
        };
        client.run(ask).unwrap();
    }
}

const fn tcp(service: &str) -> (&str, &str) {
    (service, "tcp-80")
}

const fn udp(service: &str) -> (&str, &str) {
    (service, "udp-80")
}

/// Headers are some hundredths of a transfer; a packet that counted twice would double it.
fn assert_about(transferred: u64, counted: u64, what: &str) {
    let most = transferred + transferred / 10;
    assert!((transferred..most).contains(&counted), "{what}: {counted}");
}

#[test]
fn packets_and_bytes_are_counted_once_and_stay_after_their_flows() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vips = [Vip::new("near", 1), Vip::new("far", 2), Vip::new("own", 3)];
    let backends = [&near, &far, &near];
    for (vip, pod) in vips.iter().zip(backends) {
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents_with(&ARGUMENTS);
    let mut meter = Meter::new(cluster.node(0));
    meter.look();
    // The last one reaches itself, which is masqueraded: two pairs of entries for each flow.
    for (vip, client) in vips.iter().zip([&client, &client, &near]) {
        talk(client, vip);
    }
    meter.look_until("all flows", SUMMED_WITHIN, |meter| {
        ["near", "far", "own"].into_iter().all(|name| {
            meter.service("bytes", tcp(name), "reply") >= 2 * DOWNLOAD
                && meter.service("packets", udp(name), "reply") >= 2 * QUESTIONS
        })
    });
    for (name, pod) in ["near", "far", "own"].into_iter().zip(backends) {
        let (up, down) = (
            meter.service("bytes", tcp(name), "request"),
            meter.service("bytes", tcp(name), "reply"),
        );
        assert_about(2 * UPLOAD, up, name);
        assert_about(2 * DOWNLOAD, down, name);
        let questions = meter.service("packets", udp(name), "request");
        assert_eq!(questions, 2 * QUESTIONS, "{name}");
        let answers = meter.service("packets", udp(name), "reply");
        assert_eq!(answers, 2 * QUESTIONS, "{name}");
        let bytes = meter.service("bytes", udp(name), "reply");
        assert_eq!(bytes, QUESTIONS * (QUESTION + 28 + QUESTION + 48), "{name}");
        let expected: BTreeMap<_, _> = vips[0]
            .remotes()
            .map(|like| (own(pod, like, TARGET).to_string(), 1))
            .into();
        assert_eq!(meter.backends("established", tcp(name)), expected);
        assert_eq!(meter.backends("established", udp(name)), expected);
    }
    let counted = meter.last.clone();
    // Ports of masqueraded flows stay a minute longer, in entries that nobody sums.
    let is_summed =
        |entry: &String| entry.contains("\"action\":0") || entry.contains("\"action\":1");
    let swept = |node: &Node| {
        ["CONNS_V4", "CONNS_V6"]
            .iter()
            .all(|map| !inspect::entries(node, map).iter().any(is_summed))
    };
    assert!(!swept(meter.node), "flows stay for a while");
    meter.look_until("the end of all flows", SWEPT_WITHIN, |meter| {
        swept(meter.node)
    });
    meter.look();
    for (about, before) in counted {
        let most = before + before / 100 + 1000;
        assert!(
            meter.last[&about] <= most,
            "{about} {before}: {}",
            meter.last[&about]
        );
    }
}

/// Asserts that a connection and a datagram are refused.
fn assert_refused(client: &Host, remote: SocketAddr) {
    let connect = || HttpClient::new(remote).connect().map(drop);
    let tcp = client.run(connect).unwrap();
    let udp = client.udp_ask(remote, "hostname").map(drop);
    for result in [tcp, udp] {
        let kind = match &result {
            Err(LabError::Io { source, .. }) => Some(source.kind()),
            _ => None,
        };
        assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{result:?}");
    }
}

#[test]
fn dials_are_counted_by_service_and_refusals_by_reason_too() {
    const SERVED: u16 = 5;
    const REFUSED: u64 = 3;
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::of_nodes(Lab::builder(), 1);
    let (client, pod) = (cluster.pod(0, "client"), cluster.web(0, "web"));
    let (web, empty) = (Vip::new("web", 1), Vip::new("empty", 2));
    cluster.publish(&web, &[&pod]);
    cluster.publish(&empty, &[]);
    cluster.start_agents();
    let mut meter = Meter::new(cluster.node(0));
    // Nothing yet, then after IPv4, then after IPv6 as well.
    for families in 0..=2 {
        if families > 0 {
            let at = families - 1;
            for port in 0..SERVED {
                assert_eq!(get(&client, web.remotes()[at], "/").text(), "web");
                // A port of its own for each, or two datagrams may be one flow.
                let ask = || UdpClient::bind(web.remotes()[at], Some(40_000 + port))?.ask("?");
                client.run(ask).unwrap().unwrap();
            }
            for _ in 0..REFUSED {
                assert_refused(&client, empty.remotes()[at]);
            }
        }
        meter.look();
        let families = u64::try_from(families).unwrap();
        for (web, empty) in [(tcp("web"), tcp("empty")), (udp("web"), udp("empty"))] {
            assert_eq!(meter.dials("opened", web), families * u64::from(SERVED));
            assert_eq!(meter.dials("rejected", web), 0);
            assert_eq!(meter.dials("opened", empty), 0);
            assert_eq!(meter.dials("rejected", empty), families * REFUSED);
        }
        // The bridge may have had a redirect dropped, so of the others only the map knows.
        assert_eq!(meter.reason(Reason::NoBackend), families * REFUSED * 2);
        for reason in Reason::ALL {
            let counted = inspect::reason(cluster.node(0), *reason);
            assert_eq!(meter.reason(*reason), counted, "{reason:?}");
        }
    }
}
