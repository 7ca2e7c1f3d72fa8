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
            "-B",
            "16384",
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

    /// How many frames carry an IPv4, TCP, UDP or ICMP checksum that is wrong, each with a line
    /// that says which. Later fragments and packets that do not parse are listed as wrong too,
    /// except fragments, whose checksum is not in one frame.
    pub fn bad_checksums(&self) -> Vec<String> {
        self.ip_packets()
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
        let ip = |frame: &&Frame| frame.ether_type == 0x0800 || frame.ether_type == 0x86dd;
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
    let packet = match packet {
        Ok(packet) => packet,
        Err(error) => return Some(format!("at {} us: {error}", frame.micros)),
    };
    let (from, from_port, to, to_port) = ends(&packet)?;
    let wrong = |what: &str, has: u16, should: u16| {
        (has != should).then(|| {
            let micros = frame.micros;
            format!("at {micros} us {from}:{from_port} > {to}:{to_port}: {what} {has:#06x} not {should:#06x}")
        })
    };
    let (v4, v6) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => (Some(ip.header().to_header()), None),
        NetSlice::Ipv6(ip) => (None, Some(ip.header().to_header())),
        NetSlice::Arp(_) => return None,
    };
    if let Some(header) = &v4 {
        let found = wrong(
            "IPv4 checksum",
            header.header_checksum,
            header.calc_header_checksum(),
        );
        if found.is_some() {
            return found;
        }
    }
    // A checksum that cannot be computed is shown as one that does not match.
    match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            let (header, payload) = (tcp.to_header(), tcp.payload());
            let should = match (&v4, &v6) {
                (Some(ip), _) => header.calc_checksum_ipv4(ip, payload),
                (None, Some(ip)) => header.calc_checksum_ipv6(ip, payload),
                (None, None) => return None,
            };
            wrong(
                "TCP checksum",
                header.checksum,
                should.unwrap_or(!header.checksum),
            )
        }
        TransportSlice::Udp(udp) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            let should = match (&v4, &v6) {
                // Over IPv4 zero means that the sender computed none (RFC 768).
                (Some(_), _) if header.checksum == 0 => return None,
                (Some(ip), _) => header.calc_checksum_ipv4(ip, payload),
                (None, Some(ip)) => header.calc_checksum_ipv6(ip, payload),
                (None, None) => return None,
            };
            wrong(
                "UDP checksum",
                header.checksum,
                should.unwrap_or(!header.checksum),
            )
        }
        TransportSlice::Icmpv4(icmp) => {
            let should = icmp.header().icmp_type.calc_checksum(icmp.payload());
            wrong("ICMP checksum", icmp.checksum(), should)
        }
        TransportSlice::Icmpv6(icmp) => {
            let ip = v6?;
            let should =
                icmp.header()
                    .icmp_type
                    .calc_checksum(ip.source, ip.destination, icmp.payload());
            wrong(
                "ICMPv6 checksum",
                icmp.checksum(),
                should.unwrap_or(!icmp.checksum()),
            )
        }
        // Group membership is no traffic of ours.
        TransportSlice::Igmp(_) => None,
    }
}
