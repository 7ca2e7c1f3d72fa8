// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Arithmetic of the Internet checksum (RFC 1071, RFC 1624), on words as they lie in memory.
//!
//! One's complement sums do not care about byte order as long as both sides use the same, so
//! nothing here swaps bytes.
//! **Invariant:** only differences are computed; the payload is never read. What the kernel does
//! with them for the four kinds of checksum offload is told in `kernel/edit.rs`.

/// Adds with end-around carry.
#[inline(always)]
pub const fn add(sum: u32, word: u32) -> u32 {
    let (sum, carry) = sum.overflowing_add(word);
    sum + carry as u32
}

/// The sum to add to a checksum's complement when `from` becomes `to`, as `bpf_csum_diff` gives
/// it.
#[inline(always)]
pub fn difference(from: &[u32; 4], to: &[u32; 4], words: usize) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index < words && index < 4 {
        sum = add(sum, !from[index]);
        sum = add(sum, to[index]);
        index += 1;
    }
    sum
}

/// The sum of words.
#[inline(always)]
pub const fn sum(words: &[u32]) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index < words.len() {
        sum = add(sum, words[index]);
        index += 1;
    }
    sum
}

/// The checksum of what sums up to `sum`: the complement of its folding.
#[inline(always)]
pub const fn finish(mut sum: u32) -> [u8; 2] {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "folded twice, the sum has 16 bits"
    )]
    let folded = !(sum as u16);
    folded.to_ne_bytes()
}

/// The sum to add when a half word `from` becomes `to`, both as they lie in the packet at an even
/// place.
#[inline(always)]
pub const fn difference_of_halves(from: [u8; 2], to: [u8; 2]) -> u32 {
    !u16::from_ne_bytes(from) as u32 + u16::from_ne_bytes(to) as u32
}

/// The IPv4 header checksum after the header's words changed by `difference`; RFC 1624 eq. 3.
#[inline(always)]
pub fn update(checksum: [u8; 2], difference: u32) -> [u8; 2] {
    let complement = u32::from(!u16::from_ne_bytes(checksum));
    finish(add(complement, difference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, written as the RFC has it.
    fn recompute(header: &[u8]) -> u16 {
        let mut sum: u32 = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn incremental_update_equals_recomputation(
            mut header in proptest::array::uniform20(any::<u8>()),
            address in any::<[u8; 4]>(),
        ) {
            // A real header is never all zero, the one case where 0 and 0xffff are told apart.
            header[0] = 0x45;
            header[10..12].copy_from_slice(&[0, 0]);
            let before = recompute(&header).to_be_bytes();
            let from = [u32::from_ne_bytes(header[12..16].try_into().unwrap()), 0, 0, 0];
            let to = [u32::from_ne_bytes(address), 0, 0, 0];
            header[12..16].copy_from_slice(&address);
            let after = update(before, difference(&from, &to, 1));
            prop_assert_eq!(u16::from_be_bytes(after), recompute(&header));
        }

        #[test]
        fn difference_there_and_back_is_nothing(from in any::<[u32; 4]>(), to in any::<[u32; 4]>()) {
            let there = difference(&from, &to, 4);
            let back = difference(&to, &from, 4);
            let sum = add(there, back);
            prop_assert!(sum == 0 || sum == u32::MAX);
        }
    }
}
