// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`, `networking.go`: the proxy or the API server starts anew, or what the proxy has put
//! into the kernel is removed; Services work.
//!
//! **Invariant:** what was there works as soon as the agent says that it is ready.
//! Read next: `../lifecycle.rs` and `../from_api.rs`, which look closer.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_lab::agent::find_binary;
use lb_lab::{Agent, Lab};

use super::{answered_by, cluster};
use crate::cluster::{TARGET, Vip, pause};
use crate::common::can_run;
use crate::from_api::{api_server, publish, wait_for_answer};
use crate::traffic::counters;

/// The agent looks every 30 seconds whether its programs are still there.
const PUT_BACK_MAX: Duration = Duration::from_secs(45);

fn names(folder: &Path) -> BTreeSet<OsString> {
    let entries = folder.read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn should_recreate_its_programs_if_they_are_deleted() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pods = [cluster.web(0, "a"), cluster.web(1, "b")];
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &pods.each_ref());
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["a", "b"]);
    let links = cluster.node(0).bpffs().join("links");
    let repairs = || counters(cluster.node(0))["lb_program_repairs_total"];
    assert_eq!(repairs(), 0);
    let before = names(&links);
    assert!(!before.is_empty());
    for name in &before {
        std::fs::remove_file(links.join(name)).unwrap();
    }
    let removed = Instant::now();
    while names(&links) != before {
        assert!(removed.elapsed() < PUT_BACK_MAX, "{:?}", names(&links));
        pause(Duration::from_millis(100));
    }
    // The last one is counted right after it is there.
    let expected = u64::try_from(before.len()).unwrap();
    while repairs() < expected {
        assert!(removed.elapsed() < PUT_BACK_MAX, "{} repairs", repairs());
        pause(Duration::from_millis(100));
    }
    assert_eq!(repairs(), expected);
    answered_by(&client, vip.remotes(), &["a", "b"]);
}

#[test]
fn should_work_after_restarting_kube_proxy() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pods = [cluster.web(0, "a"), cluster.web(1, "b")];
    let (old, new) = (Vip::new("old", 1), Vip::new("new", 2));
    cluster.publish(&old, &pods.each_ref());
    cluster.start_agents();
    answered_by(&client, old.remotes(), &["a", "b"]);
    for agent in cluster.agents.drain(..) {
        assert!(agent.stop().unwrap().success());
    }
    cluster.start_agents();
    answered_by(&client, old.remotes(), &["a", "b"]);
    cluster.change(|manifests| {
        manifests.endpoints(&new.service, &[&pods[1]])?;
        manifests.service(&new.service)
    });
    answered_by(&client, old.remotes(), &["a", "b"]);
    answered_by(&client, new.remotes(), &["b"]);
}

#[test]
fn should_work_after_restarting_apiserver() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let client = node.pod("client", 2).unwrap();
    let pods = [("first", 5), ("second", 6)].map(|(name, host)| node.pod(name, host).unwrap());
    let _servers = pods.each_ref().map(|pod| pod.serve(TARGET).unwrap());
    let server = api_server(node);
    publish(&server, node, &[&pods[0]]);
    let state = tempfile::tempdir().unwrap();
    let (url, folder) = (server.url(), state.path().display().to_string());
    let args = ["--api-server", url.as_str(), "--state-dir", folder.as_str()];
    let mut agent = Agent::spawn_with(node, &find_binary().unwrap(), &args).unwrap();
    agent.wait_ready(Duration::from_secs(15)).unwrap();
    wait_for_answer(&client, "first");
    server.pause();
    wait_for_answer(&client, "first");
    node.netns().run(|| server.resume()).unwrap().unwrap();
    publish(&server, node, &[&pods[1]]);
    wait_for_answer(&client, "second");
    assert!(agent.stop().unwrap().success());
}
