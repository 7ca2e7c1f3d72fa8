// SPDX-License-Identifier: MIT OR Apache-2.0
//! Growth that is stopped half way: by a device that refuses, and by an agent that ends.
//!
//! **Invariant:** the next agent finds every entry, whatever the last one was about to do.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use lb_agent::model::tables::{Op, TableContent, TableOp};
use lb_common::abi::{FrontendKey, SlotKey, names, proto};

use crate::filling::{Node, Traffic, client, pinned, pods, programs_of, small, uses, writes};
use crate::support::{index_of, on_a_node};

/// Something else in the place of a pin, until it is dropped.
struct Obstacle {
    path: PathBuf,
    aside: PathBuf,
}

impl Obstacle {
    fn at(path: PathBuf) -> Self {
        let aside = path.with_file_name("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        Self { path, aside }
    }

    /// Keeps the program at the device's ingress from being replaced.
    fn at_device(bpffs: &Path, device: &str) -> Self {
        Self::at(bpffs.join(format!("links/{}-ingress", index_of(device))))
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.path).unwrap();
        std::fs::rename(&self.aside, &self.path).unwrap();
    }
}

/// A growth of `BACKENDS_V4` that goes on until the device refuses its new program.
fn stuck_at(bpffs: &Path, device: &str, node: &mut Node) -> (Obstacle, u32) {
    let (n, error) = node.fill(2);
    assert_eq!(error.full_map(), Some(names::BACKENDS_V4));
    let obstacle = Obstacle::at_device(bpffs, device);
    let before = programs_of("pod0");
    node.relieve(&error);
    node.run_until("new programs on the first device", || {
        programs_of("pod0").iter().all(|id| !before.contains(id))
    });
    (obstacle, n)
}

/// Takes the Service `old` away and puts `new` in its room, except for the family of no traffic.
fn exchange(node: &mut Node, old: u32, new: u32) {
    let [backend_v4, _, slot, _, frontend, _] = writes(new)[..] else {
        unreachable!();
    };
    let Op::V4(TableOp::PutFrontend(key, _)) = writes(old)[4] else {
        unreachable!();
    };
    for op in [
        Op::V4(TableOp::DeleteFrontend(key)),
        Op::DeleteSlot(SlotKey::cluster(old, 0)),
        Op::V4(TableOp::DeleteBackend(old)),
        backend_v4,
        slot,
        frontend,
    ] {
        node.write(&op).unwrap();
    }
}

#[test]
fn writes_reach_the_programs_of_every_device_until_the_last_one_is_replaced() {
    on_a_node(|bpffs| {
        let (first, backend) = pods();
        let second = client("pod2", "10.244.0.7");
        let mut node = Node::start(&small(bpffs), TableContent::default());
        node.publish(1);
        let old_map = pinned(bpffs, names::BACKENDS_V4).0;
        let (obstacle, n) = stuck_at(bpffs, "pod2", &mut node);
        node.run_until("a new program at the backend's device", || {
            !uses("pod1", old_map)
        });
        assert!(!uses("pod0", old_map));
        assert!(uses("pod2", old_map), "it was kept from being replaced");
        // One that comes meanwhile has the new programs.
        let third = client("pod3", "10.244.0.8");
        node.run_until("programs on the new device", || {
            programs_of("pod3").len() == 2
        });
        assert!(!uses("pod3", old_map));
        exchange(&mut node, 2, n);
        exchange(&mut node, 3, 2);
        let traffic = Traffic::start(&[&first, &second, &third], &backend);
        traffic.services.store(2, Ordering::Relaxed);
        node.run_for(Duration::from_millis(300));
        // The old one decides what has room while programs still read it.
        let error = node.write(&writes(n + 1)[0]).unwrap_err();
        assert_eq!(error.full_map(), Some(names::BACKENDS_V4));
        assert!(!node.has_grown());
        assert_eq!(pinned(bpffs, names::BACKENDS_V4), (old_map, 64));
        drop(obstacle);
        node.wait_for_growth();
        node.run_for(Duration::from_millis(100));
        traffic.end();
        assert_eq!(pinned(bpffs, names::BACKENDS_V4).1, 128);
        for device in ["pod0", "pod1", "pod2", "pod3"] {
            assert!(uses(device, pinned(bpffs, names::BACKENDS_V4).0));
        }
        node.check();
        assert_eq!(node.datapath.repairs(), 0);
        node.end();
    });
}

#[test]
fn a_device_that_goes_does_not_hold_the_growth_up() {
    on_a_node(|bpffs| {
        let _pods = pods();
        let _goes = client("pod2", "10.244.0.7");
        let mut node = Node::start(&small(bpffs), TableContent::default());
        node.publish(1);
        let (obstacle, _) = stuck_at(bpffs, "pod2", &mut node);
        crate::support::ip("link del pod2");
        drop(obstacle);
        node.wait_for_growth();
        node.check();
        node.end();
    });
}

