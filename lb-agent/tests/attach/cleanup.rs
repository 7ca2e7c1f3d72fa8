// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an agent has put into the kernel is taken away, and nothing else; flows can end before.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{LinkOrder, TcAttachType};
use lb_agent::datapath::{Cleanup, DatapathConfig, Drain, Living, Removal};

use crate::foreign::{DEVICE, POD, Pods, SERVICE, attach_clsact, attach_tcx, publish};
use crate::support::{Agent, Counter, Pod, filters, has_tcx, on_a_node, run, socket, tcx};

const OTHER: &str = "pod1";

fn remove(cleanup: Cleanup) -> Removal {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut removal = Removal::default();
    runtime
        .block_on(cleanup.remove(None, &mut removal))
        .unwrap();
    removal
}

/// Names of everything of one kind that was removed.
fn removed<'a>(removal: &'a Removal, what: &str) -> Vec<&'a str> {
    let things = removal.removed.iter().filter(|thing| thing.what == what);
    things.map(|thing| thing.name.as_str()).collect()
}

fn has_clsact(device: &str) -> bool {
    let shown = Command::new("tc")
        .args(["qdisc", "show", "dev", device])
        .output()
        .unwrap();
    String::from_utf8_lossy(&shown.stdout).contains("clsact")
}

#[test]
fn filters_go_with_the_qdisc_that_was_made_for_them_and_those_of_others_stay() {
    on_a_node(|bpffs| {
        let _pods = Pods::new();
        qdisc_add_clsact(DEVICE).unwrap();
        let [mut filter, mut link] =
            ["filter", "link"].map(|name| Counter::load(&bpffs.with_file_name("lb"), name));
        attach_clsact(&mut filter, TcAttachType::Egress, 5);
        let tcx_is_here = has_tcx();
        if tcx_is_here {
            attach_tcx(&mut link, TcAttachType::Ingress, LinkOrder::first());
        }
        let mut config = DatapathConfig::new(bpffs);
        config.clsact_only = true;
        let agent = Agent::start(config.clone());
        let refused = Cleanup::begin(bpffs).err().unwrap().to_string();
        let owner = format!("process {} (", std::process::id());
        assert!(refused.contains(&owner), "{refused}");
        assert!(Agent::try_start(config).is_err_and(|e| e.to_string() == refused));
        // As another container has it.
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (bpffs.parent().unwrap(), place.path());
        run(
            "mount",
            &format!("--bind {} {}", from.display(), to.display()),
        );
        let elsewhere = Cleanup::begin(&to.join("lb")).err().unwrap().to_string();
        assert!(elsewhere.contains(&owner), "{elsewhere}");
        run("umount", &to.display().to_string());
        agent.stop();
        assert!(has_clsact(OTHER) && filters(DEVICE, "ingress").contains("lb_tc"));

        let removal = remove(Cleanup::begin(bpffs).unwrap());
        assert_eq!(removal.left, []);
        let ours = ["pod0 ingress", "pod1 ingress", "pod0 egress", "pod1 egress"];
        assert_eq!(removed(&removal, "filter"), ours);
        assert_eq!(removed(&removal, "clsact qdisc"), [OTHER]);
        assert!(!has_clsact(OTHER) && has_clsact(DEVICE) && !bpffs.exists());
        assert!(!filters(DEVICE, "ingress").contains("lb_tc"));
        assert!(filters(DEVICE, "egress").contains("pref 5 "));
        assert_eq!(
            tcx(DEVICE, TcAttachType::Ingress).len(),
            usize::from(tcx_is_here)
        );
        let again = remove(Cleanup::begin(bpffs).unwrap());
        assert_eq!(again, Removal::default());
    });
}

#[test]
fn a_qdisc_that_others_use_by_now_stays() {
    on_a_node(|bpffs| {
        let _pod = Pod::routed(DEVICE, POD, "10.244.0.1");
        let mut config = DatapathConfig::new(bpffs);
        config.clsact_only = true;
        Agent::start(config).stop();
        let mut filter = Counter::load(bpffs, "filter");
        attach_clsact(&mut filter, TcAttachType::Ingress, 5);
        let removal = remove(Cleanup::begin(bpffs).unwrap());
        assert!(has_clsact(DEVICE) && filters(DEVICE, "ingress").contains("pref 5 "));
        let left: Vec<_> = removal.left.iter().map(|left| &*left.name).collect();
        assert_eq!((left, removal.left[0].failed), (vec![DEVICE], false));
    });
}

/// A socket of the client that is connected to the Service.
fn dial(pods: &Pods, port: u16) -> UdpSocket {
    let dial = move || {
        let socket = UdpSocket::bind((POD, port)).unwrap();
        let patience = Duration::from_millis(300);
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.connect(SocketAddr::from(SERVICE)).unwrap();
        socket
    };
    pods.client.run(dial).join().unwrap()
}

/// Whether a datagram comes to the backend and its answer back.
fn is_served(client: &UdpSocket, backend: &UdpSocket) -> bool {
    let mut buffer = [0; 16];
    // Where nobody serves the address, the node says so.
    if client.send(b"hello").is_err() {
        return false;
    }
    let Ok((length, from)) = backend.recv_from(&mut buffer) else {
        return false;
    };
    backend.send_to(&buffer[..length], from).unwrap();
    client.recv(&mut buffer).is_ok()
}

fn drain(bpffs: &Path) -> (Cleanup, Drain) {
    let cleanup = Cleanup::begin(bpffs).unwrap();
    let drain = Drain::begin(&cleanup).unwrap().unwrap();
    (cleanup, drain)
}

#[test]
fn a_drain_begins_no_flow_and_an_agent_after_it_does_again() {
    on_a_node(|bpffs| {
        let nothing = Cleanup::begin(bpffs).unwrap();
        assert!(Drain::begin(&nothing).unwrap().is_none());
        let pods = Pods::new();
        let bind = || socket("10.244.0.6", Duration::from_millis(300));
        let backend = pods.backend.run(bind).join().unwrap();
        let agent = Agent::start(DatapathConfig::new(bpffs));
        publish(bpffs);
        let old = dial(&pods, 40_001);
        assert!(is_served(&old, &backend));
        agent.stop();

        let (cleanup, draining) = drain(bpffs);
        let one = Living {
            udp: 1,
            ..Living::default()
        };
        assert_eq!(draining.count().unwrap(), one);
        let new = dial(&pods, 40_002);
        assert!(!is_served(&new, &backend), "a new flow");
        assert!(is_served(&old, &backend), "an old flow");
        // Given up: nothing changes.
        drop((draining, cleanup));
        assert!(!is_served(&new, &backend), "a new flow, later");
        assert!(is_served(&old, &backend), "an old flow, later");

        let agent = Agent::start(DatapathConfig::new(bpffs));
        let newest = dial(&pods, 40_003);
        assert!(is_served(&newest, &backend), "by an agent");
        agent.stop();
        let (cleanup, draining) = drain(bpffs);
        assert_eq!(draining.count().unwrap().udp, 2);
        drop(draining);
        assert_eq!(remove(cleanup).left, []);
        assert!(!is_served(&old, &backend), "nothing is there any more");
    });
}
