// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving up a capability, to see what happens without it.
//!
//! **Invariant:** the calling thread loses it, and those that it starts from then on.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// Gives up the capability with this bit for good.
pub(crate) fn give_up(bit: u32) -> io::Result<()> {
    let mut header = [VERSION, 0];
    // Effective, permitted, inheritable: the lower half of each, then the upper half.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: the kernel reads the header and writes two sets.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    for set in &mut sets[(bit / 32) as usize] {
        *set &= !(1 << (bit % 32));
    }
    // SAFETY: the kernel reads the header and two sets.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
