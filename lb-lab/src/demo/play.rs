// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a person can do with a lab that stays up, and after the demo.
//!
//! **Invariant:** every command can be copied as it is into another terminal.
//! Read next: `story`, whose end follows when the person has had enough.

use std::sync::mpsc;

use super::ask::curl_line;
use super::error::DemoError;
use super::screen::Screen;
use super::stage::{FILE, Stage, VIP_V4};
use crate::agent::Agent;
use crate::host::Host;
use crate::node::BRIDGE;
use crate::pod::Pod;
use crate::stale;

/// Prints the commands and waits for a signal.
pub(super) fn wait(screen: &mut Screen, stage: &Stage) -> Result<(), DemoError> {
    screen.heading("Yours to play with")?;
    screen.say("The lab stays up until Ctrl-C. In another terminal, as root:")?;
    screen.gap()?;
    for (what, line) in commands(stage) {
        screen.offer(what, &line)?;
        screen.gap()?;
    }
    let (sender, receiver) = mpsc::channel();
    stale::on_signal(move || {
        // The first one ends the waiting; the removal that follows is bounded and goes on.
        sender.send(()).unwrap_or_default();
    });
    screen.say("Ctrl-C here removes everything.")?;
    // An error would mean that the sender is gone, and with it the way to wait.
    receiver.recv().unwrap_or_default();
    Ok(())
}

fn commands(stage: &Stage) -> Vec<(&'static str, String)> {
    let enter = |host: &Host| format!("nsenter --net={}", host.netns().path().display());
    let (client, node) = (enter(&stage.client), enter(stage.node()));
    let file = stage.manifests().join(FILE).display().to_string();
    let agent = stage.agent.as_ref();
    let log = agent.map_or(stage.lab.dir(), Agent::log_path).display();
    let device = stage.pods().next().map_or(BRIDGE, Pod::device);
    let curl = curl_line(VIP_V4);
    let ready =
        |from, to| format!("sed -i '/- 10.244.0.5$/,/ready:/ s/ready: {from}/ready: {to}/' {file}");
    vec![
        ("ask once, from the client pod", format!("{client} {curl}")),
        (
            "go on asking",
            format!("{client} sh -c 'while sleep 0.5; do {curl}; done'"),
        ),
        (
            "take hostnames-0uton out, put it back",
            [ready("true", "false"), ready("false", "true")].join("\n"),
        ),
        (
            "change whatever you like; the agent follows when you save",
            format!("${{EDITOR:-vi}} {file}"),
        ),
        (
            "the Service, its backends, some of the latest connections",
            [
                stage.dump_line("FRONTENDS_V4"),
                stage.dump_line("BACKENDS_V4"),
                stage.dump_line("CONNS_V4") + " | head -40",
            ]
            .join("\n"),
        ),
        (
            "packets as the client sees them: all with the virtual IP",
            format!("{client} tcpdump -nli eth0 tcp"),
        ),
        (
            "the same packets as hostnames-0uton sees them: with its own address",
            format!("{node} tcpdump -nli {device} tcp"),
        ),
        ("a shell in the client pod", format!("{client} sh")),
        ("a shell on its node", format!("{node} sh")),
        ("what the agent did", format!("tail -f {log}")),
    ]
}

/// Says what else there is.
pub(super) fn next(screen: &mut Screen, kept: bool) -> Result<(), DemoError> {
    screen.gap()?;
    screen.say("What to try next:")?;
    screen.gap()?;
    if !kept {
        screen.offer(
            "the same, but the lab stays up with commands to play in it",
            "cargo xtask demo --keep",
        )?;
    }
    screen.offer(
        "larger labs: routed pods, vxlan, outside clients",
        "target/debug/lb-lab up --help",
    )?;
    screen.offer(
        "the end-to-end tests in all topologies",
        "cargo xtask test net",
    )?;
    screen.offer(
        "how it works: a packet's life, with links to the code",
        "less README.md",
    )?;
    Ok(())
}
