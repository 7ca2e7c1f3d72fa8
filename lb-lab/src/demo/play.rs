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
        // The receiver waits until then.
        sender.send(()).unwrap_or_default();
    });
    screen.say("Ctrl-C here removes everything.")?;
    // An error would mean that the sender is gone, and with it the way to wait.
    receiver.recv().unwrap_or_default();
    Ok(())
}

fn commands(stage: &Stage) -> Vec<(&'static str, String)> {
    let enter = |host: &crate::Host| format!("nsenter --net={}", host.netns().path().display());
    let (client, node) = (enter(&stage.client), enter(stage.node()));
    let file = stage.manifests().join(FILE);
    let file = file.display();
    let log = stage
        .agent
        .as_ref()
        .map_or(stage.lab.dir(), Agent::log_path);
    let ready =
        |from, to| format!("sed -i '/- 10.244.0.5$/,/ready:/ s/ready: {from}/ready: {to}/' {file}");
    vec![
        (
            "ask once, from the client pod",
            format!("{client} {}", curl_line(VIP_V4)),
        ),
        (
            "go on asking",
            format!(
                "{client} sh -c 'while sleep 0.5; do {}; done'",
                curl_line(VIP_V4)
            ),
        ),
        (
            "a shell in the client pod; another one on its node",
            format!("{client} sh\n{node} sh"),
        ),
        (
            "take hostnames-0uton out, put it back",
            ready("true", "false") + "\n" + &ready("false", "true"),
        ),
        (
            "change anything else; the agent follows when you save",
            format!("${{EDITOR:-vi}} {file}"),
        ),
        (
            "the Service, its backends, the connections of now",
            ["FRONTENDS_V4", "BACKENDS_V4", "CONNS_V4"]
                .map(|map| stage.dump_line(map))
                .join("\n"),
        ),
        (
            "how often the programs did what, by reason",
            stage.dump_line("REASONS"),
        ),
        (
            "the packets as the client sees them: to and from the Service",
            format!("{client} tcpdump -nli eth0 tcp"),
        ),
        (
            "the packets as they leave the node for a pod: translated",
            format!("{node} tcpdump -nli v-hostnames-0ut tcp"),
        ),
        (
            "the programs on the devices of the node",
            format!("{node} bpftool net"),
        ),
        ("the agent's log", format!("tail -f {}", log.display())),
    ]
}

/// Says what else there is.
pub(super) fn next(screen: &mut Screen) -> Result<(), DemoError> {
    screen.gap()?;
    screen.say("What to try next:")?;
    screen.gap()?;
    screen.offer(
        "the same, but the lab stays up with commands to play in it",
        "cargo xtask demo --keep",
    )?;
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
