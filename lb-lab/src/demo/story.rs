// SPDX-License-Identifier: MIT OR Apache-2.0
//! The steps of the demo, each told and checked.
//!
//! **Invariant:** a `done` line stands only behind the claim that makes it true.
//! Read next: `stage` for what is acted on, `ask` for the requests, `traces` for the end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::ask::{self, Stream, Tally, curl_line};
use super::error::{DemoError, claim};
use super::manifest;
use super::screen::{Screen, seconds};
use super::stage::{FILE, PODS, Stage, TARGET, VIP_V4, VIP_V6, leads_to};
use super::traces::{self, Found, Traces};

/// The pod that is taken out.
const LEAVES: &str = PODS[1].0;
/// The pod that is added, on the other node.
const JOINS: &str = "hostnames-k3x9q";
/// How many requests are counted where a few could be luck; a multiple of two and three.
const MANY: u32 = 300;
/// How many requests go on before and after a change.
const AROUND: u32 = 50;

/// 1: the cluster.
pub(super) fn build(screen: &mut Screen) -> Result<Stage, DemoError> {
    screen.heading("A cluster in a box")?;
    screen.say(
        "Network namespaces of this machine play the nodes and pods of a cluster, wired as a CNI \
         plugin would wire them. The pods run real servers that answer their own host name. \
         Nothing outside of these namespaces is touched.",
    )?;
    screen.gap()?;
    let (stage, took) = screen.busy("making nodes, pods, bridges and routes", Stage::build)?;
    let stage = stage?;
    let pods = PODS.map(|(name, host)| format!("  {name:<16}  10.244.0.{host}  port {TARGET}"));
    let (node, other, client) = (stage.node(), stage.other_node(), &stage.client);
    screen.code(&format!(
        "{:<18}  {}\n  {:<16}  {}\n{}\n{:<18}  {}",
        node.name(),
        node.v4(),
        client.name(),
        client.v4(),
        pods.join("\n"),
        other.name(),
        other.v4(),
    ))?;
    screen.done(&format!("2 nodes and 4 pods after {}", seconds(took)))?;
    Ok(stage)
}

/// 2: the Service, before anyone serves it.
pub(super) fn nobody_answers(screen: &mut Screen, stage: &Stage) -> Result<(), DemoError> {
    screen.heading("A Service, so far on paper")?;
    screen.say(&format!(
        "{FILE} holds Kubernetes objects: the Service `hostnames` with the virtual IP {VIP_V4}, \
         port 80, and an EndpointSlice with the addresses of the three pods. No device on any \
         machine has that virtual IP, so without help nobody answers:",
    ))?;
    for host in [&**stage.node(), &**stage.other_node(), &*stage.client] {
        let addresses = host.output("ip -oneline address")?;
        let holds = !addresses.contains(&VIP_V4.to_string());
        claim(holds, "no device has the virtual IP", || addresses)?;
    }
    screen.gap()?;
    screen.command("client", &curl_line(VIP_V4))?;
    let (answer, _) = screen.spin("waiting", || ask::curl(&stage.client, VIP_V4));
    let answer = answer?;
    screen.answer(&answer.text, answer.name.is_some())?;
    claim(
        answer.name.is_none(),
        "nobody answers without the agent",
        || answer.text,
    )
}

/// 3: the agent.
pub(super) fn start_agent(
    screen: &mut Screen,
    stage: &mut Stage,
    binary: &Path,
) -> Result<(), DemoError> {
    screen.heading("The agent")?;
    screen.say(
        "lb-agent runs once per node. It reads the manifests, writes what they mean into BPF maps \
         (tables inside the kernel), and attaches two small BPF programs to the network devices \
         of its node. From then on the kernel rewrites the packets by itself; the agent only \
         follows changes.",
    )?;
    screen.gap()?;
    let node = stage.node();
    let line = format!(
        "lb-agent run --node {} \\\n  --manifests {} \\\n  --bpffs {} \\\n  --cgroup {}",
        node.name(),
        stage.manifests().display(),
        node.bpffs().display(),
        node.cgroup().display(),
    );
    screen.command(node.name(), &line)?;
    let (started, took) = screen.busy("loading programs", || stage.start_agent(binary))?;
    started?;
    screen.done(&format!("lb-agent was ready after {}", seconds(took)))?;
    Ok(())
}

