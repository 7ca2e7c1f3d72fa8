// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a load balancer is told about this node, for Services that ask for it.
//!
//! **Invariant:** only endpoints that are ready count, so that load balancers drain a node while
//! endpoints that are shutting down still serve what comes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::PlanContext;
use crate::model::service::{IpFamily, ServiceKey};
use crate::model::snapshot::ServiceSnapshot;

/// The health check of one Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceKey,
    /// The port that it is asked at.
    pub port: u16,
    /// Endpoints on this node that are ready, each address once.
    pub local_endpoints: usize,
}

/// The health check that the Service asks for, if it does and no other Service has the port.
pub fn health_check(
    snapshot: &ServiceSnapshot<'_>,
    context: PlanContext<'_>,
) -> Option<HealthCheck> {
    let service = snapshot.service;
    if !service.is_served() {
        return None;
    }
    let port = service.health_check()?;
    if context.claims.health_check_owner(port) != Some(&service.key) {
        return None;
    }
    // Both families of one pod are one endpoint.
    let family = IpFamily::of(*service.cluster_ips.first()?);
    let slices = snapshot.slices.iter();
    let slices = slices.filter(|s| !s.skipped && s.family == family && !s.ports.is_empty());
    let local: BTreeSet<IpAddr> = slices
        .flat_map(|slice| &slice.endpoints)
        .filter(|e| e.ready && e.node.as_deref() == Some(context.node.name))
        .map(|endpoint| endpoint.address)
        .collect();
    Some(HealthCheck {
        service: service.key.clone(),
        port,
        local_endpoints: local.len(),
    })
}
