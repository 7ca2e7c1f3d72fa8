// SPDX-License-Identifier: MIT OR Apache-2.0
//! What planning has to say about a Service that it could not serve in full.
//!
//! **Invariant:** a warning concerns one Service and never stops the planning of another; the rest
//! of that Service is served.

use std::fmt;
use std::net::IpAddr;

use super::claims::FrontendAddress;
use super::{ALGORITHMS, algorithm_name};
use crate::model::service::ServiceKey;

/// Something about one Service that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warning {
    /// A value of the object that cannot be used and is left out, in words.
    Ignored(String),
    /// An endpoint of the slice of this name that no traffic can be sent to, and why.
    EndpointRejected(String, String),
    /// A slice cannot be read now, and its last good state is in force; in words.
    Unreadable(String),
    /// A slice cannot be read, and no good state of it is known; in words.
    NeverRead(String),
    /// There are node ports, but no address of this node is known.
    NoNodeAddress(String),
    /// An address of a family in which the Service has no cluster address; it is not served.
    NoFamily(IpAddr),
    /// The annotation names no algorithm; the global one is used.
    UnknownAlgorithm(String),
    /// A cluster address that a device of this node has: the host answers there.
    LeftToHost(IpAddr),
    /// Another Service has this frontend.
    FrontendTaken(FrontendAddress, ServiceKey),
    /// Another port of the same Service has this frontend.
    FrontendRepeated(FrontendAddress),
    /// Another Service has its health check at this port.
    HealthCheckTaken(u16, ServiceKey),
    /// All ids are in use: this port has no frontend or not all its backends.
    IdsExhausted(String),
    /// The port has more endpoints than a list can hold; the last ones get no traffic.
    TooManyEndpoints {
        /// The port in words.
        port: String,
        /// Endpoints that it has.
        count: usize,
        /// Endpoints that a list can hold.
        limit: u32,
    },
    /// EndpointSlices exist, so the classic Endpoints object is not used.
    EndpointsIgnored,
}

impl Warning {
    /// The kind of warning in one word, as in Events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Ignored(_) => "InvalidField",
            Self::EndpointRejected(..) => "InvalidEndpoint",
            Self::Unreadable(_) | Self::NeverRead(_) => "Invalid",
            Self::NoNodeAddress(_) => "NoNodeAddress",
            Self::NoFamily(_) => "NoClusterAddress",
            Self::UnknownAlgorithm(_) => "UnknownAlgorithm",
            Self::LeftToHost(_) => "LeftToHost",
            Self::FrontendTaken(..) => "FrontendTaken",
            Self::FrontendRepeated(_) => "FrontendRepeated",
            Self::HealthCheckTaken(..) => "HealthCheckTaken",
            Self::IdsExhausted(_) => "IdsExhausted",
            Self::TooManyEndpoints { .. } => "TooManyEndpoints",
            Self::EndpointsIgnored => "EndpointsIgnored",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignored(what) => f.write_str(what),
            Self::EndpointRejected(slice, reason) => {
                write!(f, "EndpointSlice {slice}: {reason}, gets no traffic")
            }
            Self::Unreadable(what) => write!(f, "{what}; its last good state is in force"),
            Self::NeverRead(what) => {
                write!(f, "{what}; no state of it is known that could be read")
            }
            Self::NoNodeAddress(node) => write!(
                f,
                "node ports are not served: no address of Node {node} is known, or \
                 --nodeport-addresses excludes all of them"
            ),
            Self::NoFamily(address) => write!(
                f,
                "{address} is not served: the Service has no cluster address of that family"
            ),
            Self::UnknownAlgorithm(value) => write!(
                f,
                "annotation lb-agent/algorithm: unknown algorithm {value:?} (known: {}), the node's \
                 own is used",
                ALGORITHMS.map(algorithm_name).join(", ")
            ),
            Self::LeftToHost(address) => write!(
                f,
                "{address} is on a device of this node, so it is left to the host, as NodeLocal \
                 DNSCache needs it; --local-cluster-ips=serve serves it"
            ),
            Self::FrontendTaken(frontend, owner) => {
                write!(
                    f,
                    "{frontend} belongs to Service {owner}, which is older or first by name, or has \
                     it as an address of its own"
                )
            }
            Self::FrontendRepeated(frontend) => {
                write!(
                    f,
                    "{frontend} is named by two ports, the first one has it, or the one of which it \
                     is no node port"
                )
            }
            Self::HealthCheckTaken(port, owner) => {
                write!(
                    f,
                    "healthCheckNodePort {port} belongs to Service {owner}, which is older or first by \
                     name: this one has no health check"
                )
            }
            Self::IdsExhausted(port) => {
                write!(
                    f,
                    "port {port}: all ids are in use, it is served in part or not at all"
                )
            }
            Self::TooManyEndpoints { port, count, limit } => write!(
                f,
                "port {port}: {count} endpoints, of which {limit} fit and the rest get no traffic"
            ),
            Self::EndpointsIgnored => f.write_str(
                "Endpoints object ignored, because the Service has EndpointSlices of its own",
            ),
        }
    }
}
