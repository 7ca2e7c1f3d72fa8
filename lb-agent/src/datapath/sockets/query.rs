// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which programs of ours are on a cgroup, whoever holds them.
//!
//! **Invariant:** nothing is changed. What the kernel does not tell is not there: names of programs
//! are for who has `CAP_SYS_ADMIN`.
#![expect(unsafe_code, reason = "aya asks for other kinds of hooks only")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::programs::loaded_programs;

use super::PROGRAMS;

/// KERNEL: >= 4.15, `BPF_PROG_QUERY`.
const PROG_QUERY: libc::c_int = 16;
/// `enum bpf_attach_type` of our hooks: connect, sendmsg, recvmsg and getpeername, of IPv4 and IPv6.
const HOOKS: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];
/// More programs than the kernel lets one hook have (`BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// The kernel's `bpf_attr` for asking what is attached.
#[derive(Default)]
#[repr(C)]
struct Query {
    target: u32,
    hook: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _pad: u32,
}

/// Names of our programs that are on a cgroup.
pub(in crate::datapath) fn ours_on(cgroup: &Path) -> Vec<String> {
    let Ok(folder) = File::open(cgroup) else {
        return Vec::new();
    };
    let hooks = HOOKS.iter().map(|hook| ids(&folder, *hook));
    let ids: Vec<u32> = hooks.flat_map(Result::unwrap_or_default).collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let there = loaded_programs().filter_map(Result::ok);
    let there = there.filter(|program| ids.contains(&program.id()));
    let names = there.filter_map(|program| program.name_as_str().map(str::to_owned));
    names.filter(|name| is_ours(name)).collect()
}

fn is_ours(name: &str) -> bool {
    PROGRAMS.iter().any(|(ours, _)| *ours == name)
}

fn ids(folder: &File, hook: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        target: folder.as_raw_fd().cast_unsigned(),
        hook,
        ids: u64::try_from(ids.as_mut_ptr().expose_provenance()).unwrap_or_default(),
        count: u32::try_from(MOST).unwrap_or_default(),
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes the attributes, and at most `count` ids; both live until the
    // call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(query.count).unwrap_or(MOST);
    Ok(ids.into_iter().take(count).collect())
}