/// 4: three requests, three pods.
pub(super) fn three_requests(screen: &mut Screen, stage: &Stage) -> Result<(), DemoError> {
    screen.heading("Three requests, three answers")?;
    screen.say(
        "The same question again, from the same pod. Each request is a new connection, and the \
         kernel gives each new connection to the next pod (round-robin).",
    )?;
    screen.gap()?;
    let all = PODS.map(|(name, _)| name);
    one_each(screen, stage, VIP_V4, &all)?;
    screen.done("three requests, three different pods, one after the other")?;
    let tally = many(screen, stage, MANY)?;
    spread(&tally, &all)?;
    screen.done(&format!(
        "{MANY} more requests: {} from each pod, no error",
        MANY / 3
    ))?;
    screen.gap()?;
    one_each(screen, stage, VIP_V6, &all)?;
    screen.done("the same over IPv6")?;
    Ok(())
}

/// 5: the map.
pub(super) fn the_map(screen: &mut Screen, stage: &Stage) -> Result<(), DemoError> {
    screen.heading("What the kernel knows")?;
    screen.say("This is the table in which the programs look up every new connection:")?;
    screen.gap()?;
    screen.command("", &stage.dump_line("FRONTENDS_V4"))?;
    let dump = stage.dump("FRONTENDS_V4")?;
    screen.code(&dump)?;
    claim(
        leads_to(&dump, 3),
        "the map leads 10.0.1.175 port 80 to three slots",
        || dump,
    )?;
    screen.done(
        "read: TCP (protocol 6) to 10.0.1.175, port 80, goes to one of `cluster_count` = 3 backends",
    )?;
    screen.say(
        "`bpftool map dump name FRONTENDS_V4` finds it by its name, on a node of your own as well. \
         The addresses of the backends are in BACKENDS_V4, the connections in CONNS_V4.",
    )?;
    Ok(())
}

/// 6: a pod is taken out, while a client goes on asking.
pub(super) fn a_pod_goes(screen: &mut Screen, stage: &mut Stage) -> Result<(), DemoError> {
    screen.heading("A pod goes")?;
    screen.say(&format!(
        "{LEAVES} is taken out of the EndpointSlices by rewriting {FILE}, while a client goes on \
         asking as fast as it can:",
    ))?;
    screen.gap()?;
    let text = manifest::without(&stage.text, LEAVES);
    change(screen, stage, text, 2)?;
    stage.stop_server(LEAVES);
    screen.say("Now the pod itself is stopped. Nobody is sent there any more:")?;
    screen.gap()?;
    let left = [PODS[0].0, PODS[2].0];
    one_each(screen, stage, VIP_V4, &left)?;
    let tally = many(screen, stage, MANY)?;
    spread(&tally, &left)?;
    screen.done(&format!(
        "{MANY} more requests: {} from each of the two, no error",
        MANY / 2
    ))?;
    Ok(())
}

/// 7: a pod is added, on the other node.
pub(super) fn a_pod_comes(screen: &mut Screen, stage: &mut Stage) -> Result<(), DemoError> {
    screen.heading("A pod comes")?;
    let node = stage.other_node().clone();
    let pod = node.pod(JOINS, 5)?;
    stage.serve(&pod)?;
    screen.say(&format!(
        "A new pod {JOINS} has started on the other node, at {}. It is added to the \
         EndpointSlices:",
        pod.v4(),
    ))?;
    screen.gap()?;
    let text = manifest::with(&stage.text, JOINS, node.name(), &pod.addresses());
    change(screen, stage, text, 3)?;
    let all = [PODS[0].0, PODS[2].0, JOINS];
    one_each(screen, stage, VIP_V4, &all)?;
    let tally = many(screen, stage, MANY)?;
    spread(&tally, &all)?;
    screen.done(&format!(
        "{MANY} more requests: {} from each of the three, no error",
        MANY / 3
    ))?;
    Ok(())
}

