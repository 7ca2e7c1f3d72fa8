// SPDX-License-Identifier: MIT OR Apache-2.0
//! Endpoints: where pods listen, as EndpointSlices tell it.
//!
//! Only `source` and `plan` speak of endpoints; what comes out of planning are backends.
//! **Invariant:** conditions are filled in with their defaults, and every address is of the
//! slice's family.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::service::{IpFamily, Protocol, ServiceKey};

/// Namespace and name of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SliceKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// Some of the endpoints of one Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: SliceKey,
    /// The Service it belongs to (label `kubernetes.io/service-name`), if it says.
    pub service: Option<ServiceKey>,
    /// The family of all its addresses.
    pub family: IpFamily,
    /// Not for this proxy: it belongs to a headless Service or to another proxy.
    pub skipped: bool,
    /// It holds names instead of addresses, so it has no endpoints, and its names are `rejected`.
    #[serde(default)]
    pub names: bool,
    /// The ports that each of its endpoints listens on.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that cannot be used.
    pub rejected: Vec<RejectedEndpoint>,
    /// Values of the object that cannot be used and are left out, in words.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// When what it tells of happened, in microseconds since 1970, if it says; of no meaning later.
    #[serde(skip)]
    pub triggered_micros: Option<i64>,
}

/// An entry of a slice that no traffic can be sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RejectedEndpoint {
    /// Its address as it is written there; may be empty.
    pub address: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The name of the Service's port that it serves.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number, never 0.
    pub port: u16,
}

/// One address behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// Wants new connections.
    pub ready: bool,
    /// Would answer, whether it is terminating or not.
    pub serving: bool,
    /// Is shutting down.
    pub terminating: bool,
    /// The node it runs on, if it says.
    pub node: Option<String>,
    /// The pod that it is, if it is one; nothing depends on it, it is for people.
    #[serde(default)]
    pub pod: Option<Box<str>>,
    /// Zones that should use it.
    pub zone_hints: BTreeSet<String>,
    /// Nodes that should use it.
    pub node_hints: BTreeSet<String>,
    /// Its share of new flows in relation to the others', at most [`WEIGHT_MAX`]; with 0 it gets
    /// none while an endpoint with more is in the same list.
    #[serde(default = "default_weight")]
    pub weight: u8,
}

/// The weight of an endpoint of which nothing is said.
pub const WEIGHT_DEFAULT: u8 = 1;
/// The largest weight.
pub const WEIGHT_MAX: u8 = 100;

fn default_weight() -> u8 {
    WEIGHT_DEFAULT
}