#[test]
fn an_agent_that_ends_while_programs_are_replaced_leaves_every_entry() {
    on_a_node(|bpffs| {
        let (first, backend) = pods();
        let second = client("pod2", "10.244.0.7");
        let mut node = Node::start(&small(bpffs), TableContent::default());
        node.publish(1);
        let (obstacle, n) = stuck_at(bpffs, "pod2", &mut node);
        exchange(&mut node, 2, n);
        exchange(&mut node, 3, 2);
        let traffic = Traffic::start(&[&first, &second], &backend);
        traffic.services.store(2, Ordering::Relaxed);
        let wanted = node.end();
        assert!(bpffs.join("next").join(names::BACKENDS_V4).exists());
        drop(obstacle);
        let mut node = Node::start(&small(bpffs), wanted);
        assert!(!bpffs.join("next").exists());
        let map = pinned(bpffs, names::BACKENDS_V4);
        assert_eq!(map.1, 64);
        for device in ["pod0", "pod1", "pod2"] {
            assert!(uses(device, map.0), "{device}");
        }
        node.publish(n + 1);
        assert_eq!(pinned(bpffs, names::BACKENDS_V4).1, 128);
        node.run_for(Duration::from_millis(100));
        traffic.end();
        node.check();
        node.end();
    });
}

#[test]
fn an_agent_that_ends_between_two_pins_leaves_every_entry() {
    on_a_node(|bpffs| {
        let _pods = pods();
        let _third = client("pod2", "10.244.0.7");
        let mut config = small(bpffs);
        config.sizes.backends.first = 128;
        let mut node = Node::start(&config, TableContent::default());
        // Both are full before anyone is told.
        let (n, error) = node.fill(1);
        assert_eq!(error.full_map(), Some(names::SLOTS));
        let frontend = writes(n)[4];
        let error = node.write(&frontend).unwrap_err();
        assert_eq!(error.full_map(), Some(names::FRONTENDS_V4));
        let device = Obstacle::at_device(bpffs, "pod2");
        let before = programs_of("pod0");
        node.relieve(&error);
        node.run_until("new programs", || {
            programs_of("pod0").iter().all(|id| !before.contains(id))
        });
        // The pin of the second map cannot be replaced.
        let slots = Obstacle::at(bpffs.join(names::SLOTS));
        drop(device);
        node.run_until("the first pin", || {
            pinned(bpffs, names::FRONTENDS_V4).1 == 128
        });
        assert!(!node.has_grown());
        // What is written now is in the larger map alone, and in both of the other.
        node.write(&frontend).unwrap();
        node.write(&Op::DeleteSlot(SlotKey::cluster(3, 0))).unwrap();
        node.write(&writes(n)[2]).unwrap();
        let wanted = node.end();
        drop(slots);
        let mut node = Node::start(&config, wanted);
        assert_eq!(pinned(bpffs, names::FRONTENDS_V4).1, 128);
        assert_eq!(pinned(bpffs, names::SLOTS).1, 64);
        for n in n + 1..=n + 100 {
            node.publish(n);
        }
        node.check();
        node.end();
    });
}

#[test]
fn an_agent_may_end_at_any_moment_of_a_growth() {
    on_a_node(|bpffs| {
        let (first, backend) = pods();
        let mut config = small(bpffs);
        for size in [
            &mut config.sizes.frontends,
            &mut config.sizes.slots,
            &mut config.sizes.backends,
            &mut config.sizes.source_ranges,
        ] {
            size.first = 1024;
            size.most = 1 << 20;
        }
        let mut node = Node::start(&config, TableContent::default());
        node.publish(1);
        let traffic = Traffic::start(&[&first], &backend);
        let mut n = 2;
        let mut halted = 0;
        for millis in [0, 50, 150, 300, 500] {
            let (stopped, error) = node.fill(n);
            n = stopped;
            node.relieve(&error);
            node.run_for(Duration::from_millis(millis));
            // An exchange of entries in the middle of whatever happens.
            let key = FrontendKey::new([192, 0, 2, 1], 80, proto::UDP);
            let delete = Op::V4(TableOp::DeleteFrontend(key));
            node.write(&delete).unwrap();
            node.write(&Op::DeleteSlot(SlotKey::cluster(2, 0))).unwrap();
            node.write(&writes(2)[2]).unwrap();
            halted += u32::from(!node.has_grown());
            let wanted = node.end();
            node = Node::start(&config, wanted);
        }
        assert!(halted > 1, "most had come to their end");
        traffic.end();
        node.end();
    });
}
