// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which masquerade ports are given, and to whom.
//!
//! Read next: `masquerade.rs`, what becomes of the flows.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::case::Case;
use super::kernel::{Hook, Verdict};
use super::masquerade::{MARK, foreign, with_ports};
use super::wire::Segment;

/// Ranges with an empty one among them, and the ports in them.
const RANGES: [u16; 8] = [50_000, 50_001, 1, 0, 50_010, 50_010, 50_020, 50_022];
const POOL: [u16; 6] = [50_000, 50_001, 50_010, 50_020, 50_021, 50_022];
/// Ports right beside the ranges, and as far away as can be.
const BESIDE: [u16; 8] = [49_999, 50_002, 50_009, 50_011, 50_019, 50_023, 1, 65_535];
/// New flows, of which each port gets a sixth.
const FLOWS: u16 = 240;
/// By chance a port gets fewer in less than one of a million runs.
const LEAST: u32 = 10;

/// The source port that a marked packet leaves with.
fn masqueraded(case: &Case, segment: &Segment) -> u16 {
    let (verdict, bytes, _) = case.kernel.run_marked(Hook::Egress, &segment.frame(), MARK);
    assert_eq!(verdict, Verdict::Pass);
    segment.source_port(&bytes)
}

#[test]
fn every_port_of_the_ranges_is_given_and_kept_and_none_beside_them() {
    with_ports(RANGES, |case| {
        for port in POOL {
            let kept = masqueraded(case, &foreign(case, port));
            assert_eq!(kept, port, "a client's own port that is free");
        }
        let mut given: BTreeMap<u16, u32> = BTreeMap::new();
        for (own, number) in BESIDE.into_iter().cycle().zip(0..FLOWS) {
            // Towards a remote of its own, where all of them are free.
            let remote = SocketAddr::new(case.backend(0).ip(), 10_000 + number);
            let port = masqueraded(case, &foreign(case, own).to(remote));
            *given.entry(port).or_default() += 1;
        }
        assert_eq!(given.keys().copied().collect::<Vec<_>>(), POOL, "{given:?}");
        assert!(given.values().all(|flows| *flows >= LEAST), "{given:?}");
    });
}
