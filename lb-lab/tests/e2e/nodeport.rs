// SPDX-License-Identifier: MIT OR Apache-2.0
//! Node ports from outside and from pods: who is reached, whom the server sees, who answers.
//!
//! **Invariant:** the client sees the address it dialled and no other. Read next: `cluster.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lb_lab::{Builder, Host, Place, Pod};

use crate::cluster::{Cluster, Vip, get};

in_every_topology!(
    a_node_port_leads_to_backends_on_this_and_on_other_nodes,
    a_pod_reaches_itself_through_its_service,
    clients_are_refused_at_once_without_endpoints,
);

const NODE_PORT: u16 = 30_080;
/// How long a refusal may take.
const REFUSED_MAX: Duration = Duration::from_millis(100);
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The Service `name` with a node port.
fn vip(name: &str, number: u8, node_port: u16) -> Vip {
    let mut vip = Vip::new(name, number);
    vip.service = vip.service.node_port(node_port);
    vip
}

/// Asks over TCP and UDP who serves, and whom the server sees; the source's port is left out.
pub(crate) fn ask(client: &Host, remote: SocketAddr) -> [String; 4] {
    let seen = |text: String| text.split(' ').next().unwrap().to_owned();
    [
        get(client, remote, "/").text().to_owned(),
        client.udp_ask(remote, "hostname").unwrap(),
        seen(get(client, remote, "/source").text().to_owned()),
        seen(client.udp_ask(remote, "source").unwrap()),
    ]
}

/// A node's address of a family (0 is IPv4) with a port.
pub(crate) fn node_address(cluster: &Cluster, node: usize, family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(cluster.node(node).addresses()[family], port)
}

fn a_node_port_leads_to_backends_on_this_and_on_other_nodes(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let pod = cluster.pod(0, "client");
    let vips = [vip("near", 1, NODE_PORT), vip("far", 2, NODE_PORT + 1)];
    for (vip, pod) in vips.iter().zip([&near, &far]) {
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    for family in [0, 1] {
        let source = outside.addresses()[family].to_string();
        let remote = node_address(&cluster, 0, family, NODE_PORT);
        let [web, udp, tcp_source, udp_source] = ask(&outside, remote);
        assert_eq!((&*web, &*udp), ("near", "near"));
        assert_eq!(
            (&tcp_source, &udp_source),
            (&source, &source),
            "kept on this node"
        );
        let remote = node_address(&cluster, 0, family, NODE_PORT + 1);
        let [web, udp, tcp_source, udp_source] = ask(&outside, remote);
        assert_eq!((&*web, &*udp), ("far", "far"));
        assert_ne!(tcp_source, source, "masqueraded towards another node");
        assert_eq!(tcp_source, udp_source);
        // From a pod, to its own node and to the other one.
        for node in [0, 1] {
            for (offset, name) in [(0, "near"), (1, "far")] {
                let remote = node_address(&cluster, node, family, NODE_PORT + offset);
                let [web, udp, ..] = ask(&pod, remote);
                assert_eq!((&*web, &*udp), (name, name), "{remote} from a pod");
            }
        }
    }
}

fn a_pod_reaches_itself_through_its_service(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let web = cluster.web(0, "web");
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&web]);
    cluster.start_agents();
    for (family, remote) in vip.remotes().into_iter().enumerate() {
        let own = web.addresses()[family].to_string();
        let [name, udp, tcp_source, udp_source] = ask(&web, remote);
        assert_eq!((&*name, &*udp), ("web", "web"));
        assert_ne!(tcp_source, own);
        assert_eq!(tcp_source, udp_source);
        let addresses = cluster.node(0).output("ip -o address").unwrap();
        let of_node = format!(" {tcp_source}/");
        assert!(addresses.contains(&of_node), "{tcp_source}: {addresses}");
    }
}

fn clients_are_refused_at_once_without_endpoints(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod: Pod = cluster.pod(0, "client");
    let vip = vip("empty", 1, NODE_PORT);
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    for (family, remote) in vip.remotes().into_iter().enumerate() {
        refused(&pod, remote);
        refused(&outside, node_address(&cluster, 0, family, NODE_PORT));
    }
}

/// Connects and sends a datagram; both must be refused long before anything would be sent again.
pub(crate) fn refused(client: &Host, remote: SocketAddr) {
    let connect = move || TcpStream::connect_timeout(&remote, PATIENCE).map(drop);
    let ask = move || {
        let any: IpAddr = if remote.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(remote)?;
        socket.send(b"hostname")?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    let tries: [&(dyn Fn() -> io::Result<()> + Sync); 2] = [&connect, &ask];
    for attempt in tries {
        let started = Instant::now();
        let error = client.run(attempt).unwrap().unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{remote}");
        assert!(took < REFUSED_MAX, "{remote}: {took:?}");
    }
}
