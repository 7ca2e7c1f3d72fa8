// SPDX-License-Identifier: MIT OR Apache-2.0
//! How new flows spread over backends.
//!
//! The verdict of chance: for three backends, chi-square beyond 27.6 happens once in a million.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::abi::{Algorithm, Cursor, Frontend};

use super::case::{Case, Family, HOSTNAMES, OTHER, frontend};
use super::kernel::{Hook, Sizes, Verdict};
use super::wire::{Proto, SYN, Segment};

/// Of chi-square with two degrees of freedom, at one in a million.
const CHI_SQUARE_MAX: f64 = 27.6;
/// Backends that flows are spread over.
const BACKENDS: [u32; 3] = [0, 1, 2];

/// Every family and protocol with room for `flows`, and three backends.
fn cases(flows: u32, mut test: impl FnMut(&mut Case)) {
    for family in [Family::V4, Family::V6] {
        for proto in [Proto::Tcp, Proto::Udp] {
            let sizes = Sizes {
                connections: 2 * flows,
                ..Sizes::default()
            };
            let Some(mut case) = Case::open(proto, family, sizes) else {
                return;
            };
            case.serve(HOSTNAMES, &BACKENDS);
            test(&mut case);
        }
    }
}

/// Opens `flows` flows from a port each; gives the backend of each, in order.
fn backends_of(case: &Case, flows: u16) -> Vec<SocketAddr> {
    (0..flows)
        .map(|flow| {
            let client = (case.client().ip(), 20_000 + flow).into();
            let request = Segment::new(case.proto, client, case.vip(HOSTNAMES)).flags(SYN);
            let (verdict, output) = case.kernel.run(Hook::Ingress, &request.frame());
            assert_eq!(verdict, Verdict::Pass);
            BACKENDS
                .map(|index| case.backend(index))
                .into_iter()
                .find(|backend| request.to(*backend).frame() == output)
                .expect("the packet went to a backend")
        })
        .collect()
}

fn counts(backends: &[SocketAddr]) -> BTreeMap<SocketAddr, u32> {
    let mut counts = BTreeMap::new();
    for backend in backends {
        *counts.entry(*backend).or_default() += 1;
    }
    counts
}

#[test]
fn round_robin_gives_three_backends_a_hundred_flows_each_one_after_the_other() {
    cases(300, |case| {
        let backends = backends_of(case, 300);
        assert!(counts(&backends).values().eq(&[100, 100, 100]));
        for (position, backend) in (0..).zip(&backends) {
            assert_eq!(*backend, case.backend(position % 3));
        }
        assert!(case.kernel.counters().is_empty());
        assert_eq!(case.kernel.entries().len(), 600);
    });
}

#[test]
fn round_robin_starts_where_the_cursor_stands() {
    cases(3, |case| {
        case.kernel.set_cursor(HOSTNAMES, 2);
        let expected = [2, 0, 1].map(|index| case.backend(index));
        assert_eq!(backends_of(case, 3), expected);
    });
}

#[test]
fn round_robin_goes_on_evenly_where_a_cursor_of_32_bits_would_wrap() {
    cases(60, |case| {
        let start = Cursor::from(u32::MAX) - 29;
        case.kernel.set_cursor(HOSTNAMES, start);
        // 2^32 is no multiple of three, so a wrap would choose one backend twice in a row.
        for (position, backend) in (start..).zip(backends_of(case, 60)) {
            let expected = u32::try_from(position % 3).unwrap();
            assert_eq!(backend, case.backend(expected), "position {position}");
        }
    });
}

#[test]
fn each_service_has_a_cursor_of_its_own() {
    cases(8, |case| {
        case.serve(OTHER, &BACKENDS);
        backends_of(case, 1);
        let request = case.opening(case.vip(OTHER));
        let (_, output) = case.kernel.run(Hook::Ingress, &request.frame());
        assert_eq!(output, request.to(case.backend(0)).frame());
        assert_eq!(backends_of(case, 2)[1], case.backend(1));
    });
}

#[test]
fn byte_of_an_unknown_algorithm_means_round_robin() {
    cases(3, |case| {
        let newer = Frontend {
            algorithm: 200,
            ..frontend(HOSTNAMES, 3)
        };
        case.kernel
            .put_frontend(case.vip(HOSTNAMES), case.proto, newer);
        let expected = BACKENDS.map(|index| case.backend(index));
        assert_eq!(backends_of(case, 3), expected);
    });
}

#[test]
fn random_is_even_within_chance_and_in_no_order() {
    const FLOWS: u16 = 3000;
    cases(FLOWS.into(), |case| {
        let random = Frontend {
            algorithm: Algorithm::Random as u8,
            ..frontend(HOSTNAMES, 3)
        };
        case.kernel
            .put_frontend(case.vip(HOSTNAMES), case.proto, random);
        let backends = backends_of(case, FLOWS);
        let expected = f64::from(FLOWS) / 3.0;
        let counts = counts(&backends);
        assert_eq!(counts.len(), 3);
        let chi_square: f64 = counts
            .values()
            .map(|count| (f64::from(*count) - expected).powi(2) / expected)
            .sum();
        assert!(
            chi_square < CHI_SQUARE_MAX,
            "{counts:?} has chi-square {chi_square}"
        );
        // A third of all neighbours are equal by chance; in round-robin none is.
        let repeated = backends
            .windows(2)
            .filter(|pair| pair[0] == pair[1])
            .count();
        assert!(
            (850..1150).contains(&repeated),
            "{repeated} of {FLOWS} repeat the one before"
        );
    });
}
