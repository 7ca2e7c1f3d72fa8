// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Programs at a socket that do nothing: what it costs to be asked at all.
//!
//! **Invariant:** nothing but the return value, as in the kernel's own selftests.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

/// Lets every call go on.
#[cgroup_sock_addr(connect4)]
fn empty_connect4(_ctx: SockAddrContext) -> i32 {
    1
}

/// The same of IPv6.
#[cgroup_sock_addr(connect6)]
fn empty_connect6(_ctx: SockAddrContext) -> i32 {
    1
}
