// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads programs as aya does, and keeps what the verifier says.
//!
//! aya asks for the verifier's log after a failure only, and the count of instructions in a
//! program's information is younger than Linux 5.10; the log of level `BPF_LOG_STATS` has all
//! numbers on every kernel.
//! **Invariant:** maps, constants, type information and instructions are those that aya would load
//! (`EbpfLoader::load` of the version that is pinned), nothing is left out for being measured.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use aya::maps::{Map, MapData};
use aya::{Btf, Ebpf};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};
use aya_obj::{Function, Object, Program, ProgramSection};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use crate::statistics::{Statistics, last_lines};
use crate::syscall::{attributes, bpf};

/// `BPF_LOG_LEVEL1`: what the verifier knows along the path that it refuses.
const LOG_PATH: u32 = 1;
/// `BPF_LOG_STATS`.
const LOG_STATISTICS: u32 = 4;
/// Bytes for the statistics, which are three or four lines.
const STATISTICS_SIZE: usize = 64 << 10;
/// Bytes for the log of a path: the most that Linux 5.10 takes, and what aya would try at last.
const PATH_SIZE: usize = (u32::MAX >> 8) as usize;

/// An object whose programs are ready to be loaded.
pub(crate) struct Loader {
    object: Object,
    types: Option<OwnedFd>,
    /// Keeps the maps alive that the instructions name.
    _maps: Ebpf,
}

/// A program as the kernel has it.
pub(crate) struct Loaded {
    pub(crate) statistics: Statistics,
    /// Bytes of the program as the verifier has rewritten it.
    pub(crate) rewritten: u32,
    /// Bytes of machine code.
    pub(crate) jited: u32,
}

/// A program that the kernel has not taken.
pub(crate) struct Refused {
    program: String,
    error: io::Error,
    /// What the verifier says.
    log: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            program,
            error,
            log,
        } = self;
        let said = last_lines(log);
        write!(
            f,
            "{program} is refused: {error}; the verifier's last lines:\n{said}"
        )
    }
}

impl Loader {
    /// Prepares the programs of an object for the maps that aya has made for it.
    pub(crate) fn new(bytes: &[u8], maps: Ebpf) -> Self {
        // KERNEL: before 5.11 maps and programs count as locked memory.
        setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).ok();
        let mut object = Object::parse(bytes).expect("aya has read it already");
        let features = aya::features();
        let types = features.btf().and_then(|features| {
            let types = object.fixup_and_sanitize_btf(features);
            let types = types.expect("the type information is in order");
            // As aya does: programs of these kinds need none.
            types.and_then(|types| load_types(&types.to_bytes()).ok())
        });
        if let Ok(kernel) = Btf::from_sys_fs() {
            object.relocate_btf(&kernel).expect("types are found");
        }
        // Taken out so that the object can be changed while they are read.
        let of_object = std::mem::take(&mut object.maps);
        let known = of_object.iter().map(|(name, map)| {
            let made = maps.map(name).expect("aya makes every map of the object");
            (name.as_str(), descriptor(made), map)
        });
        let sections: HashSet<usize> = object.functions.keys().map(|key| key.0).collect();
        object
            .relocate_maps(known, &sections)
            .expect("maps are found");
        object.relocate_calls(&sections).expect("callees are found");
        object.sanitize_functions(features);
        Self {
            object,
            types,
            _maps: maps,
        }
    }

    /// The names of all programs, sorted.
    pub(crate) fn programs(&self) -> Vec<String> {
        let mut names: Vec<_> = self.object.programs.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Loads one of them; it is gone when this returns.
    pub(crate) fn load(&self, name: &str) -> Result<Loaded, Refused> {
        let (result, log) = self.try_load(name, LOG_STATISTICS, STATISTICS_SIZE);
        if let Ok(program) = result {
            let statistics =
                Statistics::parse(&log).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (rewritten, jited) = sizes(&program).expect("a loaded program has information");
            return Ok(Loaded {
                statistics,
                rewritten,
                jited,
            });
        }
        let (result, log) = self.try_load(name, LOG_PATH, PATH_SIZE);
        let error = result.err();
        Err(Refused {
            program: name.to_owned(),
            error: error.unwrap_or_else(|| io::Error::other("but not with a longer log")),
            log,
        })
    }

    /// One attempt, and what the verifier says of it.
    fn try_load(&self, name: &str, level: u32, size: usize) -> (io::Result<OwnedFd>, String) {
        let program = &self.object.programs[name];
        let function = &self.object.functions[&program.function_key()];
        let mut log = vec![0; size];
        let mut attributes = attributes();
        describe(&mut attributes, program, function);
        let (lines, functions) = (
            function.line_info.line_info_bytes(),
            function.func_info.func_info_bytes(),
        );
        // SAFETY: these are the attributes of this command.
        let load = unsafe { &mut attributes.__bindgen_anon_3 };
        if aya::features().bpf_name() {
            // One byte less, so that a zero ends it.
            let end = load.prog_name.len() - 1;
            for (to, from) in load.prog_name[..end].iter_mut().zip(name.bytes()) {
                *to = from.cast_signed();
            }
        }
        if let Some(types) = &self.types {
            load.prog_btf_fd = number(types.as_raw_fd());
            if function.line_info_rec_size > 0 {
                load.line_info = lines.as_ptr() as u64;
                load.line_info_cnt = count(function.line_info.len());
                load.line_info_rec_size = count(function.line_info_rec_size);
            }
            if function.func_info_rec_size > 0 {
                load.func_info = functions.as_ptr() as u64;
                load.func_info_cnt = count(function.func_info.len());
                load.func_info_rec_size = count(function.func_info_rec_size);
            }
        }
        load.log_level = level;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = count(log.len());
        // SAFETY: instructions, type information and log live to the end of this function.
        let result = unsafe { descriptor_of(bpf_cmd::BPF_PROG_LOAD, &mut attributes) };
        let end = log.iter().position(|byte| *byte == 0);
        let log = String::from_utf8_lossy(&log[..end.unwrap_or(log.len())]);
        (result, log.into_owned())
    }
}

