// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listening at ports that somebody else may still hold, kube-proxy for one.
//!
//! **Invariant:** a port that is taken is told once, tried again for as long as anybody wants it, and
//! stops nothing. One that becomes free is served within five seconds.

use std::future::IntoFuture as _;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use tokio::net::{TcpListener, TcpSocket};
use tracing::{info, warn};

/// Waits between the tries to listen; the last one is repeated. The first ones are short, because a
/// port that goes from one Service to another is free within moments.
pub(super) const TRIES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];
/// So many tries have failed when people are told.
const TOLD_AFTER: usize = 3;
/// Connections that may wait to be accepted, as tokio has it by itself.
const BACKLOG: u32 = 1024;

/// Listens at all of these addresses as soon as all of them can be listened at; `tell` is called once
/// if that is not soon.
pub(super) async fn listeners(
    addresses: &[SocketAddr],
    tell: impl Fn(&io::Error),
) -> Vec<TcpListener> {
    let mut tries = 0;
    loop {
        let error = match addresses.iter().map(|address| listen(*address)).collect() {
            Ok(listeners) => return listeners,
            Err(error) => error,
        };
        tries += 1;
        if tries == TOLD_AFTER {
            tell(&error);
        }
        tokio::time::sleep(TRIES[(tries - 1).min(TRIES.len() - 1)]).await;
    }
}

/// Serves `app` at `address` from the moment on at which the port is free, for as long as the runtime
/// lives. `what` is for the log.
pub(super) async fn serve(what: &'static str, address: SocketAddr, app: Router) {
    let addresses = [address];
    let listeners = listeners(&addresses, |error| {
        warn!("{what} cannot be served at {address}: {error}; trying again every 5 s");
    });
    for listener in listeners.await {
        info!("{what} at http://{address}");
        if let Err(error) = axum::serve(listener, app.clone()).into_future().await {
            warn!("serve {what}: {error}");
        }
    }
}

/// Listens at an address; at the unspecified one of IPv6 for both families, or for IPv4 alone where
/// the node has no other.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let SocketAddr::V6(v6) = address else {
        return listen_with(TcpSocket::new_v4()?, address);
    };
    if !v6.ip().is_unspecified() {
        return listen_with(TcpSocket::new_v6()?, address);
    }
    match listen_at_all(address) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            listen_with(TcpSocket::new_v4()?, all)
        }
        listener => listener,
    }
}

fn listen_at_all(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    // Whatever net.ipv6.bindv6only says.
    setsockopt(&socket, Ipv6V6Only, &false)?;
    listen_with(socket, address)
}

fn listen_with(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // A port is free when nobody listens, also while old connections come to their end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn free_port() -> u16 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let all = format!("[::]:{}", free_port()).parse().unwrap();
        let _listener = listen(all).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let address: SocketAddr =
                (host.parse::<std::net::IpAddr>().unwrap(), all.port()).into();
            assert!(TcpStream::connect(address).is_ok(), "{address}");
        }
        let taken = listen(all).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_taken_port_is_told_once_and_listened_at_when_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let told = AtomicUsize::new(0);
        let addresses = [address];
        let wanted = listeners(&addresses, |_| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        tokio::pin!(wanted);
        let early = tokio::time::timeout(Duration::from_secs(2), &mut wanted).await;
        assert!(early.is_err(), "somebody else has it");
        assert_eq!(told.load(Ordering::Relaxed), 1);
        drop(taken);
        let listeners = tokio::time::timeout(Duration::from_secs(6), wanted).await;
        assert_eq!(listeners.unwrap()[0].local_addr().unwrap(), address);
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}
