// SPDX-License-Identifier: MIT OR Apache-2.0
//! Not ours: passed, not one byte changed, nothing counted, no entry made.
//!
//! A flow is open all the while, so that there is something to be confused with.
//! Read next: `malformed.rs` for packets that only look like ours.

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header};
use lb_common::abi::ConnState;

use super::case::{Case, Family, HOSTNAMES, each};
use super::kernel::Hook;
use super::wire::{ACK, ETHERNET, FIN, MACS, PSH, Proto, RST, SYN, Segment, framed};

each! {
    other_addresses_ports_and_protocols_are_left_alone,
    packets_at_the_wrong_hook_are_left_alone,
    replies_of_flows_that_are_not_ours_are_left_alone,
    protocols_without_ports_are_left_alone,
    frames_of_other_protocols_are_left_alone,
    frontend_without_any_flow_is_not_found_by_its_replies,
}
each! { tcp:
    tcp_that_neither_opens_nor_has_an_entry_is_left_alone,
}
each! { ipv4:
    later_fragments_are_left_alone,
}

const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];

/// A service, and one open flow through it.
fn served(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    case.establish(HOSTNAMES, 0);
}

fn other_addresses_ports_and_protocols_are_left_alone(case: &mut Case) {
    served(case);
    let vip = case.vip(HOSTNAMES);
    let mut other_client = case.client();
    other_client.set_port(40_001);
    for hook in HOOKS {
        let other_address = case.opening(case.vip(7)).from(other_client);
        case.leaves_alone("another address", hook, &other_address.frame());
        let other_port = case.opening((vip.ip(), 81).into()).from(other_client);
        case.leaves_alone("another port", hook, &other_port.frame());
        let mut other_protocol = case.opening(vip).flags(SYN);
        other_protocol.proto = match case.proto {
            Proto::Tcp => Proto::Udp,
            Proto::Udp | Proto::Sctp => Proto::Tcp,
        };
        case.leaves_alone("the other protocol", hook, &other_protocol.frame());
        let pod_to_pod = case.opening((case.backend(0).ip(), 8080).into());
        case.leaves_alone("pod to pod", hook, &pod_to_pod.frame());
    }
}

fn packets_at_the_wrong_hook_are_left_alone(case: &mut Case) {
    served(case);
    let request = case.opening(case.vip(HOSTNAMES));
    case.leaves_alone("a request on its way out", Hook::Egress, &request.frame());
    let reply = case.answer(case.backend(0), case.client());
    case.leaves_alone("a reply on its way in", Hook::Ingress, &reply.frame());
}

fn replies_of_flows_that_are_not_ours_are_left_alone(case: &mut Case) {
    served(case);
    let to_other_port = case.answer(case.backend(0), (case.client().ip(), 40_001).into());
    case.leaves_alone("another client port", Hook::Egress, &to_other_port.frame());
    let from_other_backend = case.answer(case.backend(1), case.client());
    case.leaves_alone("another backend", Hook::Egress, &from_other_backend.frame());
    let from_other_port = case.answer((case.backend(0).ip(), 1).into(), case.client());
    case.leaves_alone(
        "another backend port",
        Hook::Egress,
        &from_other_port.frame(),
    );
}

fn frontend_without_any_flow_is_not_found_by_its_replies(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let reply = case.answer(case.backend(0), case.client());
    case.leaves_alone("a reply without a request", Hook::Egress, &reply.frame());
}

fn tcp_that_neither_opens_nor_has_an_entry_is_left_alone(case: &mut Case) {
    served(case);
    let mut other_client = case.client();
    other_client.set_port(40_001);
    for flags in [ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, SYN | ACK, 0, FIN] {
        let segment = Segment::new(Proto::Tcp, other_client, case.vip(HOSTNAMES)).flags(flags);
        for hook in HOOKS {
            case.leaves_alone(&format!("flags {flags:#x}"), hook, &segment.frame());
        }
    }
}