/// Kind, licence and instructions of a program.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of all kinds that there are, the object has few"
)]
fn describe(attributes: &mut bpf_attr, program: &Program, function: &Function) {
    // SAFETY: these are the attributes of the command that loads programs.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    let kind = match &program.section {
        ProgramSection::SchedClassifier => bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
        ProgramSection::CgroupSockAddr { attach_type } => {
            load.expected_attach_type = bpf_attach_type::from(*attach_type) as u32;
            bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR
        }
        other => panic!("teach this test to load {}, a {other:?}", function.name),
    };
    load.prog_type = kind as u32;
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = count(function.instructions.len());
    load.license = program.license.as_ptr() as u64;
}

fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    // SAFETY: these are the attributes of this command.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = count(bytes.len());
    // SAFETY: the bytes outlive the call.
    unsafe { descriptor_of(bpf_cmd::BPF_BTF_LOAD, &mut attributes) }
}

/// Bytes of a loaded program, rewritten and compiled.
fn sizes(program: &OwnedFd) -> io::Result<(u32, u32)> {
    // The beginning of `bpf_prog_info`: type, id, tag (8 bytes), length compiled, length rewritten.
    let mut info = [0_u32; 6];
    let mut attributes = attributes();
    attributes.info.bpf_fd = number(program.as_raw_fd());
    attributes.info.info_len = count(size_of_val(&info));
    attributes.info.info = info.as_mut_ptr() as u64;
    // SAFETY: the kernel writes no more than it is told that there is.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    let [_, _, _, _, jited, rewritten] = info;
    Ok((rewritten, jited))
}

/// A call that makes a file descriptor.
///
/// # Safety
///
/// As that of `bpf`.
unsafe fn descriptor_of(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: these commands return a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of all kinds that there are, the object has few"
)]
fn descriptor(map: &Map) -> RawFd {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::ProgramArray(data) => data,
        other => panic!("teach this test about {other:?}"),
    };
    data.fd().as_fd().as_raw_fd()
}

fn number(fd: RawFd) -> u32 {
    fd.try_into().expect("open descriptors are not negative")
}

fn count(of: usize) -> u32 {
    of.try_into().expect("sizes have 32 bits here")
}
