// SPDX-License-Identifier: MIT OR Apache-2.0
#![doc = include_str!("../README.md")]
//!
//! Where to start reading: [`lab`] builds a cluster, [`host`] is what every node, pod,
//! client and router has in common, [`stale`] is how everything is removed again.
//! **Invariant:** nothing here touches the network namespace of its caller, and its cgroup only for
//! the time of [`Host::process`].

pub mod agent;
pub mod apiserver;
pub mod bench;
mod bridged;
mod builder;
pub mod capture;
mod cgroup;
mod checksum;
pub mod client;
pub mod container;
pub mod demo;
mod endpoint;
mod error;
pub mod host;
mod http;
pub mod lab;
pub mod manifests;
pub mod netns;
pub mod node;
mod pcap;
pub mod pod;
mod rules;
mod run;
pub mod server;
pub mod stale;
pub mod topology;
mod underlay;

pub use agent::{Agent, Signal};
pub use apiserver::{ApiServer, Fault, RealApiServer, Resource};
pub use builder::Builder;
pub use capture::{Capture, Recording};
pub use client::{HttpClient, HttpConnection, HttpReply, UdpClient};
pub use container::{Container, DaemonSet};
pub use endpoint::Endpoint;
pub use error::LabError;
pub use host::{Host, Kind};
pub use lab::{Lab, Place};
pub use manifests::{Manifests, Service};
pub use netns::NetNs;
pub use node::Node;
pub use pod::{Pod, PodAddress};
pub use run::bound;
pub use server::{Server, ServerOptions};
pub use topology::{NodeSettings, RpFilter, RuleTool, Topology, TxOffload, Underlay};
