// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two IP families as type parameters.
//!
//! Everything that handles packets or tables takes an `F: Family`, so that IPv4 and IPv6 are one
//! piece of code compiled twice.
//! **Invariant:** addresses are byte arrays in reading order (network order) everywhere.

/// An IP address as the bytes a person reads: `[u8; 4]` or `[u8; 16]`.
///
/// # Safety
/// Implementors are plain bytes: no padding, every bit pattern valid, `size_of::<Self>() == LEN`.
pub unsafe trait Address:
    Copy + Eq + Ord + core::hash::Hash + core::fmt::Debug + AsRef<[u8]> + Send + Sync + 'static
{
    /// Bytes in the address.
    const LEN: usize;
    /// All bytes zero.
    const ZERO: Self;
    /// The address as up to four 32-bit words in network order, the rest zero.
    ///
    /// By value: a reference to bytes forgets that the field it came from is aligned, and the
    /// address would be loaded byte by byte.
    fn words(self) -> [u32; 4];
    /// The address whose words these are; those beyond its length are ignored.
    fn from_words(words: [u32; 4]) -> Self;
    /// True for 127.0.0.0/8 or `::1`, and for the address that is all zero.
    fn is_loopback_or_unspecified(self) -> bool;
    /// A number in the form of an address that no host has: 24 bits of it within 0.0.0.0/8, or all of
    /// them within `::/64`.
    fn from_number(number: u64) -> Self;
}

/// The same word. On BPF the optimiser does not see through it: words that are copied or zeroed in a
/// row would become one `memmove` or `memset`, which is a loop over bytes there, and arithmetic that
/// stands for a comparison would become a branch.
#[inline(always)]
pub fn opaque(word: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut same = word;
        // SAFETY: moves a register to itself; with no instruction at all, two lines of source would
        // share one and the kernel refuses such line information.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) same, options(nomem, nostack, preserves_flags));
        }
        same
    }
    #[cfg(not(target_arch = "bpf"))]
    word
}

// SAFETY: an array of bytes has neither padding nor invalid patterns.
unsafe impl Address for [u8; 4] {
    const LEN: usize = 4;
    const ZERO: Self = [0; 4];

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [u32::from_ne_bytes(self), 0, 0, 0]
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> Self {
        words[0].to_ne_bytes()
    }

    #[inline(always)]
    fn is_loopback_or_unspecified(self) -> bool {
        self[0] == 127 || self == Self::ZERO
    }

    #[inline(always)]
    fn from_number(number: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "as documented")]
        let low = number as u32 & 0x00ff_ffff;
        low.to_be_bytes()
    }
}

// SAFETY: an array of bytes has neither padding nor invalid patterns.
unsafe impl Address for [u8; 16] {
    const LEN: usize = 16;
    const ZERO: Self = [0; 16];

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        let [a, b, c, d]: [u32; 4] = bytemuck::cast(self);
        [opaque(a), opaque(b), opaque(c), opaque(d)]
    }

    #[inline(always)]
    fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        bytemuck::cast([opaque(a), opaque(b), opaque(c), opaque(d)])
    }

    #[inline(always)]
    fn is_loopback_or_unspecified(self) -> bool {
        let [a, b, c, d] = self.words();
        (a | b | c) == 0 && (d == 0 || d == 1_u32.to_be())
    }

    #[inline(always)]
    fn from_number(number: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "its two halves")]
        let (high, low) = ((number >> 32) as u32, number as u32);
        Self::from_words([0, 0, high.to_be(), low.to_be()])
    }
}

/// An IP family.
pub trait Family: Copy + core::fmt::Debug + Send + Sync + 'static {
    /// The address type of the family.
    type Addr: Address;
    /// True for IPv6.
    const IS_V6: bool;
    /// Ethertype in host order.
    const ETHERTYPE: u16;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// The family's name in tables and metrics.
    const NAME: &'static str;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = [u8; 4];
    const IS_V6: bool = false;
    const ETHERTYPE: u16 = 0x0800;
    const AF: u8 = 2;
    const NAME: &'static str = "IPv4";
}

impl Family for V6 {
    type Addr = [u8; 16];
    const IS_V6: bool = true;
    const ETHERTYPE: u16 = 0x86dd;
    const AF: u8 = 10;
    const NAME: &'static str = "IPv6";
}
