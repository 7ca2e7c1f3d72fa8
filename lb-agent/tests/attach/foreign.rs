// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of others on the same device, before and after ours, with TCX and with clsact.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, TcAttachType};
use lb_agent::datapath::{DatapathConfig, KernelTables};
use lb_agent::model::tables::{Op, TableOp};
use lb_agent::tables::Tables as _;
use lb_common::abi::{Backend, BackendState, Frontend, FrontendKey, SlotKey};

use crate::support::{Agent, Counter, Pod, filters, on_a_node, reach, socket, tcx, wait_until};

const PACKETS: u64 = 200;
pub(crate) const DEVICE: &str = "pod0";
pub(crate) const POD: &str = "10.244.0.5";
const GATEWAY: &str = "10.244.0.1";
const BACKEND: [u8; 4] = [10, 244, 0, 6];
pub(crate) const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 1], 80);

/// A pod under [`DEVICE`], whose packets are counted, and one that is a backend.
pub(crate) struct Pods {
    pub(crate) client: Pod,
    pub(crate) backend: Pod,
}

impl Pods {
    pub(crate) fn new() -> Self {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        Self {
            client: Pod::routed(DEVICE, POD, GATEWAY),
            backend: Pod::routed("pod1", "10.244.0.6", GATEWAY),
        }
    }
}

/// Writes a Service over UDP whose only backend is the other pod.
pub(crate) fn publish(bpffs: &Path) {
    let (address, port) = SERVICE;
    let backend = Backend::new(1, 1, BACKEND, 7777, BackendState::Active);
    let frontend = Frontend {
        service: 1,
        cluster_count: 1,
        ..Frontend::default()
    };
    let mut tables = KernelTables::open(bpffs).unwrap();
    for op in [
        Op::V4(TableOp::PutBackend(1, backend)),
        Op::PutSlot(SlotKey::cluster(1, 0), 1),
        Op::V4(TableOp::PutFrontend(
            FrontendKey::new(address, port, 17),
            frontend,
        )),
    ] {
        tables.apply(&op).unwrap();
    }
}

/// Sends packets straight to the pod and back, which ours only passes.
fn direct(pods: &Pods) {
    let echo = pods.client.run(|| {
        let echo = socket(POD, Duration::from_secs(10));
        let mut buffer = [0; 16];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            if buffer.starts_with(b"end") {
                break;
            }
            echo.send_to(&buffer[..length], from).unwrap();
        }
    });
    let node = reach(GATEWAY, POD);
    let mut buffer = [0; 16];
    for _ in 0..PACKETS {
        node.send(b"hello").unwrap();
        node.recv(&mut buffer).unwrap();
    }
    node.send(b"end").unwrap();
    echo.join().unwrap();
}

/// Sends packets from the pod to the Service and back, each of which ours rewrites.
fn by_service(pods: &Pods) {
    let bind = |pod: &Pod, address: &'static str| {
        let bind = move || socket(address, Duration::from_secs(1));
        pod.run(bind).join().unwrap()
    };
    let (client, backend) = (bind(&pods.client, POD), bind(&pods.backend, "10.244.0.6"));
    // Connected: it takes answers of the Service only.
    client.connect(SocketAddr::from(SERVICE)).unwrap();
    let mut buffer = [0; 16];
    for _ in 0..PACKETS {
        client.send(b"hello").unwrap();
        let (length, from) = backend.recv_from(&mut buffer).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        backend.send_to(&buffer[..length], from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 5);
    }
}

/// Every counter must see all that its hook had, whether ours passes or rewrites it.
fn exchange(pods: &Pods, bpffs: &Path, ingress: &[&Counter], egress: &[&Counter]) {
    let now = |counters: &[&Counter]| counters.iter().map(|c| c.count()).collect::<Vec<_>>();
    publish(bpffs);
    for (what, send) in [("direct", direct as fn(&Pods)), ("by service", by_service)] {
        let (ingress_before, egress_before) = (now(ingress), now(egress));
        send(pods);
        for (counters, before) in [(ingress, ingress_before), (egress, egress_before)] {
            let seen: Vec<_> = now(counters)
                .into_iter()
                .zip(before)
                .map(|(now, before)| now - before)
                .collect();
            assert!(seen[0] >= PACKETS, "{what}: {seen:?}");
            assert!(
                seen.iter().all(|count| *count == seen[0]),
                "{what}: {seen:?}"
            );
        }
    }
}

pub(crate) fn attach_tcx(counter: &mut Counter, hook: TcAttachType, order: LinkOrder) {
    counter
        .program
        .attach_with_options(DEVICE, hook, TcAttachOptions::TcxOrder(order))
        .unwrap();
}

pub(crate) fn attach_clsact(counter: &mut Counter, hook: TcAttachType, priority: u16) {
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        ..NlOptions::default()
    });
    counter
        .program
        .attach_with_options(DEVICE, hook, options)
        .unwrap();
}

fn counters(bpffs: &Path) -> [Counter; 4] {
    ["in_before", "in_after", "out_before", "out_after"].map(|name| Counter::load(bpffs, name))
}

