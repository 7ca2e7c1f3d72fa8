// SPDX-License-Identifier: MIT OR Apache-2.0
//! End to end: the real agent, the real kernel, real sockets in a cluster of namespaces.
//!
//! One file per theme, one program for all, because linking is slower than most tests.
//! **Invariant:** nothing is tried twice, and a connect that takes half a second or a SYN that
//! is sent again is a failure: a lost packet hides in a retry. Read next: `cluster.rs`.

#[path = "../common/mod.rs"]
mod common;

#[macro_use]
mod cluster;
mod affinity;
mod brief;
mod bulk;
mod chart;
mod clusterip;
mod collisions;
mod contained;
mod dns;
mod drain;
mod early;
mod external;
mod fixed_port;
mod flood;
mod fragments;
mod from_api;
mod handover;
mod inspect;
mod kubernetes;
mod lifecycle;
mod load;
mod marks;
mod masqueraded;
mod nodeport;
mod not_ours;
mod path_mtu;
mod pod_sockets;
mod ports;
mod readme;
mod reject;
mod removals;
mod rules;
mod sockets;
mod steady;
mod traffic;
mod updates;
mod upgrades;
mod verbs;
