// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! How often refused packets are answered: a token bucket.
//!
//! A refusal costs more than a drop and goes to whatever source a packet claims, so a flood must not
//! become a flood of answers. **Invariant:** a bucket of zero bytes is full, so its map needs no
//! beginning.

/// Answers per second and CPU; also how many may come at once. A client that tries 100 connections
/// a second on each of ten ports still learns of every refusal.
pub const ANSWERS_PER_SECOND: u32 = 1_000;

/// One CPU's bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// What has been taken and not come back, in answers times the jiffies of a second: whatever
    /// the length of a jiffy, nothing is lost in rounding.
    taken: u64,
    /// Low 32 bits of the kernel's jiffies when `taken` was written.
    last: u32,
    _pad: u32,
}

impl Bucket {
    /// Takes one answer out at jiffy `now`, of which a second has `hz`; false when there is none.
    #[inline(always)]
    pub fn take(&mut self, now: u32, hz: u32) -> bool {
        let hz = u64::from(hz);
        let back = u64::from(now.wrapping_sub(self.last)) * u64::from(ANSWERS_PER_SECOND);
        self.last = now;
        self.taken = self.taken.saturating_sub(back);
        if self.taken > u64::from(ANSWERS_PER_SECOND - 1) * hz {
            return false;
        }
        self.taken += hz;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` answers at one moment are allowed.
    fn taken(bucket: &mut Bucket, now: u32, hz: u32, count: u32) -> u32 {
        (0..count).map(|_| u32::from(bucket.take(now, hz))).sum()
    }

    #[test]
    fn a_burst_is_answered_up_to_the_limit_and_a_second_later_again() {
        for hz in [100, 250, 1000] {
            let mut bucket = Bucket::default();
            let now = u32::MAX - 10;
            assert_eq!(taken(&mut bucket, now, hz, 3000), ANSWERS_PER_SECOND);
            let half = now.wrapping_add(hz / 2);
            assert_eq!(taken(&mut bucket, half, hz, 3000), ANSWERS_PER_SECOND / 2);
            let later = half.wrapping_add(3600 * hz);
            assert_eq!(taken(&mut bucket, later, hz, 3000), ANSWERS_PER_SECOND);
        }
    }

    #[test]
    fn a_steady_flood_gets_the_rate_whatever_the_length_of_a_jiffy() {
        for hz in [100, 250, 300, 1000] {
            let mut bucket = Bucket::default();
            assert_eq!(taken(&mut bucket, 0, hz, 5000), ANSWERS_PER_SECOND);
            let ten_seconds = 1..=10 * hz;
            let sum: u32 = ten_seconds.map(|now| taken(&mut bucket, now, hz, 50)).sum();
            assert_eq!(sum, 10 * ANSWERS_PER_SECOND, "{hz}");
        }
    }
}
