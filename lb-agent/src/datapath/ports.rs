// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which source ports masqueraded flows may get.
//!
//! Those that were asked for, without those that the kernel gives to sockets by itself and without
//! node ports: a reply must belong to one of them only.
//! **Invariant:** pure. The ranges are disjoint, in order, and as many as the packet path reads.

use std::fmt;
use std::str::FromStr;

/// Ranges that the packet path has room for.
const RANGES_MAX: usize = 4;
/// An unused range: its end is before its begin.
const UNUSED: (u16, u16) = (1, 0);

/// A range of ports, both ends included; `first` is at least 1 and at most `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Where node ports are, unless the API server was told otherwise.
    pub const NODE_PORTS: Self = Self {
        first: 30_000,
        last: 32_767,
    };
    /// Ports for masqueraded flows: all but those of system services, node ports and the kernel's
    /// own choice (`ip_local_port_range`).
    pub const SNAT_DEFAULT: [Self; 2] = [
        Self {
            first: 1024,
            last: 29_999,
        },
        Self {
            first: 61_000,
            last: 65_535,
        },
    ];

    /// The range from `first` to `last`; none for port 0 or ends in the wrong order.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first {
            return None;
        }
        Some(Self { first, last })
    }

    /// Ports in it.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// What is left of it without `other`.
    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        if other.last < self.first || self.last < other.first {
            return [Some(self), None].into_iter().flatten();
        }
        let before = other
            .first
            .checked_sub(1)
            .filter(|last| *last >= self.first);
        let after = other
            .last
            .checked_add(1)
            .filter(|first| *first <= self.last);
        let before = before.and_then(|last| Self::new(self.first, last));
        let after = after.and_then(|first| Self::new(first, self.last));
        [before, after].into_iter().flatten()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The text is no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of ports, such as 30000-32767")]
pub struct NotAPortRange(String);

impl FromStr for PortRange {
    type Err = NotAPortRange;

    fn from_str(text: &str) -> Result<Self, NotAPortRange> {
        let parse = || {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Self::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
        };
        parse().ok_or_else(|| NotAPortRange(text.to_owned()))
    }
}

/// The ports that masqueraded flows may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatPorts {
    ranges: Vec<PortRange>,
    /// Ports that are left out, because they lie in more ranges than there is room for.
    pub left_out: u32,
}

impl SnatPorts {
    /// Those of `wanted` that are in none of `others`; none when no port is left. Of more pieces
    /// than there is room for the smallest are left out.
    pub fn new(wanted: &[PortRange], others: &[PortRange]) -> Option<Self> {
        let mut ranges = merge(wanted.to_vec());
        for other in others {
            ranges = ranges.into_iter().flat_map(|r| r.without(*other)).collect();
        }
        ranges.sort_by_key(|range| std::cmp::Reverse(range.count()));
        let left_out = ranges.iter().skip(RANGES_MAX);
        let left_out = left_out.map(|range| range.count()).sum();
        ranges.truncate(RANGES_MAX);
        ranges.sort();
        (!ranges.is_empty()).then_some(Self { ranges, left_out })
    }

    /// How many ports there are.
    pub fn count(&self) -> u32 {
        self.ranges.iter().map(|range| range.count()).sum()
    }

    /// As the packet path reads them: first and last port of each range, in order.
    pub fn words(&self) -> [u16; 2 * RANGES_MAX] {
        let mut words = [0; 2 * RANGES_MAX];
        let ranges = self.ranges.iter().map(|range| (range.first, range.last));
        let all = ranges.chain(std::iter::repeat(UNUSED));
        for (pair, (first, last)) in words.chunks_exact_mut(2).zip(all) {
            pair.copy_from_slice(&[first, last]);
        }
        words
    }
}

impl fmt::Display for SnatPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(", "))
    }
}

/// Puts ranges together that overlap or touch.
fn merge(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The ports that the kernel gives to sockets, as `/proc` tells them.
pub(super) fn parse_local_ports(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    PortRange::new(first, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(words: &str) -> Vec<PortRange> {
        words
            .split_whitespace()
            .map(|w| w.parse().unwrap())
            .collect()
    }

    fn pool(wanted: &str, others: &str) -> String {
        let pool = SnatPorts::new(&ranges(wanted), &ranges(others));
        pool.map_or_else(|| "none".to_owned(), |pool| pool.to_string())
    }

    #[test]
    fn the_pool_is_what_nobody_else_uses() {
        let default = "1024-29999 61000-65535";
        for (wanted, others, left) in [
            (
                default,
                "32768-60999 30000-32767",
                "1024-29999, 61000-65535",
            ),
            (default, "1024-65535 30000-32767", "none"),
            (
                default,
                "15000-61000 30000-32767",
                "1024-14999, 61001-65535",
            ),
            (
                default,
                "2000-2999 20000-22767",
                "1024-1999, 3000-19999, 22768-29999, 61000-65535",
            ),
            ("1-65535", "32768-60999 30000-32767", "1-29999, 61000-65535"),
            ("1-65535", "1-65534", "65535-65535"),
            ("1-65535", "2-65535", "1-1"),
            ("5000-6000 5500-7000 7001-7002", "", "5000-7002"),
            ("7000-8000 5000-6000", "5000-6000", "7000-8000"),
            ("5000", "5000", "none"),
            ("65000-65535 65535", "", "65000-65535"),
        ] {
            assert_eq!(pool(wanted, others), left, "{wanted} without {others}");
        }
    }

    #[test]
    fn of_more_pieces_than_there_is_room_for_the_largest_are_used() {
        let wanted = ranges("1000-1009 2000-2019 3000-3001 4000-4029 5000-5039");
        let pool = SnatPorts::new(&wanted, &[]).unwrap();
        assert_eq!(
            pool.to_string(),
            "1000-1009, 2000-2019, 4000-4029, 5000-5039"
        );
        assert_eq!((pool.count(), pool.left_out), (100, 2));
    }

    #[test]
    fn unused_ranges_end_before_they_begin() {
        let pool = SnatPorts::new(&ranges("61000-65535 1024-29999"), &[]).unwrap();
        assert_eq!(pool.words(), [1024, 29_999, 61_000, 65_535, 1, 0, 1, 0]);
        assert_eq!(pool.count(), 33_512);
    }

    #[test]
    fn texts_that_are_no_ranges_are_refused() {
        for text in ["", "0", "0-5", "6-5", "1-65536", "a-b", "-", "1-2-3", "+1-"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        assert_eq!(
            parse_local_ports("32768\t60999\n"),
            PortRange::new(32_768, 60_999)
        );
        assert_eq!(parse_local_ports("32768"), None);
    }
}
