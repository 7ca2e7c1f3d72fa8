// SPDX-License-Identifier: MIT OR Apache-2.0
//! How new flows spread over backends.
//!
//! The verdict of chance: for three backends, chi-square beyond 27.6 happens once in a million.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Algorithm, Cursor, Frontend};
use lb_common::hash::{START, finish, mix, mix_address, table_slot};

use super::case::{Case, EPOCH, Family, HOSTNAMES, OTHER, backend_id, frontend};
use super::kernel::{Hook, Sizes, Verdict};
use super::wire::{Proto, SYN, Segment};

/// Of chi-square with two degrees of freedom, at one in a million.
const CHI_SQUARE_MAX: f64 = 27.6;
/// Backends that flows are spread over.
const BACKENDS: [u32; 3] = [0, 1, 2];
/// Slots of a lookup table.
const SLOTS: u16 = 24;

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

/// The backend that a slot of the table names: by turns, and where a backend is gone its slots alone
/// have another one.
fn named(slot: u16, backends: &[u32]) -> u32 {
    let first = BACKENDS[usize::from(slot) % BACKENDS.len()];
    if backends.contains(&first) {
        first
    } else {
        backends[usize::from(slot / 3) % backends.len()]
    }
}

/// Writes a service that chooses by hash; `shift` makes its ids other ones.
fn serve_hashed(case: &mut Case, service: u32, shift: u32, algorithm: Algorithm, backends: &[u32]) {
    let id = service + shift;
    for (slot, &index) in (0..).zip(backends) {
        let at = case.backend(index);
        let backend = backend_id(id, index);
        case.kernel.put_backend(backend, id, EPOCH, at);
        case.kernel.put_slot(id, slot, backend);
    }
    for slot in 0..SLOTS {
        let backend = backend_id(id, named(slot, backends));
        case.kernel.put_table_slot(id, slot, backend);
    }
    let hashed = Frontend {
        algorithm: algorithm as u8,
        table_size: SLOTS,
        ..frontend(id, backends.len())
    };
    let vip = case.vip(service);
    case.kernel.put_frontend(vip, case.proto, hashed);
}

/// The first packet of flow `n` to a service: no two of one client, no two of one port.
fn hashed_opening(case: &Case, service: u32, n: u16) -> Segment {
    let [high, low] = n.to_be_bytes();
    let client: IpAddr = match case.family {
        Family::V4 => [10, 244, 9 + high, low].into(),
        Family::V6 => [0xfd00, 0x10, 0x244, 9, 0, 0, 0, n].into(),
    };
    let port = 20_000 + 1_000 * u16::try_from(service).unwrap() + n;
    let opening = case.opening(case.vip(service));
    opening.from((client, port).into())
}

/// The slot that a flow falls into, worked out apart from the programs.
fn slot_of(algorithm: Algorithm, request: &Segment) -> u16 {
    let mix_ip = |state, ip| match ip {
        IpAddr::V4(a) => mix_address(state, a.octets()),
        IpAddr::V6(a) => mix_address(state, a.octets()),
    };
    let mut state = mix_ip(START, request.source.ip());
    if algorithm == Algorithm::Maglev {
        let ports = [request.source.port(), request.destination.port()];
        state = mix_ip(state, request.destination.ip());
        state = mix(state, u32::from(ports[0]) << 16 | u32::from(ports[1]));
        state = mix(state, request.proto.number().into());
    }
    table_slot(finish(state), SLOTS)
}

/// The index of the backend that a first packet reaches.
fn reached(case: &Case, request: &Segment) -> u32 {
    let (verdict, output) = case.kernel.run(Hook::Ingress, &request.frame());
    assert_eq!(verdict, Verdict::Pass);
    let reached = |index: &u32| request.to(case.backend(*index)).frame() == output;
    BACKENDS.into_iter().find(reached).expect("a backend")
}

#[test]
fn hashed_flow_has_one_backend_on_all_nodes_and_keeps_it_when_another_one_goes() {
    const FLOWS: u16 = 300;
    cases(u32::from(FLOWS) * 4, |case| {
        let sizes = Sizes::default();
        let Some(mut other) = Case::open(case.proto, case.family, sizes) else {
            return;
        };
        for (service, algorithm) in [
            (HOSTNAMES, Algorithm::Maglev),
            (OTHER, Algorithm::SourceHash),
        ] {
            serve_hashed(case, service, 0, algorithm, &BACKENDS);
            serve_hashed(&mut other, service, 10, algorithm, &BACKENDS);
            // The other node has had other flows before.
            for n in 900..950 {
                reached(&other, &hashed_opening(&other, service, n));
            }
            let mut hits = [0; BACKENDS.len()];
            for n in 0..FLOWS {
                let request = hashed_opening(case, service, n);
                let expected = named(slot_of(algorithm, &request), &BACKENDS);
                assert_eq!(reached(case, &request), expected, "{algorithm:?}, flow {n}");
                assert_eq!(reached(&other, &request), expected, "on the other node");
                hits[expected as usize] += 1;
            }
            assert!(hits.iter().all(|hits| *hits > 50), "{hits:?}");
            // New flows, since those that are open keep their backend anyhow.
            serve_hashed(&mut other, service, 10, algorithm, &[0, 2]);
            let mut moved = 0;
            for n in FLOWS..2 * FLOWS {
                let request = hashed_opening(case, service, n);
                let (all, fewer) = (reached(case, &request), reached(&other, &request));
                if all == 1 {
                    assert_ne!(fewer, 1, "{algorithm:?}, flow {n}");
                    moved += 1;
                } else {
                    assert_eq!(fewer, all, "{algorithm:?}, flow {n}");
                }
            }
            assert!(moved > 50, "{moved} flows had the backend that went");
        }
        assert!(case.kernel.counters().is_empty());
        assert!(other.kernel.counters().is_empty());
    });
}
