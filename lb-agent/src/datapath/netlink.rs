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
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::attach::{FILTER_HANDLE, Filters, Hook};
use super::devices::LinkFacts;
use super::error::DatapathError;
use super::facts::{AddressFacts, RouteFacts};
use super::view::View;
use crate::model::prefix::Prefix;

/// Names of our programs begin like this, also as filters.
const PROGRAM_PREFIX: &str = "lb_tc_";
/// The kernel's table of routes, and the one of what is delivered here.
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
/// Routes with a source or a router of their own that are kept at most: a node that takes part in
/// a large network's routing has many, of which hardly any says anything new.
const ROUTES_MAX: usize = 65_536;

/// Lists everything that decides which devices are managed and how.
pub(super) async fn list(handle: &Handle) -> Result<View, DatapathError> {
    let mut view = View::default();
    for link in collect("devices", handle.link().get().execute()).await? {
        view.put_link(link_facts(&link));
    }
    for address in collect("addresses", handle.address().get().execute()).await? {
        if let Some(facts) = address_facts(&address) {
            view.add_listed(facts);
        }
    }
    view.set_routes(list_routes(handle).await?);
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

/// Routes of both families that matter.
pub(super) async fn list_routes(handle: &Handle) -> Result<Vec<RouteFacts>, DatapathError> {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut routes = Vec::new();
    for request in [v4, v6] {
        let mut listed = handle.route().get(request).execute();
        while let Some(route) = listed.try_next().await.map_err(not_listed("routes"))? {
            if is_worth_knowing(&route) && routes.len() < ROUTES_MAX {
                routes.extend(route_facts(&route));
            }
        }
    }
    if routes.len() >= ROUTES_MAX {
        tracing::warn!("more than {ROUTES_MAX} routes: what the others prefer is not known");
    }
    Ok(routes)
}

/// Devices that have a clsact qdisc.
pub(super) async fn list_clsact(handle: &Handle) -> Result<Vec<u32>, DatapathError> {
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

/// Whether there is any filter on a device's clsact qdisc, whoever's.
pub(super) async fn has_filters(handle: &Handle, index: u32) -> Result<bool, DatapathError> {
    let Ok(device) = i32::try_from(index) else {
        return Ok(false);
    };
    let get = || handle.traffic_filter(device).get();
    let mut filters = collect("filters", get().ingress().execute()).await?;
    filters.extend(collect("filters", get().egress().execute()).await?);
    // The head of a priority has handle 0 and is no filter by itself.
    let mut handles = filters.iter().map(|filter| filter.header.handle);
    Ok(handles.any(|handle| u32::from(handle) != 0))
}

async fn collect<T>(
    what: &'static str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, DatapathError> {
    stream.try_collect().await.map_err(not_listed(what))
}

fn not_listed(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> DatapathError {
    move |source| DatapathError::List {
        what,
        source: Box::new(source),
    }
}

/// The facts in a message about a device.
pub(super) fn link_facts(message: &LinkMessage) -> LinkFacts {
    let mut facts = LinkFacts {
        index: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        up: message.header.flags.contains(LinkFlags::Up),
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

/// The facts in a message about an address that means something outside of its link.
pub(super) fn address_facts(message: &AddressMessage) -> Option<AddressFacts> {
    let header = &message.header;
    if header.scope != AddressScope::Universe {
        return None;
    }
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut near, mut far) = (None, None);
    for attribute in &message.attributes {
        // On a point-to-point device `Address` is the far end and `Local` the near one.
        match attribute {
            AddressAttribute::Local(address) => near = Some(*address),
            AddressAttribute::Address(address) => far = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let far = far.or(near)?;
    let pending = flags.contains(AddressFlags::Tentative);
    let pending = pending && !flags.contains(AddressFlags::Optimistic);
    Some(AddressFacts {
        device: header.index,
        address: near.unwrap_or(far),
        subnet: Prefix::new(far, header.prefix_len)?,
        secondary: flags.contains(AddressFlags::Secondary),
        unfit: pending || flags.intersects(AddressFlags::Deprecated | AddressFlags::Dadfailed),
    })
}

/// True for a route that tells a source or a router, or takes whatever no other route takes. The
/// many routes to single pods do neither.
pub(super) fn is_worth_knowing(message: &RouteMessage) -> bool {
    let header = &message.header;
    let inet = matches!(
        header.address_family,
        AddressFamily::Inet | AddressFamily::Inet6
    );
    let tells = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::PrefSource(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::MultiPath(_)
                | RouteAttribute::NhId(_)
        )
    };
    inet && header.kind == RouteType::Unicast
        && table_of(message) != TABLE_LOCAL
        && (header.destination_prefix_length == 0 || message.attributes.iter().any(tells))
}

fn table_of(message: &RouteMessage) -> u32 {
    let whole = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    whole.unwrap_or_else(|| message.header.table.into())
}

/// The facts in a route: one for each device that it leads out of.
fn route_facts(message: &RouteMessage) -> Vec<RouteFacts> {
    let header = &message.header;
    let zero = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut destination, mut source) = (zero, None);
    let (mut metric, mut hops) = (0, Vec::new());
    let (mut device, gateway) = (None, gateway_of(&message.attributes));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address).unwrap_or(zero),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::MultiPath(all) => hops.extend(
                all.iter()
                    .map(|hop| (hop.interface_index, gateway_of(&hop.attributes))),
            ),
            _ => {}
        }
    }
    hops.extend(device.map(|device| (device, gateway)));
    let Some(destination) = Prefix::new(destination, header.destination_prefix_length) else {
        return Vec::new();
    };
    hops.into_iter()
        .map(|(device, gateway)| RouteFacts {
            device,
            destination,
            aside: table_of(message) != TABLE_MAIN,
            metric,
            source,
            gateway,
        })
        .collect()
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
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
