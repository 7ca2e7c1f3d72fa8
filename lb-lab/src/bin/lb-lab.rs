// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `lb-lab`: makes a lab to play in, enters it, lists and cleans up.
//!
//! **Invariant:** it only parses arguments and prints; what it does is in the library.
//! Read next: the library's front page.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_lab::agent::find_binary;
use lb_lab::apiserver::{self, ApiServer, Cluster, ClusterSpec, Fault};
use lb_lab::bench::BenchArgs;
use lb_lab::demo::{self, Screen};
use lb_lab::stale::{self, Found, FoundHost};
use lb_lab::{Lab, Place, Pod, RpFilter, RuleTool, Server, Topology, TxOffload, Underlay};

/// Clusters made of network namespaces: nodes, pods, clients and a router on this machine.
///
/// Needs root. Nothing outside the lab's own namespaces and cgroups is touched, and
/// everything is removed at the end.
#[derive(Parser)]
#[command(name = "lb-lab", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a lab and keep it until Ctrl-C
    ///
    /// Each node gets pods whose servers answer their own name on port 9376 (HTTP and UDP,
    /// IPv4 and IPv6); the first node also gets a pod `client` without a server.
    Up(Up),
    /// Show a Service balanced in the kernel, step by step, and remove everything
    ///
    /// Runs the real lb-agent (named by `LB_AGENT`, else found beside this program). Every
    /// claim is checked: the exit status is not 0 if anything is not as told.
    Demo(Demo),
    /// Serve a generated cluster as an API server does, and obey commands on standard input
    ///
    /// Needs no root. Prints `listening on URL`, then takes one command per line and answers each
    /// by one line: `change SERVICE_INDEX` moves one endpoint of that Service and tells the version
    /// and when the event went out (`CLOCK_MONOTONIC`, ns), `changes COUNT INTERVAL_US` does so many
    /// times, `stats` tells the server's own cost, `quit` ends it, as the end of the input does.
    Apiserver(Apiserver),
    /// Measure what the control plane costs
    Bench(BenchArgs),
    /// List the labs of this machine with their hosts
    List,
    /// Run a command on a host of a lab (a node, a pod, a client or the router)
    ///
    /// The command runs in the host's network namespace and cgroup; everything else, files
    /// included, is as outside. Example: `lb-lab exec client -- curl http://10.244.0.5:9376`
    Exec(Exec),
    /// Remove what killed runs left behind
    ///
    /// Labs whose process lives are not touched. Every new lab does the same at its start.
    Clean,
}

#[derive(Args)]
struct Up {
    /// How nodes join their pods
    #[arg(long, value_enum, default_value_t = TopologyName::Bridge)]
    topology: TopologyName,
    /// How nodes reach each other's pods
    #[arg(long, value_enum, default_value_t = UnderlayName::Routes)]
    underlay: UnderlayName,
    /// Number of nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=90))]
    nodes: u8,
    /// Number of pods with a server on each node
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=90))]
    pods: u8,
    /// Reverse-path filter of every device
    #[arg(long, value_enum, default_value_t = RpFilterName::Strict)]
    rp_filter: RpFilterName,
    /// Who finishes checksums: nobody, the nodes' devices, or the pods' too
    #[arg(long, value_enum, default_value_t = OffloadName::On)]
    tx_offload: OffloadName,
    /// Leave the CNI's masquerade rule out
    #[arg(long)]
    no_masquerade: bool,
    /// FORWARD policy ACCEPT, and packets that conntrack calls INVALID pass too
    #[arg(long)]
    forward_accept: bool,
    /// Write the nodes' rules with iptables instead of nftables
    #[arg(long)]
    iptables: bool,
}

