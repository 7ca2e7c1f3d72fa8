// SPDX-License-Identifier: MIT OR Apache-2.0
//! The system call `bpf` itself, for what aya keeps to itself.
//!
//! **Invariant:** attributes have the length that aya's have, with zeros in what is not set, which
//! every kernel takes, however few of them it knows.

use std::io;

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Attributes with nothing set.
pub(crate) fn attributes() -> bpf_attr {
    // SAFETY: the union consists of numbers and arrays of numbers, for which zeros are fine.
    unsafe { std::mem::zeroed() }
}

/// Makes the call; gives what it returned.
///
/// # Safety
///
/// The attributes must be those of the command, and every address among them that of memory as
/// long as the command reads or writes.
pub(crate) unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    let size = size_of_val(attributes);
    // SAFETY: the caller vouches for the addresses; the kernel reads the attributes up to the size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, attributes, size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
