// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each flow entry had counted when it was last read, in 16 bytes for an entry.
//!
//! A hash table with linear probing, at most nine tenths full. The map of the standard library needs
//! 24 to 48 bytes for the same.
//! **Invariant:** an entry is known by 56 bits of a keyed hash: of half a million entries some two
//! share them once in a million such tables.

/// Fields of a slot: fingerprint 56 bits, bytes 40, packets 32. A free slot is all zeros.
type Slot = [u64; 2];

const FREE: Slot = [0; 2];
/// Bits of [`Counts::bytes`].
const BYTES_BITS: u32 = 40;
/// Bits of a fingerprint.
const FINGERPRINT_BITS: u32 = 56;
/// Slots of the first table.
const SLOTS_FIRST: usize = 64;

/// Which entry it is; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    /// Of a hash with 64 good bits.
    pub(super) const fn of(hash: u64) -> Self {
        let bits = hash >> (u64::BITS - FINGERPRINT_BITS);
        Self(if bits == 0 { 1 } else { bits })
    }
}

/// What an entry has counted, as far as it is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Packets modulo 2^32, as in the entry itself.
    pub(super) packets: u32,
    /// Bytes modulo 2^40: half of that is 40 s at 100 Gbit/s.
    pub(super) bytes: u64,
}

impl Counts {
    pub(super) const fn new(packets: u32, bytes: u64) -> Self {
        let bytes = bytes & ((1 << BYTES_BITS) - 1);
        Self { packets, bytes }
    }

    /// Packets and bytes since `base`, which then stands where this does.
    ///
    /// What goes back counts as nothing, and the base stays: two processors that count at once may
    /// lose a count, and the halves of a number may be read at different times.
    pub(super) fn advance(self, base: &mut Self) -> (u64, u64) {
        let packets = self.packets.wrapping_sub(base.packets).cast_signed();
        let unused = u64::BITS - BYTES_BITS;
        let bytes = self.bytes.wrapping_sub(base.bytes) << unused;
        let bytes = bytes.cast_signed() >> unused;
        if packets > 0 {
            base.packets = self.packets;
        }
        if bytes > 0 {
            base.bytes = self.bytes;
        }
        (
            u64::from(packets.max(0).unsigned_abs()),
            bytes.max(0).unsigned_abs(),
        )
    }
}

const fn pack(Fingerprint(bits): Fingerprint, counts: Counts) -> Slot {
    [
        bits << 8 | counts.bytes >> 32,
        counts.bytes << 32 | counts.packets as u64,
    ]
}

