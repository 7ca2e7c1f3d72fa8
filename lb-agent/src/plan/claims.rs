// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who owns a frontend that several Services want.
//!
//! Two Services may name the same address, port and protocol. The oldest gets it, by creation time
//! and then by name; the others get a warning, and it when the owner lets go.
//! **Invariant:** the answer depends on the set of claims only, never on the order they came in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::model::service::{Service, ServiceKey};
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

/// Rank of a claim: objects of unknown age come last, equals in the order of their names.
type Claim = (i64, ServiceKey);

/// All claims of all Services.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    by_frontend: BTreeMap<FrontendAddress, BTreeSet<Claim>>,
    by_service: BTreeMap<ServiceKey, (Claim, Vec<FrontendAddress>)>,
}

impl Claims {
    /// Replaces the claims of the Service `key`, none if it is gone. Answers with the other
    /// Services that must be planned again, because an owner may have changed.
    pub fn set(&mut self, key: &ServiceKey, service: Option<&Service>) -> BTreeSet<ServiceKey> {
        let mut frontends = service.map(wanted_by).unwrap_or_default();
        frontends.sort_unstable();
        frontends.dedup();
        let created = service.and_then(|s| s.created_secs).unwrap_or(i64::MAX);
        let claim = (created, key.clone());
        let before = self.by_service.remove(key);
        if before
            .as_ref()
            .is_some_and(|b| b.0 == claim && b.1 == frontends)
        {
            self.by_service.insert(key.clone(), (claim, frontends));
            return BTreeSet::new();
        }
        let mut rivals = BTreeSet::new();
        for (old_claim, frontend) in before
            .iter()
            .flat_map(|(c, all)| all.iter().map(move |f| (c, f)))
        {
            if let Some(claims) = self.by_frontend.get_mut(frontend) {
                claims.remove(old_claim);
                rivals.extend(claims.iter().map(|(_, rival)| rival.clone()));
                if claims.is_empty() {
                    self.by_frontend.remove(frontend);
                }
            }
        }
        for frontend in &frontends {
            let claims = self.by_frontend.entry(*frontend).or_default();
            rivals.extend(claims.iter().map(|(_, rival)| rival.clone()));
            claims.insert(claim.clone());
        }
        if !frontends.is_empty() {
            self.by_service.insert(key.clone(), (claim, frontends));
        }
        rivals
    }

    /// The Service that gets `frontend`.
    pub fn owner(&self, frontend: &FrontendAddress) -> Option<&ServiceKey> {
        let first = self.by_frontend.get(frontend)?.first()?;
        Some(&first.1)
    }
}

/// Every frontend that `service` names.
fn wanted_by(service: &Service) -> Vec<FrontendAddress> {
    if !service.is_served() {
        return Vec::new();
    }
    let ports = || service.ports.iter();
    service
        .cluster_ips
        .iter()
        .flat_map(|ip| ports().map(|p| FrontendAddress::new(*ip, p.port, p.protocol.number())))
        .collect()
}