#[derive(Args)]
struct Demo {
    /// Leave the lab up until Ctrl-C, and print the commands to play in it
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct Apiserver {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Number of Services
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    services: u32,
    /// Ready endpoints of each Service
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=1_000))]
    endpoints_per_service: u32,
    /// Endpoints of one more Service (the last index), in slices of 100
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    big_service: u32,
    /// Name of the first of the four nodes
    #[arg(long)]
    node: Option<String>,
    /// Give Services an IPv6 address and slices, too
    #[arg(long)]
    dual_stack: bool,
    /// Answer streaming lists by 422, as a server without them
    #[arg(long)]
    no_watch_list: bool,
}

#[derive(Args)]
struct Exec {
    /// The lab's id; not needed while there is only one
    #[arg(long)]
    lab: Option<String>,
    /// The host's name, as `lb-lab list` shows it
    host: String,
    /// The command and its arguments; a shell if there is none
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum TopologyName {
    /// A bridge cni0, bridged packets do not pass netfilter
    Bridge,
    /// A bridge cni0, bridged packets pass netfilter (`br_netfilter`)
    BridgeNf,
    /// A veth per pod with a host route, as Calico makes it
    Routed,
}

#[derive(Clone, Copy, ValueEnum)]
enum UnderlayName {
    /// Routes by the other nodes' addresses
    Routes,
    /// A vxlan device flannel.1 on each node
    Vxlan,
}

#[derive(Clone, Copy, ValueEnum)]
enum RpFilterName {
    Strict,
    Loose,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
enum OffloadName {
    On,
    OffOnNodes,
    Off,
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Up(options) => up(&options),
        Verb::Demo(options) => show_demo(&options),
        Verb::Apiserver(options) => serve_api(options),
        Verb::Bench(options) => bench(&options),
        Verb::List => list(),
        Verb::Exec(exec) => enter(&exec),
        Verb::Clean => clean(),
    }
}

fn up(options: &Up) -> anyhow::Result<ExitCode> {
    let topology = match options.topology {
        TopologyName::Bridge => Topology::Bridge {
            br_netfilter: false,
        },
        TopologyName::BridgeNf => Topology::Bridge { br_netfilter: true },
        TopologyName::Routed => Topology::Routed,
    };
    let underlay = match options.underlay {
        UnderlayName::Routes => Underlay::Routes,
        UnderlayName::Vxlan => Underlay::Vxlan,
    };
    let rp_filter = match options.rp_filter {
        RpFilterName::Strict => RpFilter::Strict,
        RpFilterName::Loose => RpFilter::Loose,
        RpFilterName::Off => RpFilter::Off,
    };
    let tx_offload = match options.tx_offload {
        OffloadName::On => TxOffload::On,
        OffloadName::OffOnNodes => TxOffload::OffOnNodes,
        OffloadName::Off => TxOffload::Off,
    };
    let rules = if options.iptables {
        RuleTool::Iptables
    } else {
        RuleTool::Nftables
    };
    let lab = Lab::builder()
        .topology(topology)
        .underlay(underlay)
        .rp_filter(rp_filter)
        .tx_offload(tx_offload)
        .masquerade(!options.no_masquerade)
        .forward_drop(!options.forward_accept)
        .invalid_drop(!options.forward_accept)
        .rules(rules)
        .nodes(options.nodes.into())
        .build()
        .context("make the lab")?;
    let _servers = furnish(&lab, options.pods).context("make the lab's pods")?;
    describe(&lab)?;
    loop {
        // The signal handler removes the lab and exits.
        std::thread::park();
    }
}

/// Makes the pods, a client pod and an outside client; the servers live as long as the value.
fn furnish(lab: &Lab, pods: u8) -> anyhow::Result<Vec<(Pod, Server)>> {
    let mut servers = Vec::new();
    for node in lab.nodes() {
        for number in 0..pods {
            let pod = node.pod(&format!("web-{}-{number}", node.number()), 5 + number)?;
            let server = pod.serve(9376)?;
            servers.push((pod, server));
        }
    }
    lab.node(0).pod("client", 2)?;
    lab.client("outside", Place::Underlay)?;
    Ok(servers)
}

fn describe(lab: &Lab) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let found = stale::list()?;
    for found in found.iter().filter(|found| found.id == lab.id()) {
        show(&mut out, found)?;
    }
    let id = lab.id();
    writeln!(out, "\nIn another terminal, as root:")?;
    writeln!(
        out,
        "  lb-lab exec --lab {id} client -- curl -s http://10.244.0.5:9376"
    )?;
    writeln!(out, "  lb-lab exec --lab {id} node-0 -- ip route")?;
    writeln!(
        out,
        "  nsenter --net=/run/netns/lb-{id}-node-0 nft list ruleset"
    )?;
    writeln!(out, "Ctrl-C removes everything.")?;
    out.flush()?;
    Ok(())
}

