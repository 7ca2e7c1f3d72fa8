// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pinned link: which cgroup it is on, another program in its place, and its end.
//!
//! **Invariant:** a link is changed in place, so at no moment is there no program, and it ends at once
//! when it is asked to, also while something else still has it open.
#![expect(
    unsafe_code,
    reason = "aya replaces programs of links of tc and XDP only"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// KERNEL: >= 4.4, `BPF_OBJ_GET`.
const OBJ_GET: libc::c_int = 7;
/// KERNEL: >= 5.7, `BPF_LINK_UPDATE`.
const LINK_UPDATE: libc::c_int = 29;

/// KERNEL: >= 5.9, `BPF_LINK_DETACH`.
const LINK_DETACH: libc::c_int = 34;

/// The kernel's `bpf_attr` for opening a pin.
#[derive(Default)]
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The kernel's `bpf_attr` for replacing the program of a link.
#[derive(Default)]
#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    expected: u32,
}

/// The kernel's `bpf_attr` for ending a link.
#[repr(C)]
struct Detach {
    link: u32,
}

/// A link that is pinned.
pub(super) struct Link(OwnedFd);

impl Link {
    /// Opens the link at `path`; none when nothing is there.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut get = Get {
            path: u64::try_from(name.as_ptr().expose_provenance()).unwrap_or_default(),
            ..Get::default()
        };
        // SAFETY: the kernel reads the attributes and the name, which live until the call returns.
        let fd = match unsafe { bpf(OBJ_GET, &mut get) } {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // SAFETY: a new descriptor, of which nobody else knows.
        Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// The id of the cgroup that it is on; 0 when that cgroup is gone or the link was detached by
    /// force.
    pub(super) fn cgroup(&self) -> io::Result<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        Ok(cgroup_id(&text).unwrap_or_default())
    }

    /// Puts another program in the place of the one that it has.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut update = Update {
            link: self.0.as_raw_fd().cast_unsigned(),
            program: program.as_raw_fd().cast_unsigned(),
            ..Update::default()
        };
        // SAFETY: the kernel reads the attributes, which live until the call returns.
        unsafe { bpf(LINK_UPDATE, &mut update) }.map(drop)
    }

    /// Takes its program off, now. What is pinned and is no link is refused (`EINVAL`).
    pub(super) fn detach(&self) -> io::Result<()> {
        let mut detach = Detach {
            link: self.0.as_raw_fd().cast_unsigned(),
        };
        // SAFETY: the kernel reads the attributes, which live until the call returns.
        match unsafe { bpf(LINK_DETACH, &mut detach) } {
            // KERNEL: a kind of link that ends only with its last descriptor, which is its pin.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The line `cgroup_id` of what the kernel tells of a descriptor.
fn cgroup_id(fdinfo: &str) -> Option<u64> {
    let mut lines = fdinfo.lines();
    let value = lines.find_map(|line| line.strip_prefix("cgroup_id:"))?;
    value.trim().parse().ok()
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attributes` are what the command takes, and point to what it reads.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: as the caller promises; the attributes live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_read_from_what_the_kernel_tells() {
        let text =
            "pos:\t0\nlink_type:\tcgroup\nlink_id:\t12\ncgroup_id:\t4711\nattach_type:\t10\n";
        assert_eq!(cgroup_id(text), Some(4711));
        assert_eq!(cgroup_id("pos:\t0\n"), None);
    }
}
