// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks the kernel for devices, addresses, routes and filters, and reads its messages.
//!
//! Full lists are taken at start, after lost messages and at every audit; `view.rs` keeps what
//! they say, `follow.rs` acts on it.
//! **Invariant:** nothing is changed here.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "messages carry many attributes, most of which are no matter here"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::attach::{FILTER_HANDLE, Filters, Hook};
use super::devices::LinkFacts;
use super::error::DatapathError;
use super::view::View;

/// Names of our programs begin like this, also as filters.
const PROGRAM_PREFIX: &str = "lb_tc_";

/// Lists everything that decides which devices are managed and how.
pub(super) async fn list(handle: &Handle) -> Result<View, DatapathError> {
    let mut view = View::default();
    for link in collect("devices", handle.link().get().execute()).await? {
        view.put_link(link_facts(&link));
    }
    for address in collect("addresses", handle.address().get().execute()).await? {
        if let Some(address) = global_address(&address) {
            view.put_address(address.0, address.1);
        }
    }
    view.set_default_routes(list_default_routes(handle).await?);
    for index in list_clsact(handle).await? {
        view.put_filters(index, list_filters(handle, index).await?);
    }
    Ok(view)
}

/// One device, or none when it has gone.
pub(super) async fn get_link(handle: &Handle, index: u32) -> Option<LinkFacts> {
    let request = handle.link().get().match_index(index);
    let links = collect("a device", request.execute()).await.ok()?;
    links.first().map(link_facts)
}

/// Devices that a default route of either family leads out of.
pub(super) async fn list_default_routes(handle: &Handle) -> Result<Vec<u32>, DatapathError> {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut devices = Vec::new();
    for request in [v4, v6] {
        for route in collect("routes", handle.route().get(request).execute()).await? {
            if is_default_route(&route) {
                devices.extend(route_devices(&route));
            }
        }
    }
    Ok(devices)
}

/// Devices that have a clsact qdisc.
async fn list_clsact(handle: &Handle) -> Result<Vec<u32>, DatapathError> {
    let qdiscs = collect("queueing disciplines", handle.qdisc().get().execute()).await?;
    Ok(qdiscs
        .iter()
        .filter(|qdisc| kind(qdisc) == Some("clsact"))
        .filter_map(|qdisc| u32::try_from(qdisc.header.index).ok())
        .collect())
}

/// What is on a device's clsact qdisc; nothing when it has none.
pub(super) async fn list_filters(handle: &Handle, index: u32) -> Result<Filters, DatapathError> {
    let Ok(device) = i32::try_from(index) else {
        return Ok(Filters::default());
    };
    let get = || handle.traffic_filter(device).get();
    let mut filters = Filters::default();
    for filter in collect("filters", get().ingress().execute()).await? {
        filters.ours_ingress |= is_ours(&filter, Hook::Ingress);
    }
    for filter in collect("filters", get().egress().execute()).await? {
        if is_ours(&filter, Hook::Egress) {
            filters.ours_egress = true;
        } else {
            // The head of a priority has handle 0 and is no filter by itself.
            filters.foreign_egress |= u32::from(filter.header.handle) != 0;
        }
    }
    Ok(filters)
}

async fn collect<T>(
    what: &'static str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, DatapathError> {
    stream
        .try_collect()
        .await
        .map_err(|source| DatapathError::List {
            what,
            source: Box::new(source),
        })
}

/// The facts in a message about a device.
pub(super) fn link_facts(message: &LinkMessage) -> LinkFacts {
    let mut facts = LinkFacts {
        index: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..LinkFacts::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.name.clone_from(name),
            LinkAttribute::Controller(master) => facts.master = *master,
            LinkAttribute::Link(peer) => facts.peer = *peer,
            // The kernel writes -1 for a namespace that has no id yet.
            LinkAttribute::LinkNetNsId(id) => facts.peer_netns = u32::try_from(*id).ok(),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        facts.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    facts
}

/// Device and address, when the address means something outside of its link.
pub(super) fn global_address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let mut found = None;
    for attribute in &message.attributes {
        // On a point-to-point device `Address` is the far end and `Local` the near one.
        match attribute {
            AddressAttribute::Local(address) => return Some((message.header.index, *address)),
            AddressAttribute::Address(address) => found = Some((message.header.index, *address)),
            _ => {}
        }
    }
    found
}

/// True for a route that takes whatever no other route takes.
pub(super) fn is_default_route(message: &RouteMessage) -> bool {
    let inet = matches!(
        message.header.address_family,
        AddressFamily::Inet | AddressFamily::Inet6
    );
    inet && message.header.destination_prefix_length == 0
        && message.header.kind == RouteType::Unicast
}

fn route_devices(message: &RouteMessage) -> Vec<u32> {
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices
}

/// True for the filter that `attach.rs` makes at `hook`.
fn is_ours(message: &TcMessage, hook: Hook) -> bool {
    let priority = u16::try_from(message.header.info >> 16).unwrap_or(0);
    priority == hook.priority()
        && u32::from(message.header.handle) == FILTER_HANDLE
        && kind(message) == Some("bpf")
        && program_name(message).is_some_and(|name| name.starts_with(PROGRAM_PREFIX))
}

fn kind(message: &TcMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        })
}

fn program_name(message: &TcMessage) -> Option<&str> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.as_str()),
        _ => None,
    })
}
