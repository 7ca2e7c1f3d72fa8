// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own messages about devices, addresses, routes and filters.
//!
//! [`Netlink`] is where they come from, [`read`] notes what they say in the view and what they
//! leave to do; `follow.rs` does it.
//! **Invariant:** reading a message asks the kernel nothing, so a burst of them is read at once.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{Handle, MulticastGroup};
use std::collections::BTreeSet;

use super::error::DatapathError;
use super::netlink;
use super::view::View;

/// Bytes of messages that the kernel may keep for us: a thousand pods may start at once.
const RECEIVE_BUFFER_BYTES: u32 = 4 << 20;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// One message.
pub(super) type Message = NetlinkMessage<RouteNetlinkMessage>;
/// Messages as they come; ends when the socket breaks.
pub(super) type Messages = BoxStream<'static, Message>;

/// Two sockets: one for questions, one for what the kernel tells by itself.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    pub(super) messages: Messages,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Socket { source };
        let (mut following, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(failed)?;
        let socket = following.socket_mut().socket_mut();
        socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES).map_err(failed)?;
        tokio::spawn(following);
        let (asking, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        tokio::spawn(asking);
        Ok(Self {
            handle,
            messages: messages.map(|(message, _)| message).boxed(),
        })
    }
}

/// What messages leave to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    /// Messages were lost; only a full list helps.
    pub(super) list: bool,
    /// A route came or went, or may have gone without a word.
    pub(super) routes: bool,
    /// Addresses came, changed or went.
    pub(super) addresses: bool,
    /// Devices whose filters have changed.
    pub(super) filters: BTreeSet<u32>,
}

/// Notes what one message says; returns the device that it may have changed.
pub(super) fn read(
    view: &mut View,
    payload: NetlinkPayload<RouteNetlinkMessage>,
    todo: &mut Todo,
) -> Option<u32> {
    use RouteNetlinkMessage as M;
    if let NetlinkPayload::Overrun(_) = payload {
        todo.list = true;
    }
    let NetlinkPayload::InnerMessage(message) = payload else {
        return None;
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "other messages of the groups that were asked for are no matter here"
    )]
    match message {
        M::NewLink(link) | M::DelLink(link) if is_about_port(&link) => None,
        M::NewLink(link) => {
            let was_up = view.is_up(link.header.index);
            view.put_link(netlink::link_facts(&link));
            // KERNEL: routes of IPv4 go with the device's state, and no message tells.
            todo.routes |= was_up && !view.is_up(link.header.index);
            Some(link.header.index)
        }
        M::DelLink(link) => {
            view.remove_link(link.header.index);
            Some(link.header.index)
        }
        M::NewAddress(message) => {
            let facts = netlink::address_facts(&message)?;
            let index = facts.device;
            view.put_address(facts);
            todo.addresses = true;
            Some(index)
        }
        M::DelAddress(message) => {
            let facts = netlink::address_facts(&message)?;
            view.remove_address(&facts);
            // KERNEL: routes of IPv4 that prefer it as source go, and no message tells.
            (todo.addresses, todo.routes) = (true, true);
            Some(facts.device)
        }
        M::NewRoute(route) | M::DelRoute(route) => {
            todo.routes |= netlink::is_worth_knowing(&route);
            None
        }
        M::NewTrafficFilter(change)
        | M::DelTrafficFilter(change)
        | M::NewQueueDiscipline(change)
        | M::DelQueueDiscipline(change) => {
            todo.filters.extend(u32::try_from(change.header.index));
            None
        }
        _ => None,
    }
}

/// A bridge tells about its ports in messages of its own family, which lack most attributes; its
/// DELLINK means that the port has left the bridge, not that it has gone.
fn is_about_port(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Bridge
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::devices::LinkFacts;
    use netlink_packet_route::link::LinkFlags;
    use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};

    fn link(index: u32, family: AddressFamily) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.interface_family = family;
        link
    }

    fn read_one(view: &mut View, message: RouteNetlinkMessage) -> (Option<u32>, Todo) {
        let mut todo = Todo::default();
        let touched = read(view, NetlinkPayload::InnerMessage(message), &mut todo);
        (touched, todo)
    }

    #[test]
    fn lost_messages_ask_for_a_full_list() {
        let mut todo = Todo::default();
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert_eq!(read(&mut View::default(), overrun, &mut todo), None);
        assert!(todo.list);
    }

    #[test]
    fn a_port_that_leaves_its_bridge_has_not_gone() {
        let mut view = View::default();
        view.put_link(LinkFacts {
            index: 5,
            ..LinkFacts::default()
        });
        let left = RouteNetlinkMessage::DelLink(link(5, AddressFamily::Bridge));
        assert_eq!(read_one(&mut view, left).0, None);
        assert_eq!(view.indices().collect::<Vec<_>>(), [5]);
        let gone = RouteNetlinkMessage::DelLink(link(5, AddressFamily::Unspec));
        assert_eq!(read_one(&mut view, gone).0, Some(5));
        assert_eq!(view.indices().count(), 0);
    }

    #[test]
    fn a_device_that_goes_down_takes_its_routes_along_without_a_word() {
        let mut view = View::default();
        let mut up = link(5, AddressFamily::Unspec);
        up.header.flags = LinkFlags::Up;
        let told = |view: &mut View, link: &LinkMessage| {
            read_one(view, RouteNetlinkMessage::NewLink(link.clone()))
                .1
                .routes
        };
        assert!(!told(&mut view, &up));
        assert!(!told(&mut view, &up));
        assert!(told(&mut view, &link(5, AddressFamily::Unspec)));
    }

    #[test]
    fn routes_to_single_pods_are_no_matter() {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.kind = RouteType::Unicast;
        let routes = |route: &RouteMessage| {
            let message = RouteNetlinkMessage::NewRoute(route.clone());
            read_one(&mut View::default(), message).1.routes
        };
        assert!(routes(&route));
        route.header.destination_prefix_length = 64;
        assert!(!routes(&route));
        let source = std::net::Ipv6Addr::LOCALHOST.into();
        route.attributes = vec![RouteAttribute::PrefSource(source)];
        assert!(routes(&route));
        route.header.table = 255;
        assert!(!routes(&route), "what is delivered here");
        route.header.table = 254;
        route.header.kind = RouteType::Unreachable;
        assert!(!routes(&route));
    }
}
