// SPDX-License-Identifier: MIT OR Apache-2.0
//! Records packets with tcpdump in a host's namespace and answers questions about them.
//!
//! A sender's own capture shows partial checksums while transmit offload is on: record on
//! the receiving host, in a lab with [`crate::TxOffload::Off`], to judge checksums.
//! **Invariant:** a recording that missed packets says so. Read next: `pcap`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use etherparse::{SlicedPacket, TransportSlice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::checksum::{bad_checksum, ends};
use crate::error::LabError;
use crate::host::Host;
use crate::pcap::{self, Frame, Point};
use crate::run;

/// After the traffic, tcpdump gets this long to take in what the kernel has queued.
const SETTLE: Duration = Duration::from_millis(100);

/// Bytes kept of a frame: all of it unless segmentation offload made it longer than an MTU.
/// The kernel's ring has slots of this size, so a larger number holds fewer frames.
const SNAP_LENGTH: &str = "2048";
/// Size of the ring in KiB: some 16,000 slots, a burst that a busy machine takes in later.
const BUFFER_KIB: &str = "65536";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A running tcpdump.
#[derive(Debug)]
#[must_use = "the capture ends when dropped"]
pub struct Capture {
    child: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
    ended: bool,
}

impl Capture {
    pub(crate) fn start(host: &Host, device: &str) -> Result<Self, LabError> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let file = host.lab.path(format!("{}.{number}.pcap", host.name()));
        let mut command = host.command("tcpdump")?;
        command.args([
            "-i",
            device,
            "-n",
            "-U",
            "--immediate-mode",
            "-s",
            SNAP_LENGTH,
            "-B",
            BUFFER_KIB,
            "-Z",
            "root",
        ]);
        command
            .arg("-w")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let line = run::describe(&command);
        let spawned = command.stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| run::not_started("tcpdump", &line, source))?;
        let Some(stderr) = child.stderr.take() else {
            return Err(LabError::Malformed {
                what: line,
                why: "no standard error".to_owned(),
            });
        };
        let mut capture = Self {
            child,
            stderr: BufReader::new(stderr),
            file,
            ended: false,
        };
        capture.wait_listening(&line)?;
        Ok(capture)
    }

    /// tcpdump says "listening on" once the socket is bound; packets count from then on.
    fn wait_listening(&mut self, line: &str) -> Result<(), LabError> {
        let mut said = String::new();
        loop {
            let start = said.len();
            let read = self
                .stderr
                .read_line(&mut said)
                .map_err(LabError::io("read tcpdump"))?;
            if said[start..].contains("listening on") {
                return Ok(());
            }
            if read == 0 {
                let status = self
                    .child
                    .wait()
                    .map_err(LabError::io("wait for tcpdump"))?;
                let status = status.to_string();
                return Err(LabError::Ended {
                    what: line.to_owned(),
                    status,
                    log: said,
                });
            }
        }
    }

    /// Ends the capture and reads what it recorded.
    pub fn stop(mut self) -> Result<Recording, LabError> {
        run::pause(SETTLE);
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).map_err(LabError::sys("end tcpdump"))?;
        let mut said = String::new();
        self.stderr
            .read_to_string(&mut said)
            .map_err(LabError::io("read tcpdump"))?;
        self.child
            .wait()
            .map_err(LabError::io("wait for tcpdump"))?;
        self.ended = true;
        let bytes = fs::read(&self.file).map_err(LabError::file("read", &self.file))?;
        let frames = pcap::frames(&bytes, &self.file.display().to_string())?;
        Ok(Recording {
            frames,
            missed: missed(&said),
            file: self.file.clone(),
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself, with its device.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Whether tcpdump calls a checksum wrong in a line: of TCP "(incorrect", of IPv4 "bad cksum",
/// of UDP and `ICMPv6` "[bad", of ICMP "(wrong". A bare "bad" may be the end of a number.
fn complains(line: &str) -> bool {
    let marks = ["(incorrect", "bad cksum", "[bad ", "(wrong "];
    marks.iter().any(|mark| line.contains(mark))
}

/// The sum of what tcpdump says the kernel dropped.
fn missed(said: &str) -> u64 {
    let dropped = said
        .lines()
        .filter(|line| line.contains("packets dropped by kernel"));
    dropped
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// What a capture recorded.
#[derive(Debug, Clone)]
pub struct Recording {
    frames: Vec<Frame>,
    missed: u64,
    file: PathBuf,
}

/// What makes two SYNs the same: where, from, to, sequence number.
type Syn = (Point, IpAddr, u16, IpAddr, u16, u32);

impl Recording {
    /// The number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Packets that the kernel dropped before tcpdump could take them.
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// The file; it goes with the lab, so copy what is to be kept.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A line for each packet whose IPv4, TCP, UDP or ICMP checksum is wrong.
    ///
    /// A packet that does not parse, or is longer than the 2 KiB that are kept, counts as wrong; of a fragment only the IPv4 header is
    /// looked at, since its transport checksum covers the others too.
    pub fn bad_checksums(&self) -> Vec<String> {
        self.ip_packets()
            .filter_map(|(frame, packet)| bad_checksum(frame, packet))
            .collect()
    }

    /// As [`Recording::bad_checksums`], for packets to one address.
    ///
    /// In a capture inside a pod its own packets are not finished yet while offload is on.
    pub fn bad_checksums_to(&self, address: IpAddr) -> Vec<String> {
        let to = |packet: &Result<SlicedPacket<'_>, String>| {
            packet
                .as_ref()
                .is_ok_and(|packet| ends(packet).is_some_and(|ends| ends.2 == address))
        };
        let packets = self.ip_packets().filter(|(_, packet)| to(packet));
        packets
            .filter_map(|(frame, packet)| bad_checksum(frame, packet))
            .collect()
    }

    /// SYNs (without ACK) that were seen more than once at the same point: one line for each.
    pub fn syn_retransmissions(&self) -> Vec<String> {
        let mut seen: BTreeMap<Syn, u64> = BTreeMap::new();
        let mut again = Vec::new();
        for (frame, packet) in self.ip_packets() {
            let Some((syn, true)) = packet.ok().and_then(|packet| syn(frame.point, &packet)) else {
                continue;
            };
            let (_, from, from_port, to, to_port, _) = syn;
            if let Some(first) = seen.insert(syn, frame.micros) {
                let after = frame.micros - first;
                again.push(format!(
                    "{from}:{from_port} > {to}:{to_port} again after {after} us"
                ));
            }
        }
        again
    }

    /// How many frames have this source and destination, ports included if they have any.
    pub fn count(&self, matches: impl Fn(IpAddr, u16, IpAddr, u16) -> bool) -> usize {
        let ends = self
            .ip_packets()
            .filter_map(|(_, packet)| ends(&packet.ok()?));
        ends.filter(|(from, from_port, to, to_port)| matches(*from, *from_port, *to, *to_port))
            .count()
    }

    /// What tcpdump itself finds wrong with checksums, line by line.
    ///
    /// A second opinion from a program that is not ours.
    pub fn tcpdump_complaints(&self) -> Result<Vec<String>, LabError> {
        let mut command = Command::new("tcpdump");
        command.args(["-nn", "-vv", "-r"]).arg(&self.file);
        let text = run::feed(&mut command, "")?;
        let wrong = text.lines().filter(|line| complains(line));
        Ok(wrong.map(|line| line.trim().to_owned()).collect())
    }

    /// Copies the recording out of the lab's directory.
    pub fn keep(&self, path: &Path) -> Result<(), LabError> {
        let mut from = File::open(&self.file).map_err(LabError::file("open", &self.file))?;
        let mut to = File::create(path).map_err(LabError::file("make", path))?;
        std::io::copy(&mut from, &mut to)
            .map_err(LabError::file("write", path))
            .map(drop)
    }

    fn ip_packets(&self) -> impl Iterator<Item = (&Frame, Result<SlicedPacket<'_>, String>)> {
        let ip = |frame: &&Frame| matches!(frame.ether_type, pcap::IPV4 | pcap::IPV6);
        self.frames.iter().filter(ip).map(|frame| {
            (
                frame,
                SlicedPacket::from_ip(&frame.packet).map_err(|error| error.to_string()),
            )
        })
    }
}

/// The SYN's key and whether the packet is a SYN without ACK.
fn syn(point: Point, packet: &SlicedPacket<'_>) -> Option<(Syn, bool)> {
    let (from, from_port, to, to_port) = ends(packet)?;
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    let key = (point, from, from_port, to, to_port, tcp.sequence_number());
    Some((key, tcp.syn() && !tcp.ack()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcpdumps_complaints_are_told_from_numbers_that_look_like_them() {
        assert!(complains(
            "Flags [S], cksum 0x16a5 (incorrect -> 0x9c2e), seq 1"
        ));
        assert!(complains(
            "IP (tos 0x0, ttl 64, length 60, bad cksum 0 (->26b5)!)"
        ));
        assert!(complains(
            "10.0.0.1.5 > 10.0.0.2.6: [bad udp cksum 0x1636 -> 0x5d3f!] UDP"
        ));
        assert!(!complains(
            "Flags [.], cksum 0x6bad (correct), seq 236080, length 1398"
        ));
        assert!(!complains(
            "10.0.0.1.5 > 10.0.0.2.6: [udp sum ok] UDP, length 8"
        ));
    }
}
