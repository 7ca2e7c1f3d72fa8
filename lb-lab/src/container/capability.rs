// SPDX-License-Identifier: MIT OR Apache-2.0
//! Capabilities: their names, and giving up all others for good.
//!
//! **Invariant:** [`Capabilities::keep_only`] makes system calls and nothing else, so it may run
//! between fork and exec. Read next: `seccomp.rs`.

use std::fmt;
use std::io;

/// Names by bit, as in linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// The set has 64 bits in the kernel.
const BITS: u64 = 64;
/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION_3: u32 = 0x2008_0522;

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Capabilities {
    /// Those with these names, written as in a DaemonSet: without `CAP_`.
    pub(super) fn named(names: &[String]) -> Result<Self, String> {
        let mut set = 0;
        for name in names {
            let bit = NAMES.iter().position(|known| known == name);
            set |= 1 << bit.ok_or_else(|| format!("{name} is no capability"))?;
        }
        Ok(Self(set))
    }

    /// The set as the kernel shows it in `/proc/PID/status`.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether one of these is in the set.
    pub(super) fn any(self, names: &[&str]) -> bool {
        (0..)
            .zip(NAMES)
            .any(|(bit, name)| self.0 & 1 << bit != 0 && names.contains(&name))
    }

    /// Gives up all others: now, and for every program that is started from here on.
    pub(super) fn keep_only(self) -> io::Result<()> {
        for bit in (0..BITS).filter(|bit| self.0 & (1 << bit) == 0) {
            // SAFETY: a call with integers; it changes this thread's own bounding set.
            let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0) };
            // The kernel knows fewer than 64.
            if done != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
                return Err(io::Error::last_os_error());
            }
        }
        let header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let bytes = self.0.to_ne_bytes();
        let (first, second) = bytes.split_at(4);
        let half = |bytes: &[u8]| {
            let bits = bytes.try_into().map_or(0, u32::from_ne_bytes);
            Data {
                effective: bits,
                permitted: bits,
                inheritable: 0,
            }
        };
        // The kernel takes the lower half first.
        let data = if cfg!(target_endian = "little") {
            [half(first), half(second)]
        } else {
            [half(second), half(first)]
        };
        // SAFETY: the kernel reads one header and, for this version, two sets, which live so long.
        let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = (0..).zip(NAMES).filter(|(bit, _)| self.0 & (1 << bit) != 0);
        let names: Vec<_> = held.map(|(_, name)| format!("CAP_{name}")).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_the_bits_that_the_kernel_uses() {
        let set = |name: &str| Capabilities::named(&[name.to_owned()]).unwrap().bits();
        for (name, bit) in [("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("SYS_RESOURCE", 24)] {
            assert_eq!(set(name), 1 << bit, "{name}");
        }
        for (name, bit) in [("PERFMON", 38), ("BPF", 39), ("CHECKPOINT_RESTORE", 40)] {
            assert_eq!(set(name), 1 << bit, "{name}");
        }
        assert!(Capabilities::named(&["CAP_BPF".to_owned()]).is_err());
    }
}
