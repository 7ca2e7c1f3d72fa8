// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Programs that only `cargo xtask bench packet` and `bench connect` run.
//!
//! `connect.rs` is what a socket's call is compared with, the others are for packets and never attached:
//! `drive.rs` restores a packet and jumps to a program under test; `dnat.rs` is the smallest
//! translation, to compare with; `micro.rs` does single operations on maps. On the host this binary
//! is empty.
//! **Invariant:** nothing of these is in the object that the agent carries.
//! Read next: lb-agent/benches/packet, which runs them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
#[expect(
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    reason = "the classifier macro hands the context over by value; what is cast is a header field"
)]
mod dnat;
#[cfg(target_arch = "bpf")]
#[expect(
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    reason = "the classifier macro hands the context over by value; what is cast is a header field"
)]
mod drive;
#[cfg(target_arch = "bpf")]
mod layout;
#[cfg(target_arch = "bpf")]
mod micro;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no panic is reachable: a program with this loop does not load.
    loop {}
}

/// Some helpers are for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