/// A packet to the frontend's address with a payload of any protocol.
fn packet(case: &Case, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (case.client().ip(), case.vip(HOSTNAMES).ip());
    let length = payload.len().try_into().unwrap();
    let (ether_type, header) = match (source, destination) {
        (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
            let number = IpNumber(protocol);
            let mut ip = Ipv4Header::new(length, 64, number, a.octets(), b.octets()).unwrap();
            ip.header_checksum = ip.calc_header_checksum();
            (EtherType::IPV4, ip.to_bytes().to_vec())
        }
        (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => {
            let ip = Ipv6Header {
                payload_length: length,
                next_header: IpNumber(protocol),
                hop_limit: 64,
                source: a.octets(),
                destination: b.octets(),
                ..Ipv6Header::default()
            };
            (EtherType::IPV6, ip.to_bytes().to_vec())
        }
        mixed => panic!("two families: {mixed:?}"),
    };
    framed(Some(MACS), ether_type, &[&header, payload])
}

/// The transport part of a packet that would open a flow.
fn opening_transport(case: &Case) -> Vec<u8> {
    let segment = case.opening(case.vip(HOSTNAMES));
    segment.frame()[segment.transport_at()..].to_vec()
}

fn protocols_without_ports_are_left_alone(case: &mut Case) {
    served(case);
    // Bytes that would be a matching header if the protocol number were not looked at.
    let look_alike = opening_transport(case);
    let protocols = [
        (1, "ICMP"),
        (58, "ICMPv6"),
        (132, "SCTP"),
        (4, "IPv4 in IP"),
        (47, "GRE"),
        (0, "hop-by-hop options"),
        (59, "no next header"),
        (255, "reserved"),
    ];
    for (protocol, name) in protocols {
        for hook in HOOKS {
            case.leaves_alone(name, hook, &packet(case, protocol, &look_alike));
        }
    }
}

fn frames_of_other_protocols_are_left_alone(case: &mut Case) {
    served(case);
    // KERNEL: a test run refuses IPv6 with less than 40 bytes behind the Ethernet header.
    let frame = case.opening(case.vip(HOSTNAMES)).payload(&[7; 64]).frame();
    // ARP, 802.1Q in the frame itself, MPLS, PPPoE, LLDP, an 802.3 length, and IP of no version.
    for ether_type in [
        0x0806, 0x8100, 0x8847, 0x8864, 0x88cc, 0x0040, 0x0000, 0xffff,
    ] {
        let other = framed(Some(MACS), EtherType(ether_type), &[&frame[ETHERNET..]]);
        for hook in HOOKS {
            case.leaves_alone(&format!("ethertype {ether_type:#06x}"), hook, &other);
        }
    }
    let who_has = [
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 244, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 1, 175,
    ];
    let arp = framed(Some(MACS), EtherType::ARP, &[&who_has]);
    case.leaves_alone("who has the frontend's address", Hook::Ingress, &arp);
    // The ethertype of the other family before this family's packet.
    let swapped = match case.family {
        Family::V4 => EtherType::IPV6,
        Family::V6 => EtherType::IPV4,
    };
    let other = framed(Some(MACS), swapped, &[&frame[ETHERNET..]]);
    case.leaves_alone("the other family's ethertype", Hook::Ingress, &other);
}

/// Their first fragment was not seen, so their ports are unknown.
fn later_fragments_are_left_alone(case: &mut Case) {
    served(case);
    assert!(case.kernel.entries()[0].reply_seen & ConnState::REPLIED != 0);
    let frame = case.opening(case.vip(HOSTNAMES)).frame();
    for offset in [1, 185, 0x1fff] {
        for more in [0, 0x2000] {
            let mut fragment = frame.clone();
            let field = u16::to_be_bytes(offset | more);
            fragment[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&field);
            for hook in HOOKS {
                case.leaves_alone("a later fragment", hook, &fragment);
            }
        }
    }
}