#[test]
fn foreign_tcx_programs_before_and_after_ours_see_every_packet() {
    on_a_node(|bpffs| {
        let pods = Pods::new();
        let agent = Agent::start(DatapathConfig::new(bpffs));
        assert_eq!(agent.roles(), ["pod0=pod", "pod1=pod"]);
        let [mut in_before, mut in_after, mut out_before, mut out_after] = counters(bpffs);
        attach_tcx(&mut in_before, TcAttachType::Ingress, LinkOrder::first());
        attach_tcx(&mut in_after, TcAttachType::Ingress, LinkOrder::last());
        attach_tcx(&mut out_before, TcAttachType::Egress, LinkOrder::first());
        attach_tcx(&mut out_after, TcAttachType::Egress, LinkOrder::last());
        for (hook, ours) in [
            (TcAttachType::Ingress, "lb_tc_ingress"),
            (TcAttachType::Egress, "lb_tc_egress"),
        ] {
            assert_eq!(tcx(DEVICE, hook), ["", ours, ""]);
        }
        exchange(
            &pods,
            bpffs,
            &[&in_before, &in_after],
            &[&out_before, &out_after],
        );
        agent.stop();
    });
}

#[test]
fn ours_is_first_at_ingress_and_last_at_egress_among_tcx_programs_that_were_there_before() {
    on_a_node(|bpffs| {
        let _pod = Pod::routed(DEVICE, POD, GATEWAY);
        std::fs::create_dir(bpffs).unwrap();
        let [mut ingress, _, mut egress, _] = counters(bpffs);
        attach_tcx(&mut ingress, TcAttachType::Ingress, LinkOrder::first());
        attach_tcx(&mut egress, TcAttachType::Egress, LinkOrder::last());
        let agent = Agent::start(DatapathConfig::new(bpffs));
        assert_eq!(tcx(DEVICE, TcAttachType::Ingress), ["lb_tc_ingress", ""]);
        assert_eq!(tcx(DEVICE, TcAttachType::Egress), ["", "lb_tc_egress"]);
        agent.stop();
    });
}

#[test]
fn foreign_clsact_filters_see_every_packet_and_ours_moves_behind_the_one_at_egress() {
    on_a_node(|bpffs| {
        let pods = Pods::new();
        let agent = Agent::start(DatapathConfig::new(bpffs));
        assert_eq!(tcx(DEVICE, TcAttachType::Egress), ["lb_tc_egress"]);
        let [mut in_before, mut in_after, mut out_before, mut out_after] = counters(bpffs);
        qdisc_add_clsact(DEVICE).unwrap();
        attach_tcx(&mut in_before, TcAttachType::Ingress, LinkOrder::first());
        attach_clsact(&mut in_after, TcAttachType::Ingress, 5);
        attach_tcx(&mut out_before, TcAttachType::Egress, LinkOrder::last());
        attach_clsact(&mut out_after, TcAttachType::Egress, 5);
        wait_until("ours to leave TCX at egress", || {
            tcx(DEVICE, TcAttachType::Egress) == [""]
        });
        let shown = filters(DEVICE, "egress");
        assert!(
            shown.contains("pref 65535") && shown.contains("lb_tc_egress"),
            "{shown}"
        );
        assert_eq!(tcx(DEVICE, TcAttachType::Ingress), ["", "lb_tc_ingress"]);
        exchange(
            &pods,
            bpffs,
            &[&in_before, &in_after],
            &[&out_before, &out_after],
        );
        // Its filters go with the program, and ours returns to TCX.
        drop(out_after);
        wait_until("ours to return to TCX", || {
            tcx(DEVICE, TcAttachType::Egress).contains(&"lb_tc_egress".to_owned())
                && !filters(DEVICE, "egress").contains("lb_tc_egress")
        });
        let ended = agent.stop();
        assert_eq!(ended.repairs, 0, "moving is no repair");
    });
}

#[test]
fn without_tcx_foreign_filters_before_and_after_ours_see_every_packet() {
    on_a_node(|bpffs| {
        let pods = Pods::new();
        let mut config = DatapathConfig::new(bpffs);
        config.clsact_only = true;
        let agent = Agent::start(config);
        let [mut in_before, mut in_after, mut out_before, mut out_after] = counters(bpffs);
        attach_clsact(&mut in_before, TcAttachType::Ingress, 1);
        attach_clsact(&mut in_after, TcAttachType::Ingress, 2);
        attach_clsact(&mut out_before, TcAttachType::Egress, 2);
        attach_clsact(&mut out_after, TcAttachType::Egress, u16::MAX);
        for (hook, ours) in [("ingress", "lb_tc_ingress"), ("egress", "lb_tc_egress")] {
            let shown = filters(DEVICE, hook);
            assert!(shown.contains(ours), "{shown}");
        }
        assert!(tcx(DEVICE, TcAttachType::Ingress).is_empty());
        exchange(
            &pods,
            bpffs,
            &[&in_before, &in_after],
            &[&out_before, &out_after],
        );
        agent.stop();
    });
}
