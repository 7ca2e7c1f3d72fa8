// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who owns a frontend that several Services want.
//!
//! Two Services may name the same address, port and protocol. The oldest gets it, by creation time
//! and then by name, but a cluster address comes before and a node port after the others; the rest get a warning, and
//! it when the owner lets go. The same goes for the port of a health check, by age and name alone.
//! **Invariant:** the answer depends on the set of claims only, never on the order they came in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use lb_common::abi::Kind;

use crate::model::service::{IpFamily, Service, ServiceKey, ServicePort};
use crate::model::tables;

/// Address, port and protocol number of a frontend of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendAddress {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol number of IANA.
    pub proto: u8,
}

impl FrontendAddress {
    /// The frontend at `address:port` of the protocol number `proto`.
    pub fn new(address: IpAddr, port: u16, proto: u8) -> Self {
        Self {
            address,
            port,
            proto,
        }
    }
}

impl fmt::Display for FrontendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = tables::socket(self.address, self.port);
        write!(f, "{socket} {}", tables::protocol_name(self.proto))
    }
}

/// Rank of a claim: by kind, then objects of unknown age come last, equals in the order of names.
type Claim = (Rank, i64, ServiceKey);

/// How strong the claim of a kind of frontend is: a cluster address is allotted by the API server,
/// so nobody takes one away by naming it, and a node port comes after every address of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Allotted,
    Named,
    NodePort,
}

impl Rank {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::ClusterIp => Self::Allotted,
            Kind::ExternalIp | Kind::LoadBalancer => Self::Named,
            Kind::NodePort => Self::NodePort,
        }
    }
}

/// What one Service claims: its age, and each frontend with the rank of the claim.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    created_secs: i64,
    frontends: Vec<(FrontendAddress, Rank)>,
    health_check: Option<u16>,
}

/// All claims of all Services.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// In the order of their ranks; nearly always one.
    by_frontend: BTreeMap<FrontendAddress, Vec<Claim>>,
    by_service: BTreeMap<ServiceKey, Share>,
    /// By age and name; nearly always one.
    by_health_check: BTreeMap<u16, BTreeSet<(i64, ServiceKey)>>,
    /// How many frontends that are no node ports each address has.
    virtual_ips: BTreeMap<IpAddr, u32>,
}

impl Claims {
    /// Replaces the claims of the Service `key`, none if it is gone, on a node that serves node
    /// ports at `node_ports`. Answers with the other Services that must be planned again, because
    /// an owner may have changed.
    pub fn set(
        &mut self,
        key: &ServiceKey,
        service: Option<&Service>,
        node_ports: &[IpAddr],
    ) -> BTreeSet<ServiceKey> {
        let mut frontends = service.map_or_else(Vec::new, |s| all_wanted_by(s, node_ports));
        frontends.sort_unstable();
        frontends.dedup_by_key(|(at, _)| *at);
        let share = Share {
            created_secs: service.and_then(|s| s.created_secs).unwrap_or(i64::MAX),
            frontends,
            health_check: service
                .filter(|s| s.is_served())
                .and_then(Service::health_check),
        };
        if self.by_service.get(key) == Some(&share) {
            return BTreeSet::new();
        }
        let mut rivals = BTreeSet::new();
        if let Some(before) = self.by_service.remove(key) {
            for (at, rank) in before.frontends {
                self.withdraw(at, &(rank, before.created_secs, key.clone()), &mut rivals);
            }
            if let Some(port) = before.health_check
                && let Some(claims) = self.by_health_check.get_mut(&port)
            {
                claims.remove(&(before.created_secs, key.clone()));
                rivals.extend(claims.iter().map(|(_, rival)| rival.clone()));
                if claims.is_empty() {
                    self.by_health_check.remove(&port);
                }
            }
        }
        for (at, rank) in &share.frontends {
            let claim = (*rank, share.created_secs, key.clone());
            self.enter(*at, claim, &mut rivals);
        }
        if let Some(port) = share.health_check {
            let claims = self.by_health_check.entry(port).or_default();
            rivals.extend(claims.iter().map(|(_, rival)| rival.clone()));
            claims.insert((share.created_secs, key.clone()));
        }
        if !share.frontends.is_empty() || share.health_check.is_some() {
            self.by_service.insert(key.clone(), share);
        }
        rivals
    }

