// SPDX-License-Identifier: MIT OR Apache-2.0
//! Services and Nodes, with the fields that planning reads.
//!
//! **Invariant:** values are checked and defaults are filled in by the source, as the API server
//! would do; nothing here can be half valid.

use std::fmt;
use std::net::IpAddr;

use lb_common::abi::proto;
use serde::{Deserialize, Serialize};

use super::prefix::Prefix;

/// Namespace and name of a Service. Ordered by namespace first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ServiceKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// A transport protocol that a port may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// Transmission Control Protocol.
    #[default]
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

impl Protocol {
    /// The protocol number of IANA.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
            Self::Sctp => proto::SCTP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The name; empty for the only port of a Service.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port that clients dial, never 0.
    pub port: u16,
    /// The port on every node's own address, if one is allotted.
    pub node_port: Option<u16>,
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "{}/{}", self.port, self.protocol)
        } else {
            write!(f, "{} ({}/{})", self.name, self.port, self.protocol)
        }
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Inside the cluster only.
    #[default]
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also on the addresses of a load balancer.
    LoadBalancer,
    /// An alias in DNS, nothing to forward.
    ExternalName,
}

/// Which endpoints a frontend may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All of the cluster's.
    #[default]
    Cluster,
    /// Those on this node only.
    Local,
}

/// A Service, as far as it matters to forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// Tells two Services of one name apart that lived one after the other; may be empty.
    pub uid: String,
    /// Seconds since 1970 at which the object was created, if the source knows.
    pub created_secs: Option<i64>,
    /// The type.
    pub service_type: ServiceType,
    /// Virtual addresses inside the cluster; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// Addresses outside the cluster that are routed to its nodes.
    pub external_ips: Vec<IpAddr>,
    /// Addresses that a load balancer announces with the virtual IP mode.
    pub load_balancer_ips: Vec<IpAddr>,
    /// The policy for traffic from inside the cluster.
    pub internal_policy: TrafficPolicy,
    /// The policy for traffic from outside.
    pub external_policy: TrafficPolicy,
    /// Who may dial the load balancer's addresses, of both families; empty for everybody.
    pub source_ranges: Vec<Prefix>,
    /// The port at which a load balancer asks whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// Seconds for which a client keeps its backend; none without session affinity.
    pub affinity_timeout_secs: Option<u32>,
    /// Another proxy serves it (label `service.kubernetes.io/service-proxy-name`).
    pub other_proxy: bool,
    /// The value of the annotation `lb-agent/algorithm`.
    pub algorithm: Option<String>,
    /// Values of the object that cannot be used and are left out, in words.
    pub ignored: Vec<String>,
}

impl Service {
    /// True when it has virtual addresses that this proxy serves.
    pub fn is_served(&self) -> bool {
        !self.other_proxy
            && self.service_type != ServiceType::ExternalName
            && !self.cluster_ips.is_empty()
    }

    /// True when clients outside the cluster can dial it.
    pub fn is_externally_accessible(&self) -> bool {
        !self.external_ips.is_empty()
            || !self.load_balancer_ips.is_empty()
            || self.ports.iter().any(|port| port.node_port.is_some())
    }

    /// True when traffic from outside may use this node's endpoints only.
    pub fn is_external_policy_local(&self) -> bool {
        let applies = match self.service_type {
            ServiceType::NodePort | ServiceType::LoadBalancer => true,
            ServiceType::ClusterIp => !self.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        };
        applies && self.external_policy == TrafficPolicy::Local
    }

    /// True when some frontend uses the endpoints of the whole cluster.
    pub fn uses_cluster(&self) -> bool {
        self.internal_policy == TrafficPolicy::Cluster || self.is_externally_accessible()
    }

    /// True when some frontend uses this node's endpoints only.
    pub fn uses_local(&self) -> bool {
        self.internal_policy == TrafficPolicy::Local
            || (self.is_external_policy_local() && self.is_externally_accessible())
    }

    /// The port of its health check, if it has one: load balancers of the policy Local only.
    pub fn health_check(&self) -> Option<u16> {
        let asked =
            self.service_type == ServiceType::LoadBalancer && self.is_external_policy_local();
        self.health_check_node_port.filter(|_| asked)
    }
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The name.
    pub name: String,
    /// Its own addresses, internal ones first.
    pub addresses: Vec<IpAddr>,
    /// The address ranges of its pods.
    pub pod_cidrs: Vec<Prefix>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Its object is being deleted, or the autoscaler is about to remove it.
    #[serde(default)]
    pub leaving: bool,
}

impl Node {
    /// True when both mean the same to planning.
    pub fn plans_like(&self, other: &Self) -> bool {
        let same = |node: &Self| Self {
            leaving: false,
            ..node.clone()
        };
        same(self) == same(other)
    }
}
