// SPDX-License-Identifier: MIT OR Apache-2.0
//! Features of kernels, how each is tried, what it is used for, and what is lost without it.
//!
//! **Invariant:** each is tried once in a process. What cannot be tried, for want of a right, counts as
//! absent; TCX and the cookie count as there, and their use is refused.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use memchr::memmem;
use nix::errno::Errno;
use serde::Serialize;

use super::attempt::{self, Instruction};
use crate::datapath::sockets;
use crate::error_chain;

/// Something that not every kernel from Linux 5.10 on has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Links of tc programs that others' programs do not disturb.
    Tcx,
    /// Additions that tell the value before.
    AtomicFetch,
    /// Programs that choose the error of `connect()`.
    SetRetval,
    /// The number of a network namespace, told to processes.
    NetnsCookie,
    /// Checksums of IPv6 told apart from those of IPv4 when an address in them changes.
    ChecksumIpv6,
    /// Sockets that others can end.
    EndSockets,
    /// Memory of maps that counts as that of the agent's cgroup.
    CgroupMemory,
    /// The kernel's own description of its types.
    TypeInformation,
    /// A queue that all processors write to.
    RingBuffer,
}

/// A feature on this kernel.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Found {
    /// Its name.
    pub feature: &'static str,
    /// The first Linux that has it; distributions may have it in an older one.
    pub since: &'static str,
    /// Whether this kernel has it.
    pub here: bool,
    /// What it is used for where it is there.
    pub used: &'static str,
    /// What is lost or done instead where it is not.
    pub without: &'static str,
}

/// Every feature, tried on this kernel.
pub fn features() -> Vec<Found> {
    Feature::ALL.into_iter().map(Feature::found).collect()
}

/// Whether this kernel has a feature.
pub(in crate::datapath) fn has(feature: Feature) -> bool {
    static TRIED: [OnceLock<bool>; Feature::ALL.len()] =
        [const { OnceLock::new() }; Feature::ALL.len()];
    let tried = TRIED.get(feature as usize);
    tried.is_some_and(|tried| *tried.get_or_init(|| feature.attempt()))
}

impl Feature {
    /// All of them, in order of declaration.
    pub const ALL: [Self; 9] = [
        Self::Tcx,
        Self::AtomicFetch,
        Self::SetRetval,
        Self::NetnsCookie,
        Self::ChecksumIpv6,
        Self::EndSockets,
        Self::CgroupMemory,
        Self::TypeInformation,
        Self::RingBuffer,
    ];

    fn found(self) -> Found {
        let [feature, since, used, without] = self.words();
        Found {
            feature,
            since,
            here: has(self),
            used,
            without,
        }
    }

    /// Name, first Linux, use, loss.
    const fn words(self) -> [&'static str; 4] {
        match self {
            Self::Tcx => [
                "TCX",
                "6.6",
                "programs are links at devices, first at ingress and last at egress",
                "filters of a clsact qdisc: who removes the qdisc removes them, and the agent puts \
                 them back",
            ],
            Self::AtomicFetch => [
                "atomic fetch",
                "5.12",
                "connections are dealt out to backends strictly in turn",
                "connections that begin at the same moment on two processors may get the same \
                 backend",
            ],
            Self::SetRetval => [
                "bpf_set_retval",
                "6.1",
                "a node's connect() to a Service without endpoints fails with ECONNREFUSED",
                "a node's connect() to a Service without endpoints fails with EPERM",
            ],
            Self::NetnsCookie => [
                "SO_NETNS_COOKIE",
                "5.14",
                "the agent asks for the cookie of its network namespace",
                "a program at the cgroup tells the agent its namespace; the agent must be in that cgroup",
            ],
            Self::ChecksumIpv6 => [
                "BPF_F_IPV6",
                "6.16",
                "checksums of IPv6 that the network card computed stay valid",
                "the kernel computes them anew where someone asks for them",
            ],
            Self::EndSockets => [
                "INET_DIAG_DESTROY",
                "4.9",
                "connected sockets of UDP get an error when their backend goes",
                "connected sockets of UDP go on sending to a backend that is gone",
            ],
            Self::CgroupMemory => [
                "memory by cgroup",
                "5.11",
                "maps count as memory of the agent's container",
                "maps count as locked memory: RLIMIT_MEMLOCK is raised, which takes CAP_SYS_RESOURCE \
                 (the chart's securityContext.raiseMemlock)",
            ],
            Self::TypeInformation => [
                "kernel BTF",
                "5.4",
                "newer flags of helpers are looked up there",
                "flags that are newer count as absent: BPF_F_IPV6",
            ],
            Self::RingBuffer => [
                "ring buffer",
                "5.8",
                "not used: refusals are counted by reason, none is sent anywhere",
                "nothing",
            ],
        }
    }