    fn enter(&mut self, at: FrontendAddress, claim: Claim, rivals: &mut BTreeSet<ServiceKey>) {
        if claim.0 != Rank::NodePort {
            *self.virtual_ips.entry(at.address).or_default() += 1;
        }
        let Some(claims) = self.by_frontend.get_mut(&at) else {
            self.by_frontend.insert(at, vec![claim]);
            return;
        };
        rivals.extend(claims.iter().map(|(_, _, rival)| rival.clone()));
        let place = claims.partition_point(|other| *other < claim);
        claims.insert(place, claim);
    }

    fn withdraw(&mut self, at: FrontendAddress, claim: &Claim, rivals: &mut BTreeSet<ServiceKey>) {
        if claim.0 != Rank::NodePort
            && let Some(uses) = self.virtual_ips.get_mut(&at.address)
        {
            *uses -= 1;
            if *uses == 0 {
                self.virtual_ips.remove(&at.address);
            }
        }
        let Some(claims) = self.by_frontend.get_mut(&at) else {
            return;
        };
        claims.retain(|other| other != claim);
        rivals.extend(claims.iter().map(|(_, _, rival)| rival.clone()));
        if claims.is_empty() {
            self.by_frontend.remove(&at);
        }
    }

    /// The Service that gets `frontend`.
    pub fn owner(&self, frontend: &FrontendAddress) -> Option<&ServiceKey> {
        let first = self.by_frontend.get(frontend)?.first()?;
        Some(&first.2)
    }

    /// The Service that has its health check at `port`.
    pub fn health_check_owner(&self, port: u16) -> Option<&ServiceKey> {
        let (_, first) = self.by_health_check.get(&port)?.first()?;
        Some(first)
    }

    /// The Services that name `address`, in whatever way.
    pub fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &ServiceKey> {
        let first = FrontendAddress::new(address, 0, 0);
        let last = FrontendAddress::new(address, u16::MAX, u8::MAX);
        let claims = self.by_frontend.range(first..=last);
        claims.flat_map(|(_, claims)| claims.iter().map(|(_, _, key)| key))
    }

    /// True when `address` is a cluster, external or load balancer address of some Service.
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        self.virtual_ips.contains_key(&address)
    }
}

/// Every frontend that `port` of `service` names in `family`, in the order in which kube-proxy
/// looks for them; none in a family in which the Service has no virtual address.
pub(super) fn wanted_by<'a>(
    service: &'a Service,
    port: &'a ServicePort,
    family: IpFamily,
    node_ports: &'a [IpAddr],
) -> impl Iterator<Item = (FrontendAddress, Kind)> + 'a {
    let mut own = service.cluster_ips.iter();
    let has_family = own.any(|ip| IpFamily::of(*ip) == family);
    let proto = port.protocol.number();
    let at = move |number: u16, kind: Kind| {
        move |ip: &IpAddr| (FrontendAddress::new(*ip, number, proto), kind)
    };
    let addresses = service
        .cluster_ips
        .iter()
        .map(at(port.port, Kind::ClusterIp));
    let addresses = addresses.chain(
        service
            .external_ips
            .iter()
            .map(at(port.port, Kind::ExternalIp)),
    );
    let balancer = service.load_balancer_ips.iter();
    let addresses = addresses.chain(balancer.map(at(port.port, Kind::LoadBalancer)));
    let on_nodes = port.node_port.into_iter();
    let on_nodes =
        on_nodes.flat_map(move |number| node_ports.iter().map(at(number, Kind::NodePort)));
    addresses
        .chain(on_nodes)
        .filter(move |(at, _)| has_family && IpFamily::of(at.address) == family)
}

fn all_wanted_by(service: &Service, node_ports: &[IpAddr]) -> Vec<(FrontendAddress, Rank)> {
    if !service.is_served() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for port in &service.ports {
        for family in [IpFamily::V4, IpFamily::V6] {
            let wanted = wanted_by(service, port, family, node_ports);
            found.extend(wanted.map(|(at, kind)| (at, Rank::of(kind))));
        }
    }
    found.shrink_to_fit();
    found
}
