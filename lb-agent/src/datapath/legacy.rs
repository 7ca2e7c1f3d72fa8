// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables of the older iptables, which are no part of nftables: by two options of any
//! socket (a raw one, which iptables takes, needs `CAP_NET_RAW`).
//!
//! **Invariant:** a table is read only where the kernel says that it is in use: asking for another one
//! would load it.
#![expect(
    unsafe_code,
    reason = "nix has no wrapper for these options of sockets"
)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use memchr::memmem;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` (`include/uapi/linux/netfilter_ipv4/ip_tables.h`), the
/// same numbers for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Length of a table's name in both, with the zero at its end.
const NAME: usize = 32;
/// Length of `struct ipt_getinfo`, and where it says how long all entries are.
const INFO: usize = NAME + 13 * 4;
const INFO_SIZE: usize = INFO - 4;
/// Where entries begin in `struct ipt_get_entries`, whose alignment is eight.
const ENTRIES: usize = NAME + 8;
/// More than any table has; the kernel's own word for a size is trusted up to here.
const LONGEST: usize = 256 << 20;

/// The table with the chains of addresses that are replaced.
const TABLE: &str = "nat";

/// Which of the two families.
struct Which {
    family: AddressFamily,
    level: libc::c_int,
    names: &'static str,
    tool: &'static str,
}

const FAMILIES: [Which; 2] = [
    Which {
        family: AddressFamily::Inet,
        level: libc::SOL_IP,
        names: "/proc/thread-self/net/ip_tables_names",
        tool: "iptables-legacy",
    },
    Which {
        family: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        names: "/proc/thread-self/net/ip6_tables_names",
        tool: "ip6tables-legacy",
    },
];

/// The tables that have a chain of this name, as people call them.
pub(super) fn tables_with(chain: &str) -> Vec<String> {
    let has = |which: &&Which| {
        let names = fs::read_to_string(which.names).unwrap_or_default();
        names.lines().any(|name| name == TABLE)
            && read(which).is_ok_and(|entries| holds(&entries, chain))
    };
    let found = FAMILIES.iter().filter(has);
    found
        .map(|which| format!("{chain} ({} table {TABLE})", which.tool))
        .collect()
}

/// Whether a chain's name is in the entries: where a chain begins, its name is written out.
fn holds(entries: &[u8], chain: &str) -> bool {
    let mut name = chain.as_bytes().to_vec();
    name.push(0);
    memmem::find(entries, &name).is_some()
}

/// All entries of the table.
fn read(which: &Which) -> io::Result<Vec<u8>> {
    let socket = socket(
        which.family,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Udp,
    )?;
    let mut info = named(INFO);
    option(&socket, (which.level, GET_INFO), &mut info)?;
    let size = info
        .get(INFO_SIZE..)
        .and_then(|bytes| bytes.try_into().ok());
    let size = size.map_or(0, u32::from_ne_bytes);
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::Error::other("the table is too long"));
    }
    let mut entries = named(ENTRIES + length);
    if let Some(place) = entries.get_mut(NAME..NAME + 4) {
        place.copy_from_slice(&size.to_ne_bytes());
    }
    option(&socket, (which.level, GET_ENTRIES), &mut entries)?;
    Ok(entries.split_off(ENTRIES))
}

/// A buffer of this length with the table's name at its begin.
fn named(length: usize) -> Vec<u8> {
    let mut buffer = TABLE.as_bytes().to_vec();
    buffer.resize(length, 0);
    buffer
}

/// Reads an option of a socket into the buffer, which also says what is asked for.
fn option(
    socket: &OwnedFd,
    (level, name): (libc::c_int, libc::c_int),
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes at most `length` bytes, which is the buffer's length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_found_by_its_whole_name() {
        let entries = b"\x01\0KUBE-POSTROUTING\0\0\0ERROR\0";
        assert!(holds(entries, "KUBE-POSTROUTING"));
        assert!(!holds(entries, "KUBE-POST"));
        assert!(!holds(b"", "KUBE-POSTROUTING"));
    }
}