    fn attempt(self) -> bool {
        match self {
            Self::Tcx => has_tcx(),
            Self::AtomicFetch => match attempt::load(&FETCH) {
                // What verifiers say of an instruction that they do not know.
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => false,
                tried => self.tried(tried.map(|()| true)),
            },
            Self::SetRetval => {
                let kind = ProgramType::CgroupSockAddr;
                self.tried(is_helper_supported(kind, BpfHelper::BPF_FUNC_set_retval))
            }
            Self::NetnsCookie => {
                let cookie = sockets::netns_cookie();
                cookie.map_or_else(|error| error.kind() != io::ErrorKind::Unsupported, |_| true)
            }
            Self::ChecksumIpv6 => knows(b"\0BPF_F_IPV6\0"),
            Self::EndSockets => match sockets::can_end() {
                Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => false,
                tried => self.tried(tried.map(|()| true)),
            },
            // The helper came with the accounting, and has nothing else to do with it.
            Self::CgroupMemory => {
                let kind = ProgramType::SocketFilter;
                let helper = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;
                self.tried(is_helper_supported(kind, helper))
            }
            Self::TypeInformation => Path::new(TYPES).exists(),
            Self::RingBuffer => self.tried(is_map_supported(MapType::RingBuf)),
        }
    }

    /// Absent, if trying it failed for a reason of another kind, which is told.
    fn tried<E: std::error::Error>(self, tried: Result<bool, E>) -> bool {
        tried.unwrap_or_else(|error| {
            let [feature, ..] = self.words();
            let why = error_chain(&error);
            tracing::warn!("{feature}: counts as absent, because it could not be tried: {why}");
            false
        })
    }
}

/// Where the kernel describes its types.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Whether the kernel's description of its types has a name: faster than trying what it stands for.
fn knows(name: &[u8]) -> bool {
    let types = std::fs::read(TYPES).unwrap_or_default();
    memmem::find(&types, name).is_some()
}

/// Asks which links are at the loopback device: a kernel without TCX does not know the question.
fn has_tcx() -> bool {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Err(ProgramError::SyscallError(error)) => {
            error.io_error.raw_os_error() != Some(Errno::EINVAL as i32)
        }
        // No right to ask: whoever attaches is told by the kernel.
        _ => true,
    }
}

/// Adds to a word on the stack and takes what was there before.
const FETCH: [Instruction; 5] = [
    // r0 = 0
    Instruction {
        operation: 0xb7,
        registers: 0x00,
        offset: 0,
        constant: 0,
    },
    // *(u64 *)(r10 - 8) = r0
    Instruction {
        operation: 0x7b,
        registers: 0x0a,
        offset: -8,
        constant: 0,
    },
    // r1 = 1
    Instruction {
        operation: 0xb7,
        registers: 0x01,
        offset: 0,
        constant: 1,
    },
    // r1 = atomic_fetch_add((u64 *)(r10 - 8), r1)
    Instruction {
        operation: 0xdb,
        registers: 0x1a,
        offset: -8,
        constant: 1,
    },
    // exit
    Instruction {
        operation: 0x95,
        registers: 0,
        offset: 0,
        constant: 0,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_its_place() {
        for (place, feature) in Feature::ALL.into_iter().enumerate() {
            assert_eq!(feature as usize, place, "{feature:?}");
        }
    }
}
