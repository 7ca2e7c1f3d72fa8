// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads and writes many entries of a map at a time, at a fraction of what single ones cost.
//!
//! **Invariant:** entries that are there from begin to end of a walk are met once; those that come or
//! go meanwhile may or may not be met, and nothing makes the walk start anew.
#![expect(unsafe_code, reason = "aya has no operations on batches")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use nix::errno::Errno;

/// KERNEL: >= 5.6, `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_int = 24;
/// KERNEL: >= 5.6, `BPF_MAP_UPDATE_BATCH`.
const UPDATE_BATCH: libc::c_int = 26;

/// The kernel's `bpf_attr` for operations on batches.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Entries that there is room for; the kernel writes how many there are.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Attributes>() == 56, "as the kernel lays it out");

/// A walk over a hash map or an array.
pub(super) struct Batches<'a, K, V> {
    map: &'a MapData,
    keys: Vec<K>,
    values: Vec<V>,
    /// The bucket or element to go on with, as the kernel gave it; none at the begin.
    position: Option<u32>,
    ended: bool,
}

impl<'a, K: bytemuck::Pod, V: bytemuck::Pod> Batches<'a, K, V> {
    /// A walk in steps of at most `entries`, over a map with these keys and values.
    pub(super) fn new(map: &'a MapData, entries: usize) -> Self {
        Self {
            map,
            keys: vec![K::zeroed(); entries],
            values: vec![V::zeroed(); entries],
            position: None,
            ended: false,
        }
    }

    /// The next entries; none when all were met.
    pub(super) fn next(&mut self) -> io::Result<Option<(&[K], &[V])>> {
        if self.ended {
            return Ok(None);
        }
        let begin = self.position.unwrap_or_default();
        let mut end = 0_u32;
        let mut attributes = Attributes {
            in_batch: self.position.map_or(0, |_| address(&raw const begin)),
            out_batch: address(&raw mut end),
            keys: address(self.keys.as_mut_ptr()),
            values: address(self.values.as_mut_ptr()),
            count: u32::try_from(self.keys.len()).unwrap_or(u32::MAX),
            map: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            ..Attributes::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values, whose sizes are those of the
        // map, which `Pins` has checked, and one word at each end of the batch; all of them live
        // until the call returns.
        let result = unsafe { operate(LOOKUP_BATCH, &mut attributes) };
        if let Err(error) = result {
            if error.raw_os_error() != Some(Errno::ENOENT as i32) {
                return Err(error);
            }
            self.ended = true;
        }
        self.position = Some(end);
        let count = usize::try_from(attributes.count).unwrap_or_default();
        let count = count.min(self.keys.len());
        Ok(Some((&self.keys[..count], &self.values[..count])))
    }
}

/// Writes the values of these keys.
pub(super) fn put<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: &MapData,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    let entries = keys.len().min(values.len());
    let mut attributes = Attributes {
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count: u32::try_from(entries).unwrap_or(u32::MAX),
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        ..Attributes::default()
    };
    // SAFETY: the kernel reads `count` keys and values, whose sizes are those of the map, which
    // `Pins` has checked.
    unsafe { operate(UPDATE_BATCH, &mut attributes) }
}

/// Calls bpf(2).
///
/// # Safety
///
/// `attributes` point to what the command reads and writes.
unsafe fn operate(command: libc::c_int, attributes: &mut Attributes) -> io::Result<()> {
    let size = size_of::<Attributes>();
    // SAFETY: as the caller promises; the attributes live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A pointer as the kernel takes it.
fn address<T>(pointer: *const T) -> u64 {
    u64::try_from(pointer.addr()).unwrap_or_default()
}
