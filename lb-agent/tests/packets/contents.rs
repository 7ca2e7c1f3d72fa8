// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in the maps of a kernel, whatever they are for, and how it is taken out.
//!
//! **Invariant:** every map of the object is seen, also those that no test has heard of; one of a
//! kind that is not known here is a failure.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya_obj::generated::{BPF_F_RDONLY_PROG, bpf_cmd};

use super::syscall::{attributes, bpf};

/// A map as the system call knows it.
struct Raw {
    /// The kernel's number for it.
    id: u32,
    fd: u32,
    kind: Kind,
    key: usize,
    /// Bytes of a value, those of all processors together.
    value: usize,
    entries: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All keys are always there.
    Array,
    /// Keys are there when something was put there.
    Keyed,
    /// What neither tests nor programs write: constants, and where programs jump to.
    Fixed,
}

/// Takes everything out of every map.
pub(crate) fn empty(ebpf: &mut Ebpf) {
    for (name, map) in ebpf.maps() {
        let map = Raw::of(name, map);
        map.empty()
            .unwrap_or_else(|error| panic!("{name} cannot be emptied: {error}"));
    }
}

impl Raw {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of all kinds that there are, the object has few"
    )]
    fn of(name: &str, map: &Map) -> Self {
        let (data, kind, processors) = match map {
            Map::Array(data) => (data, Kind::Array, None),
            Map::PerCpuArray(data) => (data, Kind::Array, Some(aya::util::nr_cpus().unwrap())),
            Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) => {
                (data, Kind::Keyed, None)
            }
            Map::ProgramArray(data) => (data, Kind::Fixed, None),
            other => panic!("teach this test to empty {name}, a {other:?}"),
        };
        Self::new(data, kind, processors)
    }

    fn new(data: &MapData, kind: Kind, processors: Option<usize>) -> Self {
        let info = data.info().unwrap();
        let constants = info.map_flags() & BPF_F_RDONLY_PROG != 0;
        let size = usize::try_from(info.value_size()).unwrap();
        Self {
            id: info.id(),
            fd: data.fd().as_fd().as_raw_fd().try_into().unwrap(),
            kind: if constants { Kind::Fixed } else { kind },
            key: info.key_size().try_into().unwrap(),
            value: processors.map_or(size, |count| size.next_multiple_of(8) * count),
            entries: info.max_entries(),
        }
    }

    fn empty(&self) -> io::Result<()> {
        match self.kind {
            Kind::Fixed => {}
            Kind::Array => {
                for index in 0..self.entries {
                    self.put(&index.to_ne_bytes(), &vec![0; self.value])?;
                }
            }
            Kind::Keyed => {
                for key in self.keys()? {
                    self.call(bpf_cmd::BPF_MAP_DELETE_ELEM, Some(&key), None)?;
                }
            }
        }
        Ok(())
    }

    fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.key];
            let last = keys.last().map(Vec::as_slice);
            match self.call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, last, Some(&mut next)) {
                Ok(()) => keys.push(next),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.call(
            bpf_cmd::BPF_MAP_UPDATE_ELEM,
            Some(key),
            Some(&mut value.to_owned()),
        )
    }

    /// `other` is the value, or the next key.
    fn call(
        &self,
        command: bpf_cmd,
        key: Option<&[u8]>,
        other: Option<&mut [u8]>,
    ) -> io::Result<()> {
        let mut attributes = attributes();
        // SAFETY: the commands used here have these attributes.
        let element = unsafe { &mut attributes.__bindgen_anon_2 };
        element.map_fd = self.fd;
        element.key = key.map_or(0, |key| key.as_ptr() as u64);
        element.__bindgen_anon_1.value = other.map_or(0, |other| other.as_mut_ptr() as u64);
        // SAFETY: keys and values are as long as the kernel says that this map's are.
        unsafe { bpf(command, &mut attributes) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::names;

    use super::*;
    use crate::pool::{Lent, Sizes};
    use crate::support::can_run;

    /// Names of maps with something in them that is not zero.
    fn filled(ebpf: &Ebpf) -> Vec<&str> {
        let mut names: Vec<_> = ebpf
            .maps()
            .filter(|(name, map)| Raw::of(name, map).is_filled())
            .map(|(name, _)| name)
            .collect();
        names.sort_unstable();
        names
    }

    impl Raw {
        fn is_filled(&self) -> bool {
            match self.kind {
                Kind::Fixed => false,
                Kind::Array => (0..self.entries).any(|index| {
                    let mut value = vec![0; self.value];
                    let key = index.to_ne_bytes();
                    self.call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, Some(&key), Some(&mut value))
                        .unwrap();
                    value.iter().any(|byte| *byte != 0)
                }),
                Kind::Keyed => !self.keys().unwrap().is_empty(),
            }
        }

        /// Puts ones everywhere: at every index of an array, at a few keys of other maps.
        fn fill(&self) {
            let value = vec![0xff; self.value];
            match self.kind {
                Kind::Fixed => {}
                Kind::Array => {
                    for index in 0..self.entries {
                        self.put(&index.to_ne_bytes(), &value).unwrap();
                    }
                }
                Kind::Keyed => {
                    // Where keys are prefixes, these are their lengths.
                    for first in 1..=self.entries.min(32) {
                        let mut key = vec![0xff; self.key];
                        key[..4].copy_from_slice(&first.to_ne_bytes());
                        self.put(&key, &value).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn a_kernel_that_is_lent_again_has_nothing_in_any_map() {
        // No other test has these, so the second kernel is the first.
        let sizes = Sizes {
            connections: 61,
            ..Sizes::default()
        };
        if !can_run() {
            return;
        }
        let first = Lent::take(sizes);
        assert_eq!(filled(&first), [""; 0], "in a new kernel");
        for (name, map) in first.maps() {
            Raw::of(name, map).fill();
        }
        let all = first
            .maps()
            .filter(|(name, map)| Raw::of(name, map).kind != Kind::Fixed)
            .count();
        assert!(all >= names::ALL.len());
        assert_eq!(filled(&first).len(), all, "maps that were filled");
        let ids_of_first = ids(&first);
        drop(first);

        let second = Lent::take(sizes);
        assert_eq!(ids(&second), ids_of_first, "the kernel that was given back");
        assert_eq!(filled(&second), [""; 0], "in a kernel that is lent again");
    }

    #[test]
    fn the_kernel_of_a_failed_test_is_not_lent_again() {
        let sizes = Sizes {
            connections: 59,
            ..Sizes::default()
        };
        if !can_run() {
            return;
        }
        let failed = std::thread::spawn(move || {
            let kernel = Lent::take(sizes);
            let ids = ids(&kernel);
            std::panic::resume_unwind(Box::new(ids));
        });
        let of_failed = failed.join().unwrap_err().downcast::<Vec<u32>>().unwrap();
        assert_ne!(ids(&Lent::take(sizes)), *of_failed);
    }

    /// The kernel's numbers for the maps.
    fn ids(ebpf: &Ebpf) -> Vec<u32> {
        let mut ids: Vec<_> = ebpf
            .maps()
            .map(|(name, map)| Raw::of(name, map).id)
            .collect();
        ids.sort_unstable();
        ids
    }
}
