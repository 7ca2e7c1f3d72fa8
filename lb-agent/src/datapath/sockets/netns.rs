// SPDX-License-Identifier: MIT OR Apache-2.0
//! By which cookie the programs know the network namespace of this process.
//!
//! **Invariant:** the answer is about the namespace of the calling thread.
#![expect(unsafe_code, reason = "nix has no wrapper for this option of sockets")]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use aya::maps::Array;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};

use super::super::error::DatapathError;
use super::super::kernel::fit;
use super::super::loader::OBJECT;

/// KERNEL: >= 4.12, `SO_COOKIE`.
const SO_COOKIE: libc::c_int = 57;
/// KERNEL: >= 5.14, `SO_NETNS_COOKIE`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The program that tells the namespace of one socket.
const LEARN: &str = "lb_learn4";
const LEARNED: &str = "LEARNED";
/// Where the socket that is asked about is connected to: discard, at nobody.
const DISCARD: u16 = 9;

/// The cookie of the calling thread's network namespace.
///
/// An error of [`io::ErrorKind::Unsupported`] where the kernel does not tell.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    option(&OwnedFd::from(socket), SO_NETNS_COOKIE)
}

/// The same on a kernel that does not tell: a program at the cgroup is asked by connecting a socket.
/// The calling process must be in that cgroup or below.
pub fn learn_netns_cookie(cgroup: &Path) -> Result<u64, DatapathError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(socket_failed)?;
    let copy = socket.try_clone().map_err(socket_failed)?;
    let cookie = option(&OwnedFd::from(copy), SO_COOKIE).map_err(socket_failed)?;
    let mut loader = EbpfLoader::new();
    loader.override_global("LEARNING_SOCKET", &cookie, true);
    for name in lb_common::abi::names::ALL {
        // The maps of this object are for nothing but being there.
        loader.map_max_entries(name, 1);
    }
    let object = fit(&mut loader, OBJECT);
    let mut ebpf = loader
        .load(&object)
        .map_err(|source| DatapathError::Object {
            source: Box::new(source),
        })?;
    attach(&mut ebpf, cgroup)?;
    socket
        .connect((Ipv4Addr::LOCALHOST, DISCARD))
        .map_err(socket_failed)?;
    let map = ebpf
        .map(LEARNED)
        .ok_or(DatapathError::Missing { name: LEARNED })?;
    let failed = |source| DatapathError::Map {
        what: "read",
        map: LEARNED,
        source: Box::new(source),
    };
    let learned = Array::<_, u64>::try_from(map).map_err(failed)?;
    // The program goes with the object, at the end of this function.
    learned.get(&0, 0).map_err(failed)
}

fn attach(ebpf: &mut Ebpf, cgroup: &Path) -> Result<(), DatapathError> {
    let failed = |error| DatapathError::refused(LEARN, error);
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(LEARN)
        .and_then(|program| program.try_into().ok())
        .ok_or(DatapathError::Missing { name: LEARN })?;
    program.load().map_err(failed)?;
    let folder = File::open(cgroup).map_err(|source| DatapathError::Directory {
        what: "open cgroup",
        path: cgroup.to_owned(),
        source,
    })?;
    program
        .attach(folder, CgroupAttachMode::Single)
        .map_err(failed)
        .map(drop)
}

fn socket_failed(source: io::Error) -> DatapathError {
    DatapathError::OwnSocket { source }
}

/// An option of a socket that is a number of 64 bits.
fn option(socket: &OwnedFd, name: libc::c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, the size of the value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(value);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOPROTOOPT) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, error));
    }
    Err(error)
}
