// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells a supervisor how we are: one datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! Understands paths and abstract names (a leading `@`), as systemd passes them.
//! **Invariant:** a supervisor that does not listen is no reason to stop serving.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// A supervisor, if there is one.
#[derive(Debug)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Supervisor {
    /// The one that the environment names.
    pub fn from_environment() -> Self {
        Self::at(std::env::var_os("NOTIFY_SOCKET"))
    }

    /// The one that listens on the socket `name`.
    pub fn at(name: Option<OsString>) -> Self {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Self { socket: None };
        };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
        };
        let socket = address.and_then(|address| Ok((UnixDatagram::unbound()?, address)));
        match socket {
            Ok(socket) => Self {
                socket: Some(socket),
            },
            Err(error) => {
                warn!("NOTIFY_SOCKET {}: {error}", name.display());
                Self { socket: None }
            }
        }
    }

    /// Everything that was asked for is in place, but for what `detail` says, a line or nothing.
    pub fn ready(&self, detail: &str) {
        if detail.is_empty() {
            self.send("READY=1");
        } else {
            self.send(&format!("READY=1\nSTATUS={detail}"));
        }
    }

    /// The `count`-th batch of changes was applied.
    pub fn applied(&self, count: u64) {
        self.send(&format!("STATUS=applied {count}"));
    }

    /// We are about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            warn!("tell the supervisor {message:?}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_hears_through_a_path_and_through_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        Supervisor::at(Some(path.into_os_string())).ready("");
        assert_eq!(heard(&listener), "READY=1");

        let name = format!("lb-agent-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        Supervisor::at(Some(format!("@{name}").into())).applied(3);
        assert_eq!(heard(&listener), "STATUS=applied 3");
    }

    fn heard(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}