const fn fingerprint(slot: Slot) -> Fingerprint {
    Fingerprint(slot[0] >> 8)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn counts(slot: Slot) -> Counts {
    Counts {
        packets: slot[1] as u32,
        bytes: (slot[0] & 0xff) << 32 | slot[1] >> 32,
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Bases {
    slots: Vec<Slot>,
    used: usize,
}

impl Bases {
    /// Entries in it.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    pub(super) fn get(&self, key: Fingerprint) -> Option<Counts> {
        let at = self.find(key)?;
        (self.slots[at] != FREE).then(|| counts(self.slots[at]))
    }

    pub(super) fn put(&mut self, key: Fingerprint, value: Counts) {
        if (self.used + 1) * 10 > self.slots.len() * 9 {
            self.grow();
        }
        if let Some(at) = self.find(key) {
            self.used += usize::from(self.slots[at] == FREE);
            self.slots[at] = pack(key, value);
        }
    }

    /// Forgets an entry, and moves up those that had to give way to it.
    pub(super) fn remove(&mut self, key: Fingerprint) {
        let Some(mut hole) = self.find(key).filter(|at| self.slots[*at] != FREE) else {
            return;
        };
        let mut at = hole;
        loop {
            at = self.after(at);
            if self.slots[at] == FREE {
                break;
            }
            // One that is farther from its home than from the hole can be found there as well.
            let home = self.home(fingerprint(self.slots[at]));
            if self.distance(home, at) >= self.distance(hole, at) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
        }
        self.slots[hole] = FREE;
        self.used -= 1;
    }

    /// Where `key` is, or could be put; nowhere without slots.
    fn find(&self, key: Fingerprint) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut at = self.home(key);
        while self.slots[at] != FREE && fingerprint(self.slots[at]) != key {
            at = self.after(at);
        }
        Some(at)
    }

    fn home(&self, Fingerprint(bits): Fingerprint) -> usize {
        let scaled = (u128::from(bits) * self.slots.len() as u128) >> FINGERPRINT_BITS;
        usize::try_from(scaled).unwrap_or_default()
    }

    const fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() {
            0
        } else {
            at + 1
        }
    }

    /// Steps from one slot to a later one.
    const fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.slots.len() - from
        }
    }

    /// By a quarter: twice the room would be twice the memory.
    fn grow(&mut self) {
        let slots = (self.slots.len() / 4 * 5).max(SLOTS_FIRST);
        let old = std::mem::replace(&mut self.slots, vec![FREE; slots]);
        self.used = 0;
        for slot in old.into_iter().filter(|slot| *slot != FREE) {
            self.put(fingerprint(slot), counts(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_only_advance_also_beyond_the_ends_of_their_numbers() {
        let mut base = Counts::new(u32::MAX - 1, (1 << BYTES_BITS) - 100);
        assert_eq!(Counts::new(3, 50).advance(&mut base), (5, 150));
        assert_eq!(base, Counts::new(3, 50));
        // A count that was lost: the next one makes up for it before anything is added.
        assert_eq!(Counts::new(2, 40).advance(&mut base), (0, 0));
        assert_eq!(Counts::new(4, 49).advance(&mut base), (1, 0));
        assert_eq!(Counts::new(4, 60).advance(&mut base), (0, 10));
        let mut none = Counts::default();
        assert_eq!(Counts::new(1, 1 << 38).advance(&mut none), (1, 1 << 38));
    }

    #[test]
    fn every_field_of_a_slot_keeps_its_bits() {
        for (hash, packets, bytes) in [
            (u64::MAX, u32::MAX, u64::MAX),
            (u64::MAX, 0, 0),
            (0, u32::MAX, 0),
            (0, 0, u64::MAX),
        ] {
            let (key, value) = (Fingerprint::of(hash), Counts::new(packets, bytes));
            let slot = pack(key, value);
            assert_ne!(slot, FREE);
            assert_eq!((fingerprint(slot), counts(slot)), (key, value));
        }
    }

    #[test]
    fn many_entries_take_little_more_than_their_sixteen_bytes() {
        let mut bases = Bases::default();
        for n in 1..=100_000_u64 {
            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bases.put(Fingerprint::of(hash), Counts::new(1, n));
        }
        assert_eq!(bases.len(), 100_000);
        assert!(bases.slots.len() < 140_000, "{}", bases.slots.len());
    }

    proptest! {
        /// Few keys, close together at both ends of the table, so that runs are long and go round.
        #[test]
        fn it_is_a_map_whatever_comes_and_goes(
            steps in prop::collection::vec((0_u64..80, any::<bool>(), any::<u32>()), 1..400),
        ) {
            let top = (1 << FINGERPRINT_BITS) - 40;
            let (mut bases, mut model) = (Bases::default(), BTreeMap::new());
            for (n, put, packets) in steps {
                let key = Fingerprint(if n < 40 { top + n } else { n });
                let value = Counts::new(packets, u64::from(packets) << 8);
                if put {
                    bases.put(key, value);
                    model.insert(key, value);
                } else {
                    bases.remove(key);
                    model.remove(&key);
                }
                prop_assert_eq!(bases.len(), model.len());
            }
            for n in 0..80 {
                let key = Fingerprint(if n < 40 { top + n } else { n });
                prop_assert_eq!(bases.get(key), model.get(&key).copied());
            }
        }
    }
}
