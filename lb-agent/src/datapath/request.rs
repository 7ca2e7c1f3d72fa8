// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests over netlink that no crate of ours can say: a header, a body, and the messages of the
//! answer.
//!
//! **Invariant:** an answer is told from that to an earlier request, which may have been given up.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `NLM_F_REQUEST`, `NLM_F_ACK` and `NLM_F_DUMP` (`include/uapi/linux/netlink.h`).
pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// More than the kernel puts into one answer (`NLMSG_GOODSIZE`, at most 32 KiB for a long list).
const BUFFER: usize = 65_536;

/// A way to ask one part of the kernel about one network namespace.
pub(super) struct Requests {
    socket: OwnedFd,
    buffer: Box<[u8]>,
    sequence: u32,
}

impl Requests {
    /// Asks about the namespace that the calling thread is in now, wherever it goes afterwards.
    pub(super) fn open(whom: SockProtocol) -> io::Result<Self> {
        let family = AddressFamily::Netlink;
        Ok(Self {
            socket: socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, whom)?,
            buffer: vec![0; BUFFER].into(),
            sequence: 0,
        })
    }

    /// Sends a request.
    pub(super) fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes the answer to the last request; bodies of messages of `kind` go to `each`.
    pub(super) fn receive(&mut self, kind: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((message, behind)) = split(rest) {
                rest = behind;
                // Of a request that was given up.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    ERROR | DONE => return outcome(message.body),
                    found if found == kind => each(message.body),
                    _ => {}
                }
            }
        }
    }
}

/// Bytes of a message; zeros where it is too short.
pub(super) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..at + N);
    found
        .and_then(|found| found.try_into().ok())
        .unwrap_or([0; N])
}

/// One message of netlink.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The first message, and what is behind it.
fn split(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(part(bytes, 0))).ok()?;
    let body = bytes.get(HEADER..length)?;
    let message = Message {
        kind: u16::from_ne_bytes(part(bytes, 4)),
        sequence: u32::from_ne_bytes(part(bytes, 8)),
        body,
    };
    // Each begins at a multiple of four.
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, behind))
}

/// What the end of an answer says: zero, or an error with its sign turned.
fn outcome(body: &[u8]) -> io::Result<()> {
    match i32::from_ne_bytes(part(body, 0)) {
        code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

/// The attributes in a message: number and value of each.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Bits that say how a value is to be read, which who asks for it knows.
    const FLAGS: u16 = 0xc000;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(part(bytes, 0)));
        let value = bytes.get(4..length)?;
        let number = u16::from_ne_bytes(part(bytes, 2)) & !FLAGS;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_at_multiples_of_four_and_short_ones_are_none() {
        let mut bytes = Vec::new();
        for (kind, body) in [(7, &[1, 2, 3][..]), (DONE, &[0; 4])] {
            bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let (first, rest) = split(&bytes).unwrap();
        assert_eq!((first.kind, first.body), (7, &[1, 2, 3][..]));
        let (second, rest) = split(rest).unwrap();
        assert_eq!((second.kind, second.body.len()), (DONE, 4));
        assert!(split(rest).is_none() && split(&bytes[..18]).is_none());
    }

    #[test]
    fn an_end_may_be_an_error() {
        assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
        let refused = outcome(&(-libc::EOPNOTSUPP).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn attributes_are_read_one_after_the_other_without_their_flags() {
        let mut bytes = Vec::new();
        for (number, value) in [(1_u16, &b"nat\0"[..]), (0x8003, b"x")] {
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &b"nat\0"[..]), (3, b"x")]);
        assert_eq!(attributes(&bytes[..6]).count(), 0);
        assert_eq!(attributes(&[0; 8]).count(), 0);
    }
}
