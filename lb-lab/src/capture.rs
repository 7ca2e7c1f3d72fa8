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

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
        let wrong = |line: &&str| line.contains("incorrect") || line.contains("bad ");
        Ok(text
            .lines()
            .filter(wrong)
            .map(|line| line.trim().to_owned())
            .collect())
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

fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
            ))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
            ))
        }
        NetSlice::Arp(_) => None,
    }
}

fn ends(packet: &SlicedPacket<'_>) -> Option<(IpAddr, u16, IpAddr, u16)> {
    let (from, to) = addresses(packet)?;
    let (from_port, to_port) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_))
        | None => (0, 0),
    };
    Some((from, from_port, to, to_port))
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

/// A line about the first wrong checksum of a packet.
fn bad_checksum(frame: &Frame, packet: Result<SlicedPacket<'_>, String>) -> Option<String> {
    let wrong = match packet {
        Ok(_) if frame.cut => "the frame was cut: it is longer than an MTU".to_owned(),
        Ok(packet) => {
            let (from, from_port, to, to_port) = ends(&packet)?;
            let (what, has, should) = wrong_checksum(&packet)?;
            format!("{from}:{from_port} > {to}:{to_port}: {what} {has:#06x} not {should:#06x}")
        }
        Err(error) => error,
    };
    Some(format!("at {} us {wrong}", frame.micros))
}

/// Which checksum is wrong, what it is and what it should be.
fn wrong_checksum(packet: &SlicedPacket<'_>) -> Option<(&'static str, u16, u16)> {
    let differ = |what, has, should| (has != should).then_some((what, has, should));
    let transport = packet.transport.as_ref();
    match packet.net.as_ref()? {
        NetSlice::Ipv4(slice) => {
            let ip = slice.header().to_header();
            differ(
                "IPv4 checksum",
                ip.header_checksum,
                ip.calc_header_checksum(),
            )
            .or_else(|| {
                let (what, has, should) = match transport? {
                    TransportSlice::Tcp(tcp) => {
                        let header = tcp.to_header();
                        let should = header.calc_checksum_ipv4(&ip, tcp.payload());
                        ("TCP checksum", header.checksum, should.ok())
                    }
                    // Zero means that the sender computed none (RFC 768).
                    TransportSlice::Udp(udp) if udp.checksum() == 0 => return None,
                    TransportSlice::Udp(udp) => {
                        let should = udp.to_header().calc_checksum_ipv4(&ip, udp.payload());
                        ("UDP checksum", udp.checksum(), should.ok())
                    }
                    TransportSlice::Icmpv4(icmp) => {
                        let should = icmp.header().icmp_type.calc_checksum(icmp.payload());
                        ("ICMP checksum", icmp.checksum(), Some(should))
                    }
                    // Group membership is no traffic of ours.
                    TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => return None,
                };
                // What cannot be computed is shown as a mismatch.
                differ(what, has, should.unwrap_or(!has))
            })
        }
        NetSlice::Ipv6(slice) => {
            let ip = slice.header().to_header();
            let (what, has, should) = match transport? {
                TransportSlice::Tcp(tcp) => {
                    let header = tcp.to_header();
                    let should = header.calc_checksum_ipv6(&ip, tcp.payload());
                    ("TCP checksum", header.checksum, should.ok())
                }
                TransportSlice::Udp(udp) => {
                    let should = udp.to_header().calc_checksum_ipv6(&ip, udp.payload());
                    ("UDP checksum", udp.checksum(), should.ok())
                }
                TransportSlice::Icmpv6(icmp) => {
                    let kind = icmp.header().icmp_type;
                    let should = kind.calc_checksum(ip.source, ip.destination, icmp.payload());
                    ("ICMPv6 checksum", icmp.checksum(), should.ok())
                }
                TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_) => return None,
            };
            differ(what, has, should.unwrap_or(!has))
        }
        NetSlice::Arp(_) => None,
    }
}
