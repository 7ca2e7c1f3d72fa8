// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loaded kernels that the tests of one process lend each other.
//!
//! The verifier takes most of a short test's time, and ten times that on an emulated processor. A
//! runner with a process per test finds nothing here and loses nothing.
//! **Invariant:** one test at a time has a kernel, and finds every map of it empty; what a failed
//! test had is never lent again. Read next: `contents.rs`.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use lb_agent::datapath::{Refusal, fit};
use lb_agent::error_chain;
use lb_common::abi::names;

use super::contents;
use super::support::OBJECT;

/// Entries of most maps.
const ENTRIES: u32 = 64;
/// Entries of maps in which old entries give way. The kernel makes room before such a map is full,
/// and each processor keeps up to 128 free ones to itself, which older kernels do not give back.
const GIVING_WAY: u32 = 8192;
/// Kernels that wait at most, so that those of few tests do not hold memory to the end.
const WAITING_MAX: usize = 8;

/// Kernels that nobody has, in the order in which they were given back.
static WAITING: Mutex<Vec<(Sizes, Ebpf)>> = Mutex::new(Vec::new());

/// Programs that the verifier refused.
static REFUSED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// What may differ between the kernels of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Entries of each table of established flows.
    pub(crate) connections: u32,
    /// What the programs believe a second to be, in jiffies.
    pub(crate) hz: u32,
    /// The bit of the mark that asks for masquerading.
    pub(crate) mark: u32,
    /// The pool of masquerade ports: first and last port of each range.
    pub(crate) snat_ports: [u16; 8],
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            connections: 64,
            hz: 1_000_000_000,
            mark: 0x4000,
            snat_ports: [1024, 29_999, 61_000, 65_535, 1, 0, 1, 0],
        }
    }
}

/// A kernel that one test has.
pub(crate) struct Lent {
    sizes: Sizes,
    /// Always there, until it is given back.
    ebpf: Option<Ebpf>,
}

impl Lent {
    /// A kernel with every map empty; its programs may or may not be loaded.
    pub(crate) fn take(sizes: Sizes) -> Self {
        let ebpf = waiting(sizes).unwrap_or_else(|| open(&sizes));
        Self {
            sizes,
            ebpf: Some(ebpf),
        }
    }

    /// Loads a program, unless a test before has done so.
    pub(crate) fn load(&mut self, name: &str) {
        let program: &mut SchedClassifier = self.program_mut(name).unwrap().try_into().unwrap();
        if program.fd().is_ok() {
            return;
        }
        let mut refused = REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel would say the same for as long again, to every test.
        assert!(!refused.contains(name), "{name} was refused before");
        if let Err(error) = program.load() {
            refused.insert(name.to_owned());
            panic!("{name}: {}", error_chain(&Refusal::from(error)));
        }
    }
}

impl Deref for Lent {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        self.ebpf.as_ref().unwrap()
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().unwrap()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(self.ebpf.take().map(|ebpf| (self.sizes, ebpf)));
        if waiting.len() > WAITING_MAX {
            waiting.remove(0);
        }
    }
}

/// A kernel that was given back, emptied here rather than there: the last one needs it no more.
fn waiting(sizes: Sizes) -> Option<Ebpf> {
    let mut ebpf = {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        let found = waiting.iter().position(|(of, _)| *of == sizes)?;
        waiting.remove(found).1
    };
    contents::empty(&mut ebpf);
    Some(ebpf)
}

/// Makes the maps; programs are loaded when they are asked for.
fn open(sizes: &Sizes) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.override_global("HZ", &sizes.hz, true);
    loader.override_global("MASQUERADE_MARK", &sizes.mark, true);
    loader.override_global("SNAT_PORTS", &sizes.snat_ports, true);
    for &name in names::ALL {
        let entries = match name {
            names::CONNS_V4 | names::CONNS_V6 => sizes.connections,
            names::HALF_OPEN_V4
            | names::HALF_OPEN_V6
            | names::AFFINITY_V4
            | names::AFFINITY_V6
            | names::FRAGMENTS_V4
            | names::FRAGMENTS_V6 => GIVING_WAY,
            names::REASONS | names::RECENT | names::FRONTEND_PORTS => continue,
            _ => ENTRIES,
        };
        loader.map_max_entries(name, entries);
    }
    let object = fit(&mut loader, OBJECT);
    loader.load(&object).unwrap()
}
