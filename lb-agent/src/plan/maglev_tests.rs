// SPDX-License-Identifier: MIT OR Apache-2.0
//! What makes a lookup table worth having: even, the same everywhere, and hardly changed by a change.
#![expect(
    clippy::cast_precision_loss,
    reason = "tables and weights are small numbers"
)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Weighted = (EndpointAddress, u8);

/// Backend `n`, of IPv4 or, above 1,000,000, of IPv6.
fn backend(n: u32) -> EndpointAddress {
    let [_, a, b, c] = n.to_be_bytes();
    if n > 1_000_000 {
        let address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c];
        return (address.into(), 8080);
    }
    ([10, 128 + a, b, c].into(), 8080)
}

fn equal(backends: impl IntoIterator<Item = u32>) -> Vec<Weighted> {
    backends.into_iter().map(|n| (backend(n), 1)).collect()
}

/// The address in each slot of the table that these members have.
fn table(members: &[Weighted]) -> Vec<EndpointAddress> {
    let size = table_size(members.len()).max(SMALLEST);
    let slots = populate(members, size);
    assert_eq!(slots.len(), usize::from(size), "every slot names a backend");
    slots.into_iter().map(|at| members[at].0).collect()
}

fn shares(table: &[EndpointAddress]) -> BTreeMap<EndpointAddress, u32> {
    let mut shares = BTreeMap::new();
    for address in table {
        *shares.entry(*address).or_insert(0) += 1;
    }
    shares
}

/// The part of all hashes that `after` sends to another backend than `before`, of those that need
/// not move: their backend is in both.
fn moved(before: &[EndpointAddress], after: &[EndpointAddress]) -> f64 {
    let (had, has) = (shares(before), shares(after));
    let finest = before.len().max(after.len());
    let needless = (0..finest).filter(|at| {
        let from = before[at * before.len() / finest];
        let to = after[at * after.len() / finest];
        from != to && has.contains_key(&from) && had.contains_key(&to)
    });
    needless.count() as f64 / finest as f64
}

#[test]
fn a_table_has_a_hundred_slots_for_each_backend() {
    let sizes = [0, 1, 2, 5, 6, 20, 21, 81, 82, 327, 32_768].map(table_size);
    let expected = [
        0, 0, 512, 512, 2_048, 2_048, 8_192, 8_192, 32_768, 32_768, 32_768,
    ];
    assert_eq!(sizes, expected);
}

#[test]
fn a_backend_that_goes_or_comes_moves_few_flows_of_the_others() {
    let (mut sum, mut tables) = (0.0, 0.0);
    // With every size of table, and from each to the next: 5 to 6, 20 to 21, 81 to 82.
    for n in (1..=7).chain([9, 15, 19, 20, 21, 40, 81, 82, 163]) {
        for round in 0..3 {
            let first = round * 10_000;
            let all = equal(first..=first + n);
            let gone = backend(first + (round * 7) % (n + 1));
            let rest: Vec<_> = all.iter().filter(|(a, _)| *a != gone).copied().collect();
            let (all, rest) = (table(&all), table(&rest));
            let (going, coming) = (moved(&all, &rest), moved(&rest, &all));
            assert!(going <= 0.15 && coming <= 0.15, "{n}: {going} {coming}");
            sum += going;
            tables += 1.0;
        }
    }
    let mean = sum / tables;
    assert!(mean <= 0.08, "{mean}");
}

#[test]
fn a_set_that_is_replaced_one_by_one_keeps_what_stays() {
    let mut members = equal(0..10);
    let first = table(&members);
    members[4] = (backend(100), 1);
    let second = table(&members);
    assert!(moved(&first, &second) <= 0.10);
    let kept = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    // A tenth had to move.
    assert!(kept as f64 >= 0.75 * first.len() as f64, "{kept}");
}

#[test]
fn as_many_backends_as_slots_get_one_each() {
    let largest = u32::from(LARGEST);
    let shares = shares(&table(&equal(0..largest)));
    assert_eq!(shares.len(), usize::from(LARGEST));
    assert_eq!(table(&equal(0..65_535)).len(), usize::from(LARGEST));
}

#[test]
fn tables_never_change_between_versions() {
    let members = equal([1, 2, 3]);
    let slots = populate(&members, 512);
    let text: String = slots[..64].iter().map(usize::to_string).collect();
    assert_eq!(
        text,
        "0001201210122002220022000101120212200120002011020112021200212100"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_node_comes_to_one_table(
        backends in prop::collection::btree_map(0_u32..2_000_000, 0_u8..=100, 2..60),
        order in any::<prop::sample::Index>(),
    ) {
        let mut members: Vec<Weighted> =
            backends.into_iter().map(|(n, weight)| (backend(n), weight)).collect();
        let expected = table(&members);
        let middle = order.index(members.len());
        members.rotate_left(middle);
        members[middle..].reverse();
        prop_assert_eq!(table(&members), expected);
    }

    #[test]
    fn shares_are_even(backends in prop::collection::btree_set(0_u32..2_000_000, 2..90)) {
        let members = equal(backends);
        let table = table(&members);
        let fair = table.len() as f64 / members.len() as f64;
        for (address, share) in shares(&table) {
            prop_assert!((f64::from(share) / fair - 1.0).abs() <= 0.03, "{address:?}: {share} of {fair}");
        }
    }

    #[test]
    fn shares_are_in_proportion_to_weights(
        backends in prop::collection::btree_map(0_u32..2_000_000, 1_u8..=100, 2..60),
    ) {
        let members: Vec<Weighted> =
            backends.into_iter().map(|(n, weight)| (backend(n), weight)).collect();
        let table = table(&members);
        let sum: u32 = members.iter().map(|(_, weight)| u32::from(*weight)).sum();
        let shares = shares(&table);
        for (address, weight) in members {
            let fair = table.len() as f64 * f64::from(weight) / f64::from(sum);
            let share = shares.get(&address).copied().unwrap_or(0);
            prop_assert!(share >= 1);
            let off = (f64::from(share) - fair).abs();
            prop_assert!(off <= 1.0 + 0.03 * fair, "{address:?}: {share} of {fair}");
        }
    }

    #[test]
    fn a_weight_that_changes_moves_few_flows_of_the_others(
        backends in prop::collection::btree_map(0_u32..2_000_000, 1_u8..=10, 3..30),
        which in any::<prop::sample::Index>(),
    ) {
        let mut members: Vec<Weighted> =
            backends.into_iter().map(|(n, weight)| (backend(n), weight)).collect();
        let before = table(&members);
        let changed = which.index(members.len());
        members[changed].1 += 1;
        let after = table(&members);
        let address = members[changed].0;
        let needless = before.iter().zip(&after);
        let needless = needless.filter(|(a, b)| a != b && **a != address && **b != address);
        prop_assert!(needless.count() as f64 <= 0.15 * before.len() as f64);
    }
}
