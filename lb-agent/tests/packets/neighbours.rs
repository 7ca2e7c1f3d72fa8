// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a new flow asks the kernel around it: the way to a backend on the client's own bridge, and
//! whether the client has the connection already that the flow would look like.
//!
//! A test run comes in by the loopback of the test's namespace, so that is the device that is
//! described as a pod's.
//! **Invariant:** bridge, addresses and sockets live in the test's own network namespace.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use lb_common::Reason;
use lb_common::abi::{ConnState, Hop, Iface, IfaceFlags};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, socket,
};

use super::case::{Case, Family, Flow, HOSTNAMES, Step, each};
use super::kernel::{Entry, Hook, Verdict};
use super::wire::{MACS, Segment};

each! {
    backend_on_the_clients_bridge_is_reached_by_its_own_link_layer_address,
    link_layer_address_that_is_learnt_later_is_used_from_then_on,
    backend_elsewhere_is_routed_although_the_client_is_on_a_bridge,
}
each! { tcp:
    connection_that_the_client_has_made_itself_keeps_its_tuple,
    listening_socket_of_the_client_is_no_connection,
}

/// Index of the loopback in every network namespace.
const LOOPBACK: u32 = 1;
/// The backend's link-layer address.
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

/// Runs `ip` in the test's network namespace, which a child shares with the thread it comes from.
fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// Makes a bridge with the pods' network behind it and says that the packets come in by it.
fn on_a_bridge(case: &mut Case) {
    ip("link add lb0 type bridge");
    ip("link add lb1 type veth peer name lb2");
    ip("link set lb1 master lb0 up");
    ip("link set lb2 up");
    ip("link set lb0 up");
    // The namespace is new and the test's own: this changes nothing for anyone else.
    match case.family {
        Family::V4 => {
            fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "1").unwrap();
            ip("address add 10.244.0.1/24 dev lb0");
        }
        Family::V6 => {
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            ip("address add fd00:10:244::1/64 dev lb0 nodad");
        }
    }
    let bridge = if_nametoindex("lb0").unwrap();
    case.kernel.put_iface(
        LOOPBACK,
        Iface {
            bridge,
            ..Iface::default()
        },
    );
}

fn learn_backend(case: &Case) {
    let backend = case.backend(0).ip();
    ip(&format!(
        "neighbour replace {backend} lladdr 02:00:00:00:00:05 dev lb0 nud permanent"
    ));
}

/// The entries of a flow whose requests go by `hop`.
fn with_hop(flow: &Flow, hop: Hop, next_hop: [u8; 6]) -> Vec<Entry> {
    let request = Entry {
        hop: hop as u8,
        next_hop,
        ..flow.request_entry()
    };
    vec![request, flow.reply_entry()]
}

fn bridged(segment: &Segment) -> Segment {
    Segment {
        macs: Some((BACKEND_MAC, MACS.1)),
        ..segment.clone()
    }
}

fn backend_on_the_clients_bridge_is_reached_by_its_own_link_layer_address(case: &mut Case) {
    on_a_bridge(case);
    learn_backend(case);
    case.serve(HOSTNAMES, &[0]);
    let mut flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend);
    for _ in 0..2 {
        case.translates(
            "the request, to the backend's own address",
            Hook::Ingress,
            (&request, &bridged(&request.to(flow.backend))),
            with_hop(&flow, Hop::Bridged, BACKEND_MAC),
        );
    }
    let reply = case.answer(flow.backend, flow.client);
    flow.reply_seen = ConnState::REPLIED;
    case.translates(
        "the reply, whose link-layer addresses stay",
        Hook::Egress,
        (&reply, &reply.from(flow.frontend)),
        with_hop(&flow, Hop::Bridged, BACKEND_MAC),
    );
}

fn link_layer_address_that_is_learnt_later_is_used_from_then_on(case: &mut Case) {
    on_a_bridge(case);
    case.serve(HOSTNAMES, &[0]);
    let flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend);
    case.translates(
        "by routing, while the address is not known",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        with_hop(&flow, Hop::Unresolved, [0; 6]),
    );
    learn_backend(case);
    case.translates(
        "across the bridge",
        Hook::Ingress,
        (&request, &bridged(&request.to(flow.backend))),
        with_hop(&flow, Hop::Bridged, BACKEND_MAC),
    );
}

