// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The checksum of SCTP, `CRC32c` (RFC 9260, appendix A), after a change of four bytes.
//!
//! A CRC is linear: that of two messages of one length differs by the CRC, begun with zero, of what
//! they differ by. So an update needs the changed bits and their distance to the end of the packet;
//! the packet itself is not read. Moving a difference over `n` bytes multiplies it by x^(8n), a
//! product of four powers from a table, one for each hexadecimal digit of `n`.
//! **Invariant:** no branch depends on data, so the verifier walks each loop once.

/// The polynomial, its lowest power in the highest bit, as in all numbers here.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// Hexadecimal digits of a length: a packet has less than 2^16 bytes.
const DIGITS: usize = 4;
/// x^(8 * digit * 16^k) at index k, digit.
static POWERS: [[u32; 16]; DIGITS] = powers();

const fn powers() -> [[u32; 16]; DIGITS] {
    let mut powers = [[ONE; 16]; DIGITS];
    // x^(8 * 16^k)
    let mut step = ONE >> 8;
    let mut index = 0;
    while index < DIGITS {
        let mut digit = 1;
        while digit < 16 {
            powers[index][digit] = multiply(powers[index][digit - 1], step);
            digit += 1;
        }
        step = multiply(powers[index][15], step);
        index += 1;
    }
    powers
}

/// All ones for the bit 1, zero for the bit 0.
#[inline(always)]
const fn mask(bit: u32) -> u32 {
    0_u32.wrapping_sub(bit & 1)
}

/// The product modulo the polynomial.
#[inline(always)]
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= b & mask(a >> 31);
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & mask(b));
        bit += 1;
    }
    product
}

/// The checksum field, as on the wire, after four bytes changed that begin `to_end` bytes before the
/// end of the packet (less than 2^16).
#[inline(always)]
pub fn update(field: [u8; 4], from: [u8; 4], to: [u8; 4], to_end: u32) -> [u8; 4] {
    let mut difference = u32::from_le_bytes(from) ^ u32::from_le_bytes(to);
    let mut index = 0;
    while index < DIGITS {
        let digit = (to_end >> (4 * index)) & 15;
        difference = multiply(POWERS[index][digit as usize], difference);
        index += 1;
    }
    (u32::from_le_bytes(field) ^ difference).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as the RFC has it.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ POLYNOMIAL
                } else {
                    crc >> 1
                };
            }
        }
        !crc
    }

    #[test]
    fn the_known_value_of_nine_digits_comes_out() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_longest_packet_is_within_reach() {
        let mut packet = vec![0x5a; 65_535];
        let before = crc32c(&packet).to_le_bytes();
        packet[..4].copy_from_slice(&[1, 2, 3, 4]);
        let after = update(before, [0x5a; 4], [1, 2, 3, 4], 65_535);
        assert_eq!(u32::from_le_bytes(after), crc32c(&packet));
    }

    proptest! {
        #[test]
        fn update_anywhere_equals_recomputation(
            mut packet in proptest::collection::vec(any::<u8>(), 16..2000),
            to in any::<[u8; 4]>(),
            place in any::<proptest::sample::Index>(),
        ) {
            let before = crc32c(&packet).to_le_bytes();
            let at = place.index(packet.len() - 3);
            let from: [u8; 4] = packet[at..at + 4].try_into().unwrap();
            packet[at..at + 4].copy_from_slice(&to);
            let to_end = u32::try_from(packet.len() - at).unwrap();
            let after = update(before, from, to, to_end);
            prop_assert_eq!(u32::from_le_bytes(after), crc32c(&packet));
        }
    }
}
