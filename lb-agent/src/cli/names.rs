// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names that belong to addresses and ids: of Services, ports, pods and nodes.
//!
//! The tables hold no names. A service id has that of the Service whose frontend leads to it, best of a
//! cluster address, which no other Service has.
//! **Invariant:** only names are found here. What the tables hold is shown whether or not it has one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use lb_common::abi::{Frontend, FrontendKey, Kind};

use super::objects::Found;
use crate::model::endpoint::EndpointSlice;
use crate::model::service::{IpFamily, Protocol, ServiceKey, ServicePort};
use crate::model::snapshot::Object;
use crate::model::tables::{FamilyTables, TableContent};
use crate::plan::claims::FrontendAddress;

/// A Service and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortName {
    pub(super) service: ServiceKey,
    /// Empty for the only port of a Service.
    pub(super) port: String,
}

impl PortName {
    /// As `plan` writes it.
    pub(super) fn text(&self) -> String {
        if self.port.is_empty() {
            self.service.to_string()
        } else {
            format!("{} {}", self.service, self.port)
        }
    }
}

/// What an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndpointName {
    pub(super) pod: Option<String>,
    pub(super) node: Option<String>,
}

/// All names.
#[derive(Debug, Default)]
pub(super) struct Names {
    ids: BTreeMap<u32, PortName>,
    /// Family and protocol of each service id that has a frontend.
    protocols: BTreeMap<u32, (IpFamily, u8)>,
    endpoints: BTreeMap<(ServiceKey, IpAddr), EndpointName>,
    /// There is something to take names from.
    known: bool,
}

/// Frontends by what objects say of them.
#[derive(Default)]
struct Frontends {
    by_address: BTreeMap<FrontendAddress, PortName>,
    by_node_port: BTreeMap<(u16, u8), PortName>,
}

impl Names {
    /// The names of what `content` holds, from the objects that were found.
    pub(super) fn new(found: Option<&Found>, content: &TableContent) -> Self {
        let mut names = Self {
            known: found.is_some(),
            ..Self::default()
        };
        let mut frontends = Frontends::default();
        for object in found.iter().flat_map(|found| &found.objects) {
            match object {
                Object::Service(service) => {
                    for port in &service.ports {
                        frontends.add(service, port);
                    }
                }
                Object::EndpointSlice(slice) => names.add_slice(slice),
                Object::Endpoints(_, slices) => slices.iter().for_each(|s| names.add_slice(s)),
                Object::Node(_) | Object::Pod(_) | Object::Namespace(_) => {}
            }
        }
        names.add_ids(&content.v4, &frontends);
        names.add_ids(&content.v6, &frontends);
        names
    }

    fn add_slice(&mut self, slice: &EndpointSlice) {
        let Some(service) = &slice.service else {
            return;
        };
        for endpoint in &slice.endpoints {
            let known = self.endpoints.entry((service.clone(), endpoint.address));
            let known = known.or_default();
            if let Some(pod) = &endpoint.pod {
                known.pod = Some(pod.to_string());
            }
            if endpoint.node.is_some() {
                known.node.clone_from(&endpoint.node);
            }
        }
    }

    fn add_ids<A>(&mut self, tables: &FamilyTables<A>, frontends: &Frontends)
    where
        A: Ord + Copy + Into<IpAddr>,
    {
        let is_cluster_ip = |value: &Frontend| value.kind == Kind::ClusterIp as u8;
        let all = || tables.frontends.iter();
        let best = all().filter(|(_, value)| is_cluster_ip(value));
        let others = all().filter(|(_, value)| !is_cluster_ip(value));
        for (key, value) in best.chain(others) {
            let family = IpFamily::of(key.address.into());
            let known = self.protocols.entry(value.service);
            known.or_insert((family, key.proto));
            if let Some(name) = frontends.find(key, value) {
                let known = self.ids.entry(value.service);
                known.or_insert_with(|| name.clone());
            }
        }
    }

