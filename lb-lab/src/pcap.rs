// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads pcap files: Ethernet and the two "any device" formats of tcpdump.
//!
//! **Invariant:** a packet that was cut or is not IP is counted as such, never skipped in
//! silence. Read next: `capture`, which asks the questions.

use crate::error::LabError;

/// Which device a frame was seen on, and in which direction, as far as the format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    /// Interface index; 0 when the file holds one device only.
    pub(crate) device: u32,
    /// The packet type of the "any" formats: 4 is outgoing.
    pub(crate) direction: u8,
}

/// One frame from its network header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Microseconds since the first frame.
    pub(crate) micros: u64,
    /// Where it was seen.
    pub(crate) point: Point,
    /// `EtherType`, 0x0800 for IPv4.
    pub(crate) ether_type: u16,
    /// The packet from its network header on; if it was cut, its IP header says so little.
    pub(crate) packet: Vec<u8>,
    /// Whether the packet was longer on the wire.
    pub(crate) cut: bool,
}

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
/// `EtherType` of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub(crate) const IPV6: u16 = 0x86dd;
const ETHERNET: u32 = 1;
const COOKED: u32 = 113;
const COOKED_2: u32 = 276;

/// Splits a pcap file into frames.
pub(crate) fn frames(bytes: &[u8], name: &str) -> Result<Vec<Frame>, LabError> {
    let bad = |why: &str| LabError::Malformed {
        what: name.to_owned(),
        why: why.to_owned(),
    };
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    if word(0) != Some(MAGIC_MICROS) {
        return Err(bad("not a pcap file of this machine's byte order"));
    }
    let link = word(20).ok_or_else(|| bad("the header is cut"))?;
    let (mut frames, mut at, mut start) = (Vec::new(), 24, None);
    // The last record may be cut when tcpdump was killed.
    while let (Some(secs), Some(micros), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let Some(data) = bytes.get(at + 16..at + 16 + length as usize) else {
            break;
        };
        let cut = word(at + 12).is_some_and(|on_the_wire| on_the_wire > length);
        at += 16 + length as usize;
        let time = u64::from(secs) * 1_000_000 + u64::from(micros);
        let micros = time.saturating_sub(*start.get_or_insert(time));
        let (point, ether_type, skip) =
            link_header(link, data).ok_or_else(|| bad("a link header is cut or unknown"))?;
        let mut packet = data.get(skip..).unwrap_or_default().to_vec();
        if cut {
            shorten(&mut packet, ether_type);
        }
        frames.push(Frame {
            micros,
            point,
            ether_type,
            packet,
            cut,
        });
    }
    Ok(frames)
}

/// Makes the IP length agree with what was recorded, so that the ports can still be read.
fn shorten(packet: &mut [u8], ether_type: u16) {
    let (at, header) = if ether_type == IPV4 { (2, 0) } else { (4, 40) };
    let length = u16::try_from(packet.len().saturating_sub(header)).unwrap_or(u16::MAX);
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Where a frame was seen, its `EtherType`, and the length of its link header.
fn link_header(link: u32, data: &[u8]) -> Option<(Point, u16, usize)> {
    let half = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    match link {
        ETHERNET => Some((
            Point {
                device: 0,
                direction: 0,
            },
            half(12)?,
            14,
        )),
        COOKED => Some((
            Point {
                device: 0,
                direction: *data.get(1)?,
            },
            half(14)?,
            16,
        )),
        COOKED_2 => {
            let device = u32::from_be_bytes(data.get(4..8)?.try_into().ok()?);
            Some((
                Point {
                    device,
                    direction: *data.get(10)?,
                },
                half(0)?,
                20,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_a_cut_last_record_gives_the_frames_before_it() {
        let mut bytes = Vec::new();
        for word in [MAGIC_MICROS, 0, 0, 0, 65_535, ETHERNET] {
            bytes.extend(word.to_ne_bytes());
        }
        let frame = [[2; 12].as_slice(), &[0x08, 0x00], &[0x45, 0, 3]].concat();
        for (time, on_the_wire) in [(1_u32, 17_u32), (2, 18), (3, 17)] {
            for word in [time, 5, 17, on_the_wire] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(&frame);
        }
        bytes.pop();
        let frames = frames(&bytes, "test").unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].ether_type, IPV4);
        assert_eq!(frames[0].packet, [0x45, 0, 3]);
        assert_eq!([frames[0].cut, frames[1].cut], [false, true]);
    }
}