fn show(out: &mut impl io::Write, lab: &Found) -> io::Result<()> {
    let state = if lab.live {
        "live"
    } else {
        "stale: lb-lab clean removes it"
    };
    writeln!(
        out,
        "lab {} ({state}), files in {}",
        lab.id,
        lab.dir.display()
    )?;
    for host in &lab.hosts {
        let FoundHost {
            name, kind, v4, v6, ..
        } = host;
        writeln!(out, "  {kind:<7} {name:<16} {v4:<15} {v6}")?;
    }
    Ok(())
}

fn show_demo(options: &Demo) -> anyhow::Result<ExitCode> {
    let agent = find_binary().context("find the agent: `cargo build -p lb-agent` makes it")?;
    let keep = options.keep;
    let mut screen = Screen::stdout();
    match demo::run(&mut screen, &demo::Options { agent, keep }) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // Without a screen the exit status has to say it.
            drop(screen.failed(&format!("{:#}", anyhow::Error::new(error))));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn serve_api(options: Apiserver) -> anyhow::Result<ExitCode> {
    let server = ApiServer::start(options.listen)?;
    if options.no_watch_list {
        server.fault(Fault::RefuseWatchList);
    }
    let spec = ClusterSpec {
        services: options.services.try_into()?,
        endpoints_per_service: options.endpoints_per_service.try_into()?,
        big_service: options.big_service.try_into()?,
        node: options.node,
        dual_stack: options.dual_stack,
    };
    let mut cluster = Cluster::generate(&server, spec);
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {}", server.url())?;
    out.flush()?;
    apiserver::converse(&server, &mut cluster, io::stdin().lock(), out)?;
    Ok(ExitCode::SUCCESS)
}

fn bench(options: &BenchArgs) -> anyhow::Result<ExitCode> {
    options.run(&mut io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let labs = stale::list()?;
    if labs.is_empty() {
        writeln!(out, "no lab on this machine")?;
    }
    for lab in &labs {
        show(&mut out, lab)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn clean() -> anyhow::Result<ExitCode> {
    let removed = stale::clean()?;
    let mut out = io::stdout().lock();
    match removed.as_slice() {
        [] => writeln!(out, "nothing stale")?,
        ids => writeln!(out, "removed {}", ids.join(", "))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn enter(exec: &Exec) -> anyhow::Result<ExitCode> {
    let wanted = |lab: &Found| exec.lab.as_ref().is_none_or(|id| *id == lab.id);
    let labs: Vec<_> = stale::list()?.into_iter().filter(wanted).collect();
    let lab = match labs.as_slice() {
        [lab] => lab,
        [] => bail!("no such lab: `lb-lab list` shows what there is, `lb-lab up` makes one"),
        _ => bail!("there are {} labs: say which one with --lab", labs.len()),
    };
    let host = lab.hosts.iter().find(|host| host.name == exec.host);
    let host = host.with_context(|| format!("lab {} has no host {:?}", lab.id, exec.host))?;
    let shell = vec![std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let words = if exec.command.is_empty() {
        &shell
    } else {
        &exec.command
    };
    let mut command = host.command(&words[0])?;
    // Only comes back if the program could not be started.
    let error = command.args(&words[1..]).exec();
    Err(error).with_context(|| format!("run {}", words[0]))
}
