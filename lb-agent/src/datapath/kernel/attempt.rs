// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads a program of a few instructions, to find out whether the kernel knows them.
//!
//! **Invariant:** the program goes away with the call.
#![expect(unsafe_code, reason = "aya loads only programs of an object")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER` (`include/uapi/linux/bpf.h`).
const PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u32 = 1;

/// An instruction: operation, destination and source registers, offset, constant.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) operation: u8,
    /// The source's number in the upper half, the destination's in the lower.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) constant: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8, "as the kernel lays it out");

/// The kernel's `bpf_attr` for loading a program, as far as every kernel knows it.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

const _: () = assert!(size_of::<Attributes>() == 48, "as the kernel lays it out");

/// How often a program is loaded that the verifier was disturbed at: a signal ends its work.
const ATTEMPTS: u32 = 5;

/// Whether the kernel takes the program; an error says what it has against it.
pub(super) fn load(program: &[Instruction]) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        match load_once(program) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn load_once(program: &[Instruction]) -> io::Result<()> {
    let license = c"GPL";
    let mut attributes = Attributes {
        kind: SOCKET_FILTER,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: address(program.as_ptr()),
        license: address(license.as_ptr()),
        ..Attributes::default()
    };
    let size = size_of::<Attributes>();
    // SAFETY: the kernel reads `count` instructions and a string with an end, which live until the call
    // returns, and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut attributes, size) };
    match i32::try_from(result) {
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok(descriptor) if descriptor >= 0 => drop(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => return Err(io::Error::last_os_error()),
    }
    Ok(())
}

fn address<T>(pointer: *const T) -> u64 {
    u64::try_from(pointer.addr()).unwrap_or_default()
}
