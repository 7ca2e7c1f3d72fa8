// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The bytes of a socket buffer by way of helpers, linear or not.
//!
//! Slower than reading directly, and without bounds for the verifier to follow: for packets that are
//! rare. **Invariant:** the helpers check every offset.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes};
use bytemuck::Pod;
use lb_common::Reason;
use lb_ebpf::packet::Bytes;

/// A socket buffer from the network header on, wherever its bytes lie.
pub(super) struct Whole {
    pub(super) skb: *mut __sk_buff,
    /// Bytes before the network header.
    pub(super) l2: u32,
}

impl Bytes for Whole {
    const WALKS: bool = true;

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is read is a header field"
    )]
    fn read<T: Pod>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<c_void>();
        let (at, length) = (self.l2 + offset, size_of::<T>() as u32);
        // SAFETY: the value has room for its size; the helper checks the offset.
        if unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to, length) } != 0 {
            return None;
        }
        // SAFETY: every byte has been written, and every pattern is valid.
        Some(unsafe { value.assume_init() })
    }
}

impl Whole {
    /// Writes, and corrects the sum over the packet where the device has computed one.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is stored is a header field"
    )]
    pub(super) fn write<T>(&self, offset: u32, value: &T) -> Result<(), Reason> {
        let from = ptr::from_ref(value).cast::<c_void>();
        let (at, length) = (self.l2 + offset, size_of::<T>() as u32);
        let flags = BPF_F_RECOMPUTE_CSUM.into();
        // SAFETY: the value is readable for its size; the helper checks the offset.
        match unsafe { bpf_skb_store_bytes(self.skb, at, from, length, flags) } {
            0 => Ok(()),
            _ => Err(Reason::Malformed),
        }
    }
}
