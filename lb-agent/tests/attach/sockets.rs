// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs at the sockets of a cgroup: attached once, replaced in place, put back, given up.
//!
//! **Invariant:** cgroups of the test's own, which it removes. What sockets see is shown in the lab.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::programs::links::{FdLink, PinnedLink};
use lb_agent::datapath::{
    DatapathConfig, SocketConfig, SocketLb, SocketState, learn_netns_cookie, netns_cookie,
};
use lb_agent::model::tables::TableContent;

use crate::filling::{Node, Traffic, pods, small};
use crate::support::{Agent, on_a_node, run, wait_until};

const PINS: [&str; 8] = [
    "cgroup-connect4",
    "cgroup-connect6",
    "cgroup-getpeername4",
    "cgroup-getpeername6",
    "cgroup-recvmsg4",
    "cgroup-recvmsg6",
    "cgroup-sendmsg4",
    "cgroup-sendmsg6",
];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A cgroup below the root of the hierarchy; removed when dropped.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then_some(path)
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lb-attach-{}-{number}", std::process::id());
        let path = Path::new(mount.expect("cgroup v2 is mounted")).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Moves this process in, runs something, and moves it back.
    pub(crate) fn with_this_process<T>(&self, inside: impl FnOnce() -> T) -> T {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let back = self.0.parent().unwrap().join(own.unwrap());
        let enter = |path: &Path| {
            fs::write(path.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        };
        enter(&self.0);
        let done = inside();
        enter(&back);
        done
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

pub(crate) fn config(bpffs: &Path, mode: SocketLb, cgroup: &Cgroup) -> DatapathConfig {
    let mut config = DatapathConfig::new(bpffs);
    config.sockets = SocketConfig {
        mode,
        cgroup: Some(cgroup.0.clone()),
    };
    config
}

/// Ids of the link and of its program behind each pin.
fn links(bpffs: &Path) -> Vec<(u32, u32)> {
    let of = |pin: &&str| {
        let link = PinnedLink::from_pin(bpffs.join("links").join(pin)).unwrap();
        let info = FdLink::from(link).info().unwrap();
        (info.id(), info.program_id())
    };
    PINS.iter().map(of).collect()
}

fn pins(bpffs: &Path) -> Vec<String> {
    let names = fs::read_dir(bpffs.join("links")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("cgroup")).collect();
    names.sort();
    names
}

/// Names of the programs on a cgroup, as bpftool shows them.
fn attached(cgroup: &Cgroup) -> Vec<String> {
    let shown = std::process::Command::new("bpftool")
        .args(["cgroup", "show"])
        .arg(&cgroup.0)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let words = text.split_whitespace();
    let mut names: Vec<_> = words
        .filter(|word| word.starts_with("lb_"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

#[test]
fn a_restart_replaces_the_programs_at_sockets_in_place_and_off_takes_them_away() {
    on_a_node(|bpffs| {
        let cgroup = Cgroup::new();
        let host = config(bpffs, SocketLb::Host, &cgroup);
        let agent = Agent::start(host.clone());
        let state = agent.managed.borrow().sockets.clone();
        assert_eq!(state, SocketState::Serving(SocketLb::Host));
        let before = links(bpffs);
        assert_eq!(attached(&cgroup).len(), 8, "{:?}", attached(&cgroup));
        assert_eq!(agent.stop().repairs, 0);
        assert_eq!(links(bpffs), before, "they outlive the agent");
        let agent = Agent::start(host);
        for (before, after) in before.iter().zip(links(bpffs)) {
            assert_eq!(before.0, after.0, "the link is the same");
            assert_ne!(before.1, after.1, "the program is the new agent's");
        }
        agent.stop();
        let agent = Agent::start(config(bpffs, SocketLb::Off, &cgroup));
        assert_eq!(agent.managed.borrow().sockets, SocketState::Off);
        assert_eq!(pins(bpffs), [""; 0]);
        wait_until("the end of the links", || attached(&cgroup).is_empty());
        agent.stop();
    });
}

#[test]
fn programs_at_sockets_that_someone_detached_are_put_back_and_counted() {
    on_a_node(|bpffs| {
        let cgroup = Cgroup::new();
        let mut host = config(bpffs, SocketLb::Host, &cgroup);
        host.audit = Duration::from_millis(50);
        let agent = Agent::start(host);
        let before = links(bpffs);
        for (id, _) in &before[..2] {
            run("bpftool", &format!("link detach id {id}"));
        }
        // Not how many there are meanwhile: they may be back before anyone looks.
        let kept = || -> Vec<bool> {
            let after = links(bpffs);
            before.iter().zip(&after).map(|(b, a)| b.0 == a.0).collect()
        };
        wait_until("the links", || kept()[..2] == [false; 2]);
        assert_eq!(kept()[2..], [true; 6]);
        assert_eq!(attached(&cgroup).len(), 8);
        fs::remove_file(bpffs.join("links").join(PINS[7])).unwrap();
        wait_until("the pin", || pins(bpffs).len() == 8);
        assert_eq!(agent.stop().repairs, 3);
    });
}

#[test]
fn another_cgroup_gets_the_programs_before_the_first_one_loses_them() {
    on_a_node(|bpffs| {
        let [first, second] = [Cgroup::new(), Cgroup::new()];
        Agent::start(config(bpffs, SocketLb::Host, &first)).stop();
        let agent = Agent::start(config(bpffs, SocketLb::Host, &second));
        assert_eq!(attached(&second).len(), 8);
        wait_until("the end of the links", || attached(&first).is_empty());
        assert_eq!(pins(bpffs), PINS);
        agent.stop();
    });
}

#[test]
fn without_a_hierarchy_packets_are_served_and_what_is_missing_is_told() {
    on_a_node(|bpffs| {
        let mut config = DatapathConfig::new(bpffs);
        config.sockets.mode = SocketLb::Host;
        let agent = Agent::start(config);
        let told = agent.managed.borrow().sockets.to_string();
        assert!(told.contains("NOT served: no cgroup v2"), "{told}");
        assert!(told.contains("--cgroup"), "{told}");
        agent.stop();
    });
}

#[test]
fn a_namespace_is_learned_by_a_call_where_the_kernel_does_not_tell() {
    on_a_node(|_| {
        let cgroup = Cgroup::new();
        let learned = cgroup
            .with_this_process(|| learn_netns_cookie(&cgroup.0))
            .unwrap();
        // Where the kernel does tell, it tells the same.
        match netns_cookie() {
            Ok(told) => assert_eq!(learned, told),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
        }
        assert_ne!(learned, 0);
        assert!(attached(&cgroup).is_empty(), "it leaves nothing behind");
        // Who is elsewhere is not asked.
        assert_eq!(learn_netns_cookie(&cgroup.0).unwrap(), 0);
    });
}

#[test]
fn maps_that_grow_take_the_programs_at_sockets_along() {
    on_a_node(|bpffs| {
        let cgroup = Cgroup::new();
        let (client, backend) = pods();
        let mut config = small(bpffs);
        config.sockets = SocketConfig {
            mode: SocketLb::Host,
            cgroup: Some(cgroup.0.clone()),
        };
        let mut node = Node::start(&config, TableContent::default());
        let before = links(bpffs);
        node.publish(1);
        let traffic = Traffic::start(&[&client], &backend);
        for n in 2..=100 {
            node.publish(n);
            traffic.services.store(n, Ordering::Relaxed);
        }
        traffic.end();
        node.check();
        assert!(*node.datapath.grown().borrow() > 0);
        for (before, after) in before.iter().zip(links(bpffs)) {
            assert_eq!(before.0, after.0, "the link is the same");
            assert_ne!(before.1, after.1, "the program has the larger maps");
        }
        node.end();
    });
}
