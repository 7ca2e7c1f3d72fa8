// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the scenarios share: a node with tables in memory, and objects in a few words.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_agent::cli::table_text;
use lb_agent::model::endpoint::{Endpoint, EndpointPort, EndpointSlice, SliceKey};
use lb_agent::model::service::{IpFamily, Protocol, Service, ServiceKey, ServicePort};
use lb_agent::model::snapshot::{Change, Object, Update};
use lb_agent::model::tables::{Op, TableContent};
use lb_agent::plan::ids::IdLimits;
use lb_agent::plan::node::PlanOptions;
use lb_agent::reconcile::{Outcome, Reconciler, Settings};
use lb_agent::tables::Memory;

/// One node: the reconciler and its tables.
pub(crate) struct Bench {
    pub(crate) reconciler: Reconciler,
    pub(crate) tables: Memory,
}

pub(crate) fn settings() -> Settings {
    Settings {
        node_name: "node-a".to_owned(),
        options: PlanOptions::default(),
        id_limits: IdLimits::default(),
    }
}

impl Bench {
    /// A node that starts on `content`, as after a restart if there is any.
    pub(crate) fn on(content: TableContent, stamp: u32) -> Self {
        Self::with(settings(), content, stamp)
    }

    /// The same with settings of its own.
    pub(crate) fn with(settings: Settings, content: TableContent, stamp: u32) -> Self {
        Self {
            reconciler: Reconciler::restore(settings, &content, stamp),
            tables: Memory::with_content(content),
        }
    }

    /// A node with empty tables that knows of no object.
    pub(crate) fn empty() -> Self {
        let mut bench = Self::on(TableContent::default(), 1);
        bench.take(Update::reset(Vec::new()));
        bench
    }

    /// Takes an update in and writes.
    pub(crate) fn take(&mut self, update: Update) -> Outcome {
        self.reconciler.receive(update);
        self.sync()
    }

    /// Writes what is pending.
    pub(crate) fn sync(&mut self) -> Outcome {
        let outcome = self.reconciler.sync(&mut self.tables);
        assert_eq!(
            self.reconciler.content(),
            *self.tables.content(),
            "the mirror is true"
        );
        outcome
    }

    pub(crate) fn apply(&mut self, object: impl Into<Object>) -> Outcome {
        self.take(Update::Changes(vec![Change::Apply(object.into())]))
    }

    pub(crate) fn delete(&mut self, object: &Object) -> Outcome {
        self.take(Update::Changes(vec![Change::Delete(object.reference())]))
    }

    /// The writes since the last call, as text.
    pub(crate) fn writes(&mut self) -> Vec<String> {
        self.tables.take_log().iter().map(Op::to_string).collect()
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for frontend in table_text(self.tables.content(), self.reconciler.ids()) {
            frontend.write_to(&mut text);
        }
        text
    }

    /// The tables without what depends on the order of arrival: ids and slots.
    pub(crate) fn text_without_ids(&self) -> String {
        let blocks = self.blocks_without_ids();
        let lines: Vec<String> = blocks.concat();
        lines.join("\n")
    }

    /// The same, one frontend with its backends after the other.
    pub(crate) fn blocks_without_ids(&self) -> Vec<Vec<String>> {
        let mut blocks: Vec<Vec<String>> = Vec::new();
        for line in self.text().lines() {
            let words: Vec<&str> = line.split("  ").collect();
            if line.starts_with(' ') {
                let kept = words.iter().map(|word| match word {
                    word if word.starts_with("local slot") => "local",
                    word if word.starts_with("slot") || word.starts_with("backend") => "",
                    word => word,
                });
                let kept: Vec<&str> = kept.collect();
                blocks.last_mut().unwrap().push(kept.join("  "));
            } else {
                let kept = words.iter().filter(|w| !w.starts_with("service "));
                let kept: Vec<&str> = kept.copied().collect();
                blocks.push(vec![kept.join("  ")]);
            }
        }
        for block in &mut blocks {
            block[1..].sort();
        }
        blocks
    }
}

/// A Service with one port, 80/TCP.
pub(crate) fn service(name: &str, ip: &str) -> Service {
    Service {
        key: ServiceKey::new("default", name),
        cluster_ips: vec![ip.parse().unwrap()],
        ports: vec![port("", 80, Protocol::Tcp)],
        ..Service::default()
    }
}

pub(crate) fn port(name: &str, number: u16, protocol: Protocol) -> ServicePort {
    ServicePort {
        name: name.to_owned(),
        protocol,
        port: number,
        node_port: None,
    }
}

/// The slice `service-1` with one endpoint per address, all ready, on port 8080/TCP.
pub(crate) fn slice(service: &str, addresses: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = addresses.iter().map(|a| endpoint(a)).collect();
    EndpointSlice {
        triggered_micros: None,
        key: SliceKey {
            namespace: "default".to_owned(),
            name: format!("{service}-1"),
        },
        service: Some(ServiceKey::new("default", service)),
        family: endpoints
            .first()
            .map_or(IpFamily::V4, |e| IpFamily::of(e.address)),
        skipped: false,
        names: false,
        ports: vec![EndpointPort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints,
        rejected: Vec::new(),
        ignored: Vec::new(),
    }
}

pub(crate) fn endpoint(address: &str) -> Endpoint {
    let address: IpAddr = address.parse().unwrap();
    Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
        weight: 1,
    }
}