fn backend_elsewhere_is_routed_although_the_client_is_on_a_bridge(case: &mut Case) {
    on_a_bridge(case);
    case.serve(HOSTNAMES, &[0]);
    let flow = Flow {
        backend: (case.vip(9).ip(), 9376).into(),
        ..case.flow(HOSTNAMES, 0)
    };
    case.kernel
        .put_backend(flow.backend_id, HOSTNAMES, flow.epoch, flow.backend);
    let request = case.opening(flow.frontend);
    case.translates(
        "by routing",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        with_hop(&flow, Hop::Routed, [0; 6]),
    );
}

/// Gives the client and the backend to the loopback, and says that the client's sockets are here.
///
/// The id of a namespace is a small number; all ones asks for the packet's own namespace.
fn in_this_namespace(case: &mut Case) {
    ip("link set lo up");
    let length = match case.family {
        Family::V4 => "/32 dev lo",
        Family::V6 => "/128 dev lo nodad",
    };
    for at in [case.client(), case.backend(0)] {
        ip(&format!("address add {}{length}", at.ip()));
    }
    case.kernel.put_iface(
        LOOPBACK,
        Iface {
            peer_netns: u32::MAX,
            flags: IfaceFlags::PEER_NETNS,
            ..Iface::default()
        },
    );
}

/// A connection between two given ends.
fn connection(from: SocketAddr, to: SocketAddr) -> OwnedFd {
    let family = if from.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            bind(raw, &SockaddrIn::from(from)).unwrap();
            connect(raw, &SockaddrIn::from(to)).unwrap();
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            bind(raw, &SockaddrIn6::from(from)).unwrap();
            // The kernel gives a new address its routes in a worker, soon after.
            let until = Instant::now() + Duration::from_secs(5);
            let mut connected = connect(raw, &SockaddrIn6::from(to));
            while connected == Err(Errno::ENETUNREACH) && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(5));
                connected = connect(raw, &SockaddrIn6::from(to));
            }
            connected.unwrap();
        }
        mixed => panic!("two families: {mixed:?}"),
    }
    fd
}

fn connection_that_the_client_has_made_itself_keeps_its_tuple(case: &mut Case) {
    in_this_namespace(case);
    case.serve(HOSTNAMES, &[0]);
    let mut flow = case.flow(HOSTNAMES, 0);
    let backend = TcpListener::bind(flow.backend).unwrap();
    let direct = connection(flow.client, flow.backend);
    let request = case.opening(flow.frontend);
    let (verdict, output) = case.kernel.run(Hook::Ingress, &request.frame());
    assert_eq!(verdict, Verdict::Pass);
    flow.client_port = request.source_port(&output);
    assert_ne!(flow.client_port, flow.client.port());
    let expected = request.to(flow.backend).from(flow.translated_client());
    assert_eq!(output, expected.frame());
    let changed = [(Reason::SourcePortChanged, 1)];
    case.check_state("opened with another port", &changed, flow.entries());
    let reply = case.answer(flow.backend, flow.translated_client());
    flow.reply_seen = ConnState::REPLIED;
    case.check(Step {
        description: "the reply finds the client's port",
        hook: Hook::Egress,
        input: reply.frame(),
        verdict: Verdict::Pass,
        output: reply.from(flow.frontend).to(flow.client).frame(),
        counters: &changed,
        entries: flow.entries(),
    });
    drop((direct, backend));
}

fn listening_socket_of_the_client_is_no_connection(case: &mut Case) {
    in_this_namespace(case);
    case.serve(HOSTNAMES, &[0]);
    let flow = case.flow(HOSTNAMES, 0);
    let listening = TcpListener::bind(flow.client).unwrap();
    let request = case.opening(flow.frontend);
    case.translates(
        "with its own port",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
    drop(listening);
}
