// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which capabilities this process lacks for its work.
//!
//! Without one of them the kernel refuses some call much later, and what it says then (`EPERM`, or a
//! page of the verifier's) does not name it.
//! **Invariant:** a process that cannot find out what it holds is let go on. Read next: `loader.rs`.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use super::error::DatapathError;
use super::kernel::{Feature, has};

/// Bits of linux/capability.h, and what the agent needs them for.
const NEEDED: [(u32, &str); 3] = [
    // Attaching programs to devices and cgroups; devices, addresses and rules; ending sockets.
    (12, "CAP_NET_ADMIN"),
    // Arithmetic on pointers to packets, which the verifier lets pass for its holders only.
    (38, "CAP_PERFMON"),
    // Maps and programs.
    (39, "CAP_BPF"),
];
/// `CAP_SYS_ADMIN`, which the kernel takes for the last two as well.
const SYS_ADMIN: u64 = 1 << 21;
/// `CAP_SYS_RESOURCE`, whose holders raise their own limits.
const SYS_RESOURCE: u64 = 1 << 24;

/// Bytes that tables and programs of the usual sizes stay below.
const LOCKED_ENOUGH: u64 = 1 << 30;

/// Refuses to go on without what it takes.
pub(super) fn check() -> Result<(), DatapathError> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let Some(effective) = effective(&status) else {
        return Ok(());
    };
    let lacking = lacking(effective);
    if !lacking.is_empty() {
        let lacking = lacking.join(" and ");
        return Err(DatapathError::Rights { lacking });
    }
    if effective & SYS_RESOURCE == 0 && has_memory_limit() && !has(Feature::CgroupMemory) {
        return Err(DatapathError::LockedMemory);
    }
    Ok(())
}

fn has_memory_limit() -> bool {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK);
    limit.is_ok_and(|(_, most)| most < LOCKED_ENOUGH)
}

/// The effective set in the text of `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| {
        let stands_for = if bit == 12 { 0 } else { SYS_ADMIN };
        effective & (1 << bit | stands_for) != 0
    };
    let lacking = NEEDED.iter().filter(|(bit, _)| !has(*bit));
    lacking.map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_lacks_is_named_and_sys_admin_stands_for_two() {
        let set = |bits: &[u32]| bits.iter().fold(0, |set, bit| set | 1 << bit);
        assert_eq!(lacking(set(&[12, 38, 39])), Vec::<&str>::new());
        assert_eq!(lacking(set(&[12, 21])), Vec::<&str>::new());
        assert_eq!(lacking(set(&[21])), ["CAP_NET_ADMIN"]);
        assert_eq!(lacking(set(&[12])), ["CAP_PERFMON", "CAP_BPF"]);
        let status = "Name:\tlb-agent\nCapPrm:\t0\nCapEff:\t000000c000001000\n";
        assert_eq!(effective(status), Some(set(&[12, 38, 39])));
        assert_eq!(effective("Name:\tlb-agent\n"), None);
    }
}
