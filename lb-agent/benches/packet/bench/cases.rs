// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: each case is a hook and the packets that it sees.
//!
//! To add one, add a line to `list`; a case whose packets the programs do not translate is named as
//! absent instead of being measured as something that it is not.
//! **Invariant:** a name says what the packet is, where it is seen, and how many flows there are.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::Options;
use super::cluster::{Cluster, Dialled, Family};
use super::flows::{Flow, establish, shuffle};
use super::kernel::{DROP, Hook, Kernel, PASS};
use super::wire::{self, Kind, Proto, frame};

/// Where flows of first packets begin, so that they are none of those that are established.
const NEW_FLOWS: u32 = 1 << 20;

/// What is done to the tables before each test run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    /// New flows, and afterwards those entries are removed.
    Room,
    /// New flows, with the tables full of first packets: they evict, or are refused.
    Full,
}

/// One thing that is measured.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) hook: Hook,
    /// What the driver walks through; when `before` is not `Nothing`, how many new ones.
    pub(crate) packets: Vec<Vec<u8>>,
    pub(crate) mark: u32,
    pub(crate) before: Before,
    /// Whether the frames are of IPv4 or IPv6 with TCP or UDP, which the driver restores.
    pub(crate) restored: bool,
}

/// The flows and the cases of one family and one protocol.
pub(crate) struct Stage {
    pub(crate) family: Family,
    pub(crate) proto: Proto,
    cluster: Cluster,
    /// Entries of established flows.
    pub(crate) kept: BTreeSet<Vec<u8>>,
    /// Number of the next new flow.
    next: u32,
    pub(crate) cases: Vec<Case>,
    pub(crate) absent: Vec<String>,
}

impl Stage {
    /// Establishes the flows and lists the cases.
    pub(crate) fn open(
        kernel: &mut Kernel,
        options: &Options,
        family: Family,
        proto: Proto,
    ) -> Result<Self> {
        let cluster = Cluster {
            services: options.services,
        };
        kernel.forget_flows(&BTreeSet::new());
        kernel.forget_smallest();
        let mut flows = Vec::new();
        for number in 0..options.flows {
            let ends = cluster.flow(family, Dialled::ClusterIp, number);
            let Some(flow) = establish(kernel, proto, ends)? else {
                bail!("{ends:?} is not translated");
            };
            if family == Family::V4 {
                kernel.put_smallest(&flow.request, &flow.translated);
            }
            flows.push(flow);
        }
        let masqueraded = masqueraded(kernel, options, cluster, family, proto)?;
        shuffle(&mut flows);
        let mut stage = Self {
            family,
            proto,
            cluster,
            kept: kernel.flows(),
            next: NEW_FLOWS,
            cases: Vec::new(),
            absent: Vec::new(),
        };
        stage.list(options, &flows, &masqueraded);
        stage.cases.retain(|case| case.name.contains(&options.only));
        Ok(stage)
    }

    /// First packets of `count` flows that were never seen.
    pub(crate) fn new_flows(&mut self, count: u32) -> Vec<Vec<u8>> {
        let kind = match self.proto {
            Proto::Tcp => Kind::Syn,
            Proto::Udp => Kind::Data,
        };
        let numbers = self.next..self.next + count;
        self.next += count;
        let flow = |number| self.cluster.flow(self.family, Dialled::ClusterIp, number);
        numbers
            .map(|number| frame(self.proto, kind, flow(number)))
            .collect()
    }

    fn add(&mut self, name: &str, hook: Hook, packets: Vec<Vec<u8>>) {
        self.add_marked(name, hook, packets, 0);
    }

    fn add_marked(&mut self, name: &str, hook: Hook, packets: Vec<Vec<u8>>, mark: u32) {
        self.cases.push(Case {
            name: self.named(name),
            hook,
            packets,
            mark,
            before: Before::Nothing,
            restored: true,
        });
    }

    fn add_same(&mut self, name: &str, hook: Hook, packet: Vec<u8>) {
        self.add(name, hook, vec![packet]);
        if let Some(case) = self.cases.last_mut() {
            case.restored = false;
        }
    }

    fn named(&self, name: &str) -> String {
        format!("{} {}, {name}", self.family.name(), self.proto.name())
    }