    /// True if names were looked for.
    pub(super) fn are_known(&self) -> bool {
        self.known
    }

    /// The Service and port of a service id.
    pub(super) fn port(&self, service: u32) -> Option<&PortName> {
        self.ids.get(&service)
    }

    /// The protocol number of a service id.
    pub(super) fn protocol(&self, service: u32) -> Option<u8> {
        self.protocols.get(&service).map(|(_, proto)| *proto)
    }

    /// The family of a service id.
    pub(super) fn family(&self, service: u32) -> Option<&'static str> {
        let (family, _) = self.protocols.get(&service)?;
        Some(match family {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        })
    }

    /// What the endpoint of a service id at `address` is.
    pub(super) fn endpoint(&self, service: u32, address: IpAddr) -> Option<&EndpointName> {
        let service = self.port(service)?.service.clone();
        self.endpoints.get(&(service, address))
    }

    /// The service ids of these Services.
    pub(super) fn ids_of(&self, wanted: impl Fn(&ServiceKey) -> bool) -> Vec<u32> {
        let ids = self.ids.iter();
        ids.filter(|(_, name)| wanted(&name.service))
            .map(|(id, _)| *id)
            .collect()
    }

    /// A Service as a cell of a table: its name, or its id where that is all that is known.
    pub(super) fn cell(&self, service: u32) -> String {
        match self.port(service) {
            Some(name) => name.text(),
            None if service == 0 => "-".to_owned(),
            None => format!("id {service}"),
        }
    }
}

impl Frontends {
    fn add(&mut self, service: &crate::model::service::Service, port: &ServicePort) {
        let name = PortName {
            service: service.key.clone(),
            port: port.name.clone(),
        };
        let proto = Protocol::number(port.protocol);
        // A cluster address comes last, so that it wins.
        let others = service
            .external_ips
            .iter()
            .chain(&service.load_balancer_ips);
        for address in others {
            let at = FrontendAddress::new(*address, port.port, proto);
            self.by_address.entry(at).or_insert_with(|| name.clone());
        }
        for address in &service.cluster_ips {
            let at = FrontendAddress::new(*address, port.port, proto);
            self.by_address.insert(at, name.clone());
        }
        if let Some(node_port) = port.node_port {
            self.by_node_port.insert((node_port, proto), name);
        }
    }

    fn find<A: Copy + Into<IpAddr>>(
        &self,
        key: &FrontendKey<A>,
        value: &Frontend,
    ) -> Option<&PortName> {
        if value.kind == Kind::NodePort as u8 {
            return self.by_node_port.get(&(key.port, key.proto));
        }
        let at = FrontendAddress::new(key.address.into(), key.port, key.proto);
        self.by_address.get(&at)
    }
}

/// A Service as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceArg(pub(super) ServiceKey);

impl FromStr for ServiceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self(ServiceKey::new(namespace, name)))
            }
            _ => Err("give NAMESPACE/NAME, such as default/web".to_owned()),
        }
    }
}

/// A Service of a row as a cell: its name with its port's, or its id where that is all that is known.
pub(super) fn name_cell(service: Option<&str>, port: Option<&str>, id: u32) -> String {
    match (service, port) {
        (Some(service), Some(port)) if !port.is_empty() => format!("{service} {port}"),
        (Some(service), _) => service.to_owned(),
        (None, _) => format!("id {id}"),
    }
}

/// Lines that tell what could not be read for names.
pub(super) fn problem_lines(problems: &[String]) -> String {
    let line = |problem: &String| format!("\nnot used for names: {problem}\n");
    problems.iter().map(line).collect()
}

/// Refuses a choice by name where no names are known.
pub(super) fn needs_names(names: &Names) -> Result<(), String> {
    if names.are_known() {
        return Ok(());
    }
    Err(
        "names of Services are not known here: the maps hold none; give --manifests DIR, --kubeconfig \
         FILE or --state-dir DIR, or choose by --address"
            .to_owned(),
    )
}
