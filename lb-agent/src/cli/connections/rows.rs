// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection as it is shown, and a socket that was led to a backend.
//!
//! **Invariant:** numbers and addresses as the maps have them; what is not known is left out of the JSON
//! and is `-` in the table.

use std::net::IpAddr;

use serde::Serialize;

use crate::cli::columns::{Column, number, text};
use crate::cli::look::{bytes_text, time_text};
use crate::cli::names::Names;
use crate::datapath::{Flow, FlowState, SocketFlow};
use crate::model::tables::{protocol_name, socket};

pub(super) const CONNECTIONS: [Column; 10] = [
    text("SERVICE"),
    text("CLIENT"),
    text("FRONTEND"),
    text("BACKEND"),
    text("STATE"),
    number("IDLE"),
    number("PACKETS"),
    number("BYTES"),
    text("MASQUERADED"),
    text("POD"),
];

pub(super) const SOCKETS: [Column; 6] = [
    text("SERVICE"),
    text("SOCKET"),
    text("FRONTEND"),
    text("BACKEND"),
    number("IDLE"),
    text("POD"),
];

/// Who a flow belongs to.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    /// `namespace/name`, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_name: Option<String>,
    service_id: u32,
    /// Of the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip)]
    cell: String,
}

impl Owner {
    fn new(service: u32, backend: IpAddr, names: &Names) -> Self {
        let name = names.port(service);
        let endpoint = names.endpoint(service, backend);
        Self {
            service: name.map(|name| name.service.to_string()),
            port_name: name.map(|name| name.port.clone()),
            service_id: service,
            pod: endpoint.and_then(|endpoint| endpoint.pod.clone()),
            cell: names.cell(service),
        }
    }

    fn pod_cell(&self) -> String {
        self.pod.clone().unwrap_or_else(|| "-".to_owned())
    }
}

/// A connection.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionText {
    #[serde(flatten)]
    owner: Owner,
    protocol: String,
    state: &'static str,
    client_address: IpAddr,
    client_port: u16,
    frontend_address: IpAddr,
    frontend_port: u16,
    backend_address: IpAddr,
    backend_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    masquerade_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    masquerade_port: Option<u16>,
    /// From the client.
    sent_packets: u64,
    sent_bytes: u64,
    /// To the client.
    received_packets: u64,
    received_bytes: u64,
    idle_seconds: u32,
    age_seconds: u32,
}

impl ConnectionText {
    pub(super) fn new(flow: &Flow, names: &Names) -> Self {
        Self {
            owner: Owner::new(flow.service, flow.backend.0, names),
            protocol: protocol_name(flow.proto),
            state: state_name(flow.state),
            client_address: flow.client.0,
            client_port: flow.client.1,
            frontend_address: flow.frontend.0,
            frontend_port: flow.frontend.1,
            backend_address: flow.backend.0,
            backend_port: flow.backend.1,
            masquerade_address: flow.masquerade.map(|(address, _)| address),
            masquerade_port: flow.masquerade.map(|(_, port)| port),
            sent_packets: flow.sent.0,
            sent_bytes: flow.sent.1,
            received_packets: flow.received.0,
            received_bytes: flow.received.1,
            idle_seconds: flow.idle_secs,
            age_seconds: flow.age_secs,
        }
    }

    pub(super) fn cells(&self) -> Vec<String> {
        let frontend = socket(self.frontend_address, self.frontend_port);
        let masquerade = self.masquerade_address.zip(self.masquerade_port);
        let (sent, received) = (bytes_text(self.sent_bytes), bytes_text(self.received_bytes));
        vec![
            self.owner.cell.clone(),
            socket(self.client_address, self.client_port),
            format!("{frontend} {}", self.protocol),
            socket(self.backend_address, self.backend_port),
            self.state.to_owned(),
            time_text(self.idle_seconds),
            format!("{}/{}", self.sent_packets, self.received_packets),
            format!("{sent}/{received}"),
            masquerade.map_or_else(|| "-".to_owned(), |(address, port)| socket(address, port)),
            self.owner.pod_cell(),
        ]
    }
}

fn state_name(state: FlowState) -> &'static str {
    match state {
        FlowState::HalfOpen => "half-open",
        FlowState::Established => "established",
        FlowState::Closing => "closing",
        FlowState::Closed => "closed",
        FlowState::Reset => "reset",
    }
}

/// A socket that was led to a backend.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SocketText {
    #[serde(flatten)]
    owner: Owner,
    protocol: String,
    socket_cookie: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_port: Option<u16>,
    frontend_address: IpAddr,
    frontend_port: u16,
    backend_address: IpAddr,
    backend_port: u16,
    idle_seconds: u32,
}

impl SocketText {
    pub(super) fn new(flow: &SocketFlow, names: &Names) -> Self {
        Self {
            owner: Owner::new(flow.service, flow.backend.0, names),
            protocol: protocol_name(flow.proto),
            socket_cookie: flow.cookie,
            client_address: flow.local.map(|local| local.ip()),
            client_port: flow.local.map(|local| local.port()),
            frontend_address: flow.frontend.0,
            frontend_port: flow.frontend.1,
            backend_address: flow.backend.0,
            backend_port: flow.backend.1,
            idle_seconds: flow.idle_secs,
        }
    }

    pub(super) fn cells(&self) -> Vec<String> {
        let frontend = socket(self.frontend_address, self.frontend_port);
        let local = self.client_address.zip(self.client_port);
        vec![
            self.owner.cell.clone(),
            local.map_or_else(
                || format!("cookie {}, gone or of a pod", self.socket_cookie),
                |(address, port)| socket(address, port),
            ),
            format!("{frontend} {}", self.protocol),
            socket(self.backend_address, self.backend_port),
            time_text(self.idle_seconds),
            self.owner.pod_cell(),
        ]
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
