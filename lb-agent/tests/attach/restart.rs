// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's end and its next start, under traffic.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::programs::TcAttachType;
use aya::programs::links::{FdLink, PinnedLink};
use lb_agent::datapath::DatapathConfig;

use crate::support::{
    Agent, Pod, filters, index_of, ip, on_a_node, reach, socket, tcx, wait_until,
};

const POD: &str = "10.244.0.5";
const GATEWAY: &str = "10.244.0.1";

/// Ids of a pinned link and of the program that it runs.
fn link(bpffs: &Path, device: &str, hook: &str) -> (u32, u32) {
    let path = bpffs.join(format!("links/{}-{hook}", index_of(device)));
    let info = FdLink::from(PinnedLink::from_pin(path).unwrap())
        .info()
        .unwrap();
    (info.id(), info.program_id())
}

#[test]
fn a_restart_replaces_the_programs_in_place_and_loses_no_packet() {
    on_a_node(|bpffs| {
        let pod = Pod::routed("pod0", POD, GATEWAY);
        let agent = Agent::start(DatapathConfig::new(bpffs));
        // Each ends by itself: the echo must outlive the last question.
        let done = Arc::new(AtomicBool::new(false));
        let unheard = Arc::new(AtomicBool::new(false));
        let echo = {
            let done = Arc::clone(&unheard);
            pod.run(move || {
                let echo = socket(POD, Duration::from_millis(100));
                let mut buffer = [0; 16];
                while !done.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                        echo.send_to(&buffer[..length], from).unwrap();
                    }
                }
            })
        };
        let node = reach(GATEWAY, POD);
        let mut buffer = [0; 16];
        wait_until("the echo", || {
            node.send(b"hello").is_ok() && node.recv(&mut buffer).is_ok()
        });
        let sender = {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                let mut lost = 0_u32;
                let mut sent = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    node.send(b"hello").unwrap();
                    sent += 1;
                    lost += u32::from(node.recv(&mut buffer).is_err());
                }
                (sent, lost)
            })
        };
        let before = ["ingress", "egress"].map(|hook| link(bpffs, "pod0", hook));
        agent.stop();
        assert_eq!(
            ["ingress", "egress"].map(|hook| link(bpffs, "pod0", hook)),
            before
        );
        assert_eq!(tcx("pod0", TcAttachType::Ingress), ["lb_tc_ingress"]);
        let agent = Agent::start(DatapathConfig::new(bpffs));
        let after = ["ingress", "egress"].map(|hook| link(bpffs, "pod0", hook));
        for (before, after) in before.into_iter().zip(after) {
            assert_eq!(before.0, after.0, "the link is the same");
            assert_ne!(before.1, after.1, "the program is the new agent's");
        }
        done.store(true, Ordering::Relaxed);
        let (sent, lost) = sender.join().unwrap();
        unheard.store(true, Ordering::Relaxed);
        echo.join().unwrap();
        assert!(sent > 100, "sent only {sent}");
        assert_eq!(lost, 0, "of {sent}");
        assert_eq!(agent.stop().repairs, 0);
    });
}

#[test]
fn a_restart_with_clsact_replaces_the_filters_and_moves_between_mechanisms() {
    on_a_node(|bpffs| {
        let _pod = Pod::routed("pod0", POD, GATEWAY);
        let config = |clsact_only| {
            let mut config = DatapathConfig::new(bpffs);
            config.clsact_only = clsact_only;
            config
        };
        let ours = |hook| filters("pod0", hook).matches("handle 0x6c62").count();
        for _ in 0..2 {
            Agent::start(config(true)).stop();
            assert_eq!((ours("ingress"), ours("egress")), (1, 1));
            assert!(tcx("pod0", TcAttachType::Ingress).is_empty());
        }
        Agent::start(config(false)).stop();
        assert_eq!((ours("ingress"), ours("egress")), (0, 0));
        assert_eq!(tcx("pod0", TcAttachType::Egress), ["lb_tc_egress"]);
        Agent::start(config(true)).stop();
        assert_eq!((ours("ingress"), ours("egress")), (1, 1));
        assert!(tcx("pod0", TcAttachType::Egress).is_empty());
    });
}

#[test]
fn links_of_devices_that_went_while_the_agent_was_down_are_removed() {
    on_a_node(|bpffs| {
        let _gone = Pod::routed("pod0", POD, GATEWAY);
        let _stays = Pod::routed("pod1", "10.244.0.6", GATEWAY);
        Agent::start(DatapathConfig::new(bpffs)).stop();
        let old = bpffs.join(format!("links/{}-ingress", index_of("pod0")));
        let excluded = bpffs.join(format!("links/{}-ingress", index_of("pod1")));
        assert!(old.exists() && excluded.exists());
        ip("link del pod0");
        let mut config = DatapathConfig::new(bpffs);
        config.patterns.exclude = vec!["pod1".to_owned()];
        let agent = Agent::start(config);
        assert!(!old.exists() && !excluded.exists());
        assert_eq!(agent.roles(), [""; 0]);
        // KERNEL: the end of a link takes effect a moment after its last reference has gone.
        wait_until("the end of the link", || {
            tcx("pod1", TcAttachType::Egress).is_empty()
        });
        agent.stop();
    });
}
