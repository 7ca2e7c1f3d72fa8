// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the lab's own tests share: the privilege check and the traffic check.
//!
//! **Invariant:** a test without root says why it cannot run, and fails where
//! `LB_REQUIRE_BPF=1` demands that it runs. Read next: `topologies.rs`.
#![expect(clippy::expect_used, reason = "a test ends at the first failure")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

use std::net::SocketAddr;

use lb_lab::Host;

/// Whether labs can be made here; a panic if they must be.
pub(crate) fn can_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let required = std::env::var_os("LB_REQUIRE_BPF").is_some_and(|value| value == "1");
    assert!(
        !required,
        "network namespaces need root, and LB_REQUIRE_BPF=1 demands this test"
    );
    eprintln!("skipped: network namespaces need root");
    false
}

/// Four questions per family: the name and the source address, by TCP and by UDP.
pub(crate) fn assert_direct(from: &Host, to: &Host, port: u16) {
    for (address, own) in to.addresses().into_iter().zip(from.addresses()) {
        let remote = SocketAddr::new(address, port);
        let what = format!("{from:?} to {remote}");
        let reply = from.http_get(remote, "/").expect(&what);
        assert_eq!(reply.text(), to.name(), "{what}");
        assert!(
            reply.connect_time.as_millis() < 500,
            "{what}: {:?}",
            reply.connect_time
        );
        let source = from.http_get(remote, "/source").expect(&what);
        assert_eq!(
            source.text(),
            format!("{own} {}", source.local.port()),
            "{what}"
        );
        assert_eq!(
            from.udp_ask(remote, "hostname").expect(&what),
            to.name(),
            "{what}"
        );
        let source = from.udp_ask(remote, "source").expect(&what);
        let address = source.split(' ').next().expect(&what);
        assert_eq!(address, own.to_string(), "{what}");
    }
}