/// 8: the kernel goes on without the agent.
pub(super) fn without_the_agent(screen: &mut Screen, stage: &mut Stage) -> Result<(), DemoError> {
    screen.heading("Without the agent")?;
    screen.say(
        "The agent is stopped, as in an upgrade. Maps and programs stay in the kernel, so the \
         Service goes on:",
    )?;
    screen.gap()?;
    if let Some(agent) = stage.agent.take() {
        screen.command(stage.node().name(), &format!("kill -TERM {}", agent.pid()))?;
        let (log, status) = (agent.log_path().to_owned(), agent.stop()?);
        claim(
            status.success(),
            "the agent ends well when it is told to",
            || {
                format!(
                    "{status}, see its log:\n{}",
                    std::fs::read_to_string(log).unwrap_or_default()
                )
            },
        )?;
    }
    one_each(screen, stage, VIP_V4, &[PODS[0].0, PODS[2].0, JOINS])?;
    screen.done("nothing was lost")?;
    Ok(())
}

/// Notes what there is to be removed, while all of it is there.
pub(super) fn note_traces(stage: &Stage) -> Result<(Traces, Found), DemoError> {
    let traces = Traces::of(&stage.lab)?;
    let found = traces.look()?;
    let holds = found.len() == traces::KINDS;
    claim(holds, "the demo sees what it has made", || {
        traces::list(&found)
    })?;
    Ok((traces, found))
}

/// 9: the end.
pub(super) fn remove(
    screen: &mut Screen,
    stage: Stage,
    (traces, found): (Traces, Found),
) -> Result<(), DemoError> {
    screen.heading("Nothing is left behind")?;
    screen.say("What the demo has made on this machine:")?;
    screen.gap()?;
    screen.code(&traces::table(&found))?;
    screen.gap()?;
    let (removed, took) = screen.busy("removing it", || {
        stage.remove()?;
        traces.wait_gone()
    })?;
    let left = removed?;
    claim(left.is_empty(), "nothing is left behind", || {
        traces::list(&left)
    })?;
    screen.done(&format!(
        "removed in {}, then looked for all of it again: nothing is left",
        seconds(took)
    ))?;
    Ok(())
}

/// One curl per pod; each pod must answer once.
fn one_each(
    screen: &mut Screen,
    stage: &Stage,
    address: IpAddr,
    pods: &[&str],
) -> Result<(), DemoError> {
    let mut seen = BTreeSet::new();
    for _ in pods {
        let line = curl_line(address);
        screen.command("client", &line)?;
        let answer = ask::curl(&stage.client, address)?;
        screen.answer(&answer.text, answer.name.is_some())?;
        claim(
            answer.name.is_some(),
            format!("`{line}` is answered"),
            || answer.text,
        )?;
        seen.extend(answer.name);
    }
    let wanted: BTreeSet<_> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    claim(
        seen == wanted,
        format!("each of {} answers once", pods.join(", ")),
        || {
            format!(
                "answers of {}",
                seen.into_iter().collect::<Vec<_>>().join(", ")
            )
        },
    )
}

fn many(screen: &mut Screen, stage: &Stage, count: u32) -> Result<Tally, DemoError> {
    let text = format!("{count} more requests");
    let (tally, _) = screen.spin(&text, || ask::many(&stage.client, VIP_V4, count));
    Ok(tally?)
}

/// Every request was answered, by these pods and evenly.
fn spread(tally: &Tally, pods: &[&str]) -> Result<(), DemoError> {
    let mut pods = pods.to_vec();
    pods.sort_unstable();
    let holds = tally.failures.is_empty() && tally.is_even() && tally.names() == pods;
    claim(
        holds,
        format!("all requests are spread evenly over {}", pods.join(", ")),
        || tally.trouble(),
    )
}

/// Rewrites the manifest under a running stream of requests, none of which may fail.
fn change(
    screen: &mut Screen,
    stage: &mut Stage,
    text: String,
    count: usize,
) -> Result<(), DemoError> {
    screen.changes(&manifest::difference(&stage.text, &text))?;
    let client = stage.client.clone();
    let (tally, _) = screen.spin("asking while it changes", || {
        let stream = Stream::start(&client, VIP_V4);
        let before = ask::many(&client, VIP_V4, AROUND)?;
        stage.rewrite(text, count)?;
        let after = ask::many(&client, VIP_V4, AROUND)?;
        Ok::<_, DemoError>([before, stream.stop()?, after])
    });
    let tallies = tally?;
    for tally in &tallies {
        claim(
            tally.failures.is_empty(),
            "no request fails while the endpoints change",
            || tally.trouble(),
        )?;
    }
    let answers: u32 = tallies.iter().map(Tally::answers).sum();
    screen.done(&format!(
        "{answers} requests before, during and after the change: no error"
    ))?;
    screen.gap()?;
    Ok(())
}
