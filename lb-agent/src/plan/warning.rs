// SPDX-License-Identifier: MIT OR Apache-2.0
//! What planning has to say about a Service that it could not serve in full.
//!
//! **Invariant:** a warning concerns one Service and never stops the planning of another; the rest
//! of that Service is served.

use std::fmt;

use super::claims::FrontendAddress;
use crate::model::service::ServiceKey;

/// Something about one Service that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warning {
    /// A part of the object that this version does not forward.
    NotServedYet(String),
    /// The annotation names no algorithm; the global one is used.
    UnknownAlgorithm(String),
    /// Another Service has this frontend.
    FrontendTaken(FrontendAddress, ServiceKey),
    /// Another port of the same Service has this frontend.
    FrontendRepeated(FrontendAddress),
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

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotServedYet(what) => write!(f, "{what}: not served yet"),
            Self::UnknownAlgorithm(value) => write!(
                f,
                "annotation lb-agent/algorithm: unknown algorithm {value:?} (known: round-robin, \
                 random), the node's own is used"
            ),
            Self::FrontendTaken(frontend, owner) => {
                write!(
                    f,
                    "{frontend} belongs to Service {owner}, which is older or first by name"
                )
            }
            Self::FrontendRepeated(frontend) => {
                write!(f, "{frontend} is named by two ports, the first one has it")
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