    fn list(&mut self, options: &Options, flows: &[Flow], masqueraded: &[Flow]) {
        let requests: Vec<_> = flows.iter().map(|flow| flow.request.clone()).collect();
        let replies: Vec<_> = flows.iter().map(|flow| flow.reply.clone()).collect();
        let many = format!("{} flows", options.flows);
        self.list_not_ours(options);
        self.add("ClusterIP, one flow", Hook::Ingress, one(&requests));
        self.add("reply, one flow", Hook::Egress, one(&replies));
        if self.family == Family::V4 {
            self.add("smallest DNAT, one flow", Hook::Smallest, one(&requests));
            let name = format!("smallest DNAT, {many}");
            self.add(&name, Hook::Smallest, requests.clone());
        }
        self.add(&format!("ClusterIP, {many}"), Hook::Ingress, requests);
        self.add(&format!("reply, {many}"), Hook::Egress, replies);
        self.list_masqueraded(masqueraded);
        self.add("first packet, free room", Hook::Ingress, Vec::new());
        self.add("first packet, evicting", Hook::Ingress, Vec::new());
        for (case, before) in self
            .cases
            .iter_mut()
            .rev()
            .zip([Before::Full, Before::Room])
        {
            case.before = before;
        }
    }

    fn list_not_ours(&mut self, options: &Options) {
        let proto = self.proto;
        let ends = |number| self.cluster.flow(self.family, Dialled::Pod, number);
        let first = ends(0);
        let ping = wire::ping(first);
        let data = |ends| frame(proto, Kind::Data, ends);
        let mut many: Vec<_> = (0..options.flows)
            .map(|number| data(ends(number)))
            .collect();
        shuffle(&mut many);
        if proto == Proto::Tcp {
            for (name, hook) in [("ingress", Hook::Ingress), ("egress", Hook::Egress)] {
                if self.family == Family::V4 {
                    self.add_same(&format!("not IP, {name}"), hook, wire::arp());
                }
                self.add_same(&format!("neither TCP nor UDP, {name}"), hook, ping.clone());
            }
            let syn = frame(proto, Kind::Syn, first);
            self.add("not ours, SYN, ingress", Hook::Ingress, vec![syn]);
        }
        self.add("not ours, ingress", Hook::Ingress, vec![data(first)]);
        self.add("not ours, egress", Hook::Egress, vec![data(first)]);
        let name = format!("not ours, {} flows, ingress", options.flows);
        self.add(&name, Hook::Ingress, many);
    }

    fn list_masqueraded(&mut self, flows: &[Flow]) {
        let mut first = None;
        for flow in flows {
            if let Some(snat) = &flow.snat {
                first = Some((flow.request.clone(), snat.clone(), flow.reply.clone()));
                break;
            }
        }
        let Some((request, snat, reply)) = first else {
            self.absent.push(self.named("NodePort with SNAT, one flow"));
            return;
        };
        self.add(
            "NodePort with SNAT, one flow, ingress",
            Hook::Ingress,
            vec![request],
        );
        let name = "NodePort with SNAT, one flow, egress";
        self.add_marked(name, Hook::Egress, vec![snat.leaving], snat.mark);
        let name = "NodePort with SNAT, reply, one flow, ingress";
        self.add(name, Hook::Ingress, vec![snat.returning]);
        let name = "NodePort with SNAT, reply, one flow, egress";
        self.add(name, Hook::Egress, vec![reply]);
    }
}

/// A few flows through node ports; none while the programs leave those alone.
fn masqueraded(
    kernel: &Kernel,
    options: &Options,
    cluster: Cluster,
    family: Family,
    proto: Proto,
) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for number in 0..options.flows.min(16) {
        let ends = cluster.flow(family, Dialled::NodePort, number);
        flows.extend(establish(kernel, proto, ends)?);
    }
    Ok(flows)
}

fn one(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    packets.first().cloned().into_iter().collect()
}

/// Whether a verdict is one that the case may have: a full table may refuse.
pub(crate) fn is_expected(case: &Case, verdict: u32) -> bool {
    verdict == PASS || (verdict == DROP && case.before == Before::Full)
}
