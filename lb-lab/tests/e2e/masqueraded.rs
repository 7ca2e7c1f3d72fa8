// SPDX-License-Identifier: MIT OR Apache-2.0
//! What passes a node port towards another node: both addresses are replaced, at two devices.
//!
//! Much of it, with checksums in software; in fragments; and over paths that are narrower than their
//! ends. **Invariant:** the client is beyond the router and never sees the other node. Read next:
//! `external.rs`, by whom it is served; `path_mtu.rs` and `fragments.rs`, the same from pods.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;
use std::time::Duration;

use lb_common::Reason;
use lb_lab::{
    Builder, Host, HttpClient, HttpConnection, LabError, Place, Pod, Topology, UdpClient,
};

use crate::cluster::{Cluster, Vip, fail, in_default_and_routed};
use crate::external::{assert_served, towards_other_nodes};
use crate::inspect;
use crate::nodeport::node_address;

in_every_topology!(much_passes_with_checksums_in_software);

const NODE_PORT: u16 = 30_120;
/// How many bytes go each way: many windows, and many segments that were one.
const BULK: u64 = 16 << 20;
/// The same where a path is narrow.
const SOME: u64 = 64 * 1024;
/// More than a loaded machine needs for a read; a stalled transfer ends here.
const STALLED: Duration = Duration::from_secs(10);
/// The MTU of narrow paths.
const NARROW: u16 = 1300;

/// A client beyond the router, and a node port on node 0 whose backend is on node 1.
struct World {
    cluster: Cluster,
    outside: Host,
    far: Pod,
}

impl World {
    fn new(builder: Builder) -> Self {
        let mut cluster = Cluster::new(builder);
        let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
        let far = cluster.web(1, "far");
        let mut vip = Vip::new("far", 1);
        vip.service = vip.service.node_port(NODE_PORT);
        cluster.publish(&vip, &[&far]);
        cluster.start_agents();
        let world = Self {
            cluster,
            outside,
            far,
        };
        for (family, remote) in (0..).zip(world.remotes()) {
            let source = towards_other_nodes(&world.cluster, 0, family);
            assert_served(&world.outside, remote, "far", source);
        }
        world
    }

    fn remotes(&self) -> [SocketAddr; 2] {
        [0, 1].map(|family| node_address(&self.cluster, 0, family, NODE_PORT))
    }

    /// A transfer in one direction, in each family on a connection of its own.
    fn transfer(&self, bytes: u64, way: fn(&mut HttpConnection, u64) -> Result<(), LabError>) {
        for remote in self.remotes() {
            let connect = || HttpClient::new(remote).timeout(STALLED).connect();
            let mut connection = self.outside.run(connect).unwrap().unwrap();
            let transferred = way(&mut connection, bytes);
            transferred.unwrap_or_else(|error| fail(&format!("{bytes} bytes, {remote}"), &error));
        }
    }

    /// How often the dialled node counted a reason.
    fn counted(&self, reason: Reason) -> u64 {
        inspect::reason(self.cluster.node(0), reason)
    }

    /// Asserts that the dialled node has dropped nothing.
    fn assert_nothing_lost(&self) {
        let reasons = inspect::reasons(self.cluster.node(0));
        let lost = reasons
            .iter()
            .find(|(reason, _)| !matches!(reason, Reason::IcmpError | Reason::SourcePortChanged));
        assert_eq!(lost, None, "{reasons:?}");
    }
}

fn much_passes_with_checksums_in_software(builder: Builder) {
    let world = World::new(builder);
    for way in [HttpConnection::upload, HttpConnection::download] {
        world.transfer(BULK, way);
    }
    world.cluster.tx_off_on_nodes(&[&world.far]);
    for host in [&*world.far, &world.outside] {
        host.output("ethtool -K eth0 tx off").unwrap();
    }
    for way in [HttpConnection::upload, HttpConnection::download] {
        world.transfer(BULK, way);
    }
    world.assert_nothing_lost();
}

#[test]
fn a_router_near_the_backend_is_heard_by_the_client_beyond_the_node() {
    in_default_and_routed(|builder| {
        let world = World::new(builder);
        let device = match world.cluster.lab.topology() {
            Topology::Bridge { .. } => "cni0",
            Topology::Routed => world.far.device(),
        };
        let narrow = format!("ip link set {device} mtu {NARROW}");
        world.cluster.node(1).output(&narrow).unwrap();
        world.transfer(SOME, HttpConnection::upload);
        assert!(world.counted(Reason::IcmpError) >= 2);
        world.assert_nothing_lost();
    });
}

#[test]
fn a_router_near_the_client_is_heard_by_the_backend_beyond_the_node() {
    in_default_and_routed(|builder| {
        let world = World::new(builder);
        let narrow = format!("ip link set wan mtu {NARROW}");
        world.cluster.lab.router().output(&narrow).unwrap();
        world.transfer(SOME, HttpConnection::download);
        assert!(world.counted(Reason::IcmpError) >= 2);
        world.assert_nothing_lost();
        // It was the backend that learned of it, by the node's address.
        for (family, own) in (0..).zip(world.far.addresses()) {
            let node = towards_other_nodes(&world.cluster, 0, family);
            let route = world.far.output(&format!("ip route get {node}")).unwrap();
            assert!(route.contains(&format!("mtu {NARROW}")), "{own}: {route}");
        }
    });
}

/// Whether a router has said that what was sent before was too long for its path.
fn is_too_long(error: &LabError) -> bool {
    let LabError::Io { source, .. } = error else {
        return false;
    };
    source.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Asks for an echo of datagrams of several fragments each, on one socket.
fn echo(builder: Builder) {
    let world = World::new(builder);
    for remote in world.remotes() {
        let talk = || {
            let socket = UdpClient::bind(remote, None).unwrap();
            for length in [1473, 4000, 9001, 60_000] {
                let bytes = "long".repeat(length / 4 + 1);
                let sent = &bytes.as_bytes()[..length];
                let mut answer = socket.exchange(sent);
                while answer.as_ref().is_err_and(is_too_long) {
                    // Of IPv6 the sender itself makes fragments, once it has heard of the path.
                    answer = socket.exchange(sent);
                }
                assert!(answer.unwrap() == sent, "{length} bytes, {remote}");
            }
        };
        world.outside.run(talk).unwrap();
    }
    world.assert_nothing_lost();
}

#[test]
fn long_datagrams_pass_a_node_that_puts_them_together() {
    in_default_and_routed(echo);
}

#[test]
fn long_datagrams_pass_a_node_in_fragments() {
    in_default_and_routed(|builder| {
        let builder = builder.masquerade(false).forward_drop(false);
        echo(builder.invalid_drop(false));
    });
}
