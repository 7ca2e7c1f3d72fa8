// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single fields of Kubernetes objects, checked.
//!
//! Each function takes the path of its field, so that the error can name it.
//! **Invariant:** what comes out needs no second check.

use std::net::IpAddr;

use crate::model::prefix::Prefix;
use crate::model::service::{Protocol, TrafficPolicy};

/// A field has a value that no API server would accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub(crate) struct FieldError {
    /// The path of the field, such as `spec.ports[0].port`.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) message: String,
}

pub(super) type Result<T> = std::result::Result<T, FieldError>;

pub(super) fn error<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T> {
    Err(FieldError {
        field: field.into(),
        message: message.into(),
    })
}

pub(super) fn policy(field: &str, value: Option<&str>) -> Result<TrafficPolicy> {
    match value {
        None | Some("Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => error(field, format!("unknown policy {other:?}")),
    }
}

pub(super) fn protocol(field: &str, value: Option<&str>) -> Result<Protocol> {
    match value {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => error(field, format!("unknown protocol {other:?}")),
    }
}

pub(super) fn port_number(field: &str, value: i32) -> Result<u16> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => error(field, format!("{value} is not a port (1 to 65535)")),
    }
}

pub(super) fn address(field: &str, text: &str) -> Result<IpAddr> {
    match text.trim().parse() {
        Ok(address) => Ok(address),
        Err(_) => error(field, format!("{text:?} is not an IP address")),
    }
}

/// Those of `list` that `parse` understands; the others are told to `ignored`.
pub(super) fn lenient<T>(
    field: &str,
    list: Option<&[String]>,
    parse: impl Fn(&str, &str) -> Result<T>,
    ignored: &mut Vec<String>,
) -> Vec<T> {
    let mut found = Vec::new();
    for (at, text) in list.unwrap_or_default().iter().enumerate() {
        match parse(&format!("{field}[{at}]"), text) {
            Ok(value) => found.push(value),
            Err(error) => ignored.push(format!("{error}, ignored")),
        }
    }
    found
}

pub(super) fn addresses(field: &str, list: Option<&[String]>) -> Result<Vec<IpAddr>> {
    let list = list.unwrap_or_default().iter().enumerate();
    list.map(|(at, text)| address(&format!("{field}[{at}]"), text))
        .collect()
}

/// An address outside the cluster that clients may dial.
pub(super) fn external_address(field: &str, text: &str) -> Result<IpAddr> {
    let found = address(field, text)?;
    match special(found) {
        Some(kind) => error(field, format!("{found} is {kind} and cannot be dialled")),
        None => Ok(found),
    }
}

/// What makes an address useless to other hosts, in words.
fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

/// An address that traffic can be sent to from another host.
pub(super) fn endpoint_address(field: &str, text: &str) -> Result<IpAddr> {
    let found = address(field, text)?;
    match special(found) {
        Some(kind) => error(
            field,
            format!("{found} is {kind} and cannot be an endpoint"),
        ),
        None => Ok(found),
    }
}

pub(super) fn cidr(field: &str, text: &str) -> Result<Prefix> {
    text.parse()
        .or_else(|_| error(field, format!("{text:?} is not an address range")))
}
