// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong between the agent and the kernel, and what to do about it.
//!
//! Messages are what was being done when it failed; the source says how.
//! **Invariant:** a refusal (wrong directory, wrong layout) names its remedy.

use std::io;
use std::path::PathBuf;

use aya::programs::ProgramError;

use super::ports::PortRange;
use super::refusal::Refusal;

/// The data plane could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// This process may not do its work; give it the capabilities.
    #[error(
        "serve this node: this process lacks {lacking}; add it to the capabilities of its container, \
         or run it as root"
    )]
    Rights {
        /// The capabilities.
        lacking: String,
    },
    /// This kernel counts maps as locked memory, of which this process may not have enough; give it the
    /// capability or the limit.
    #[error(
        "serve this node: this kernel (before Linux 5.11) counts maps as locked memory, and this process \
         may not raise its limit; add CAP_SYS_RESOURCE to the capabilities of its container \
         (securityContext.raiseMemlock=true among the chart's values), or start it with ulimit -l unlimited"
    )]
    LockedMemory,
    /// The pin directory is not on a BPF file system; mount one or choose another directory.
    #[error(
        "use {} for pins: it is not on a BPF file system; mount one with `mount -t bpf bpf \
         /sys/fs/bpf`, or let --bpffs name a directory on one", path.display()
    )]
    NotBpffs {
        /// The directory asked for.
        path: PathBuf,
    },
    /// Another process owns the pins; end it, or use another directory.
    #[error(
        "use the pins under {path}: {holder} owns them; end that process first, or let --bpffs name \
         another directory (two agents cannot share one)", path = path.display()
    )]
    Owned {
        /// The pin directory.
        path: PathBuf,
        /// Who has it, in words.
        holder: String,
    },
    /// Nothing is pinned there: no agent has run, or it used another directory.
    #[error(
        "open the maps under {}: nothing is pinned there; start `lb-agent run`, or let --bpffs \
         name the directory that it uses", path.display()
    )]
    NothingPinned {
        /// The directory asked for.
        path: PathBuf,
    },
    /// The kernel does not let this process read what is pinned.
    #[error(
        "open the maps under {}: not allowed; run it as root, or with CAP_BPF as a user who may read \
         the files there", path.display()
    )]
    NotAllowed {
        /// The directory asked for.
        path: PathBuf,
    },
    /// One of the maps is not pinned any more.
    #[error(
        "open map {map}: it is missing under {}; start `lb-agent run`, which makes it anew", path.display()
    )]
    MapMissing {
        /// The pinned name.
        map: &'static str,
        /// The directory asked for.
        path: PathBuf,
    },
    /// The pin directory could not be made, read or changed.
    #[error("{what} {}", path.display())]
    Directory {
        /// What was being done.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another version of lb left maps that this one cannot read; remove them.
    #[error(
        "reuse the maps under {path}: they have layout {found}, this version needs layout \
         {wanted}; run the version that made them, or let that one's `lb-agent cleanup --drain` \
         take them away when the connections through Services have ended, and start this one then",
        path = path.display()
    )]
    Layout {
        /// The pin directory.
        path: PathBuf,
        /// Layout number found, or `unknown`.
        found: String,
        /// Layout number of this program.
        wanted: u32,
    },
    /// An agent that changes the layouts ended before it was done.
    #[error(
        "{}: a change of the maps' layouts was left on its way; start the agent that began it once \
         more, or clean up without --drain (open connections through Services end then)",
        path.display()
    )]
    Upgrading {
        /// The pin directory.
        path: PathBuf,
    },
    /// A pinned map differs from what this program would make; restore the setting or remove it.
    #[error(
        "use map {}: {difference}; start with the size that it was made for, or stop lb on this \
         node and remove {} (open connections through Services end then)",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Shape {
        /// The pinned map.
        path: PathBuf,
        /// What differs, in words.
        difference: String,
    },
    /// The program was built without its BPF object; build it again.
    #[error("load the programs: this binary was built with LB_SKIP_BPF; build it without")]
    NoObject,
    /// The object could not be read or its maps could not be made; check memory and privileges.
    #[error("load the BPF object (needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or root)")]
    Object {
        /// What the loader said.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The kernel rejected a program; what the verifier said is in the source.
    #[error("load program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// What the verifier said.
        #[source]
        source: Box<Refusal>,
    },
    /// The object lacks a part that the agent counts on; the two do not belong together.
    #[error("find {name} in the BPF object: it was built from other sources than the agent")]
    Missing {
        /// The map or program.
        name: &'static str,
    },
    /// A pinned map could not be opened, read or written.
    #[error("{what} map {map}")]
    Map {
        /// What was being done.
        what: &'static str,
        /// The pinned name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// No port is left for masqueraded flows; choose other ranges.
    #[error(
        "masquerade: --snat-port-range has no port that is neither the kernel's own ({local}, \
         net.ipv4.ip_local_port_range) nor a node port ({node_ports}, --service-node-port-range); \
         change one of the three"
    )]
    NoSnatPorts {
        /// What the kernel gives to sockets.
        local: PortRange,
        /// What node ports are chosen from.
        node_ports: PortRange,
    },
    /// The kernel's tick could not be found out.
    #[error("find the length of a kernel tick")]
    Tick {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached or detached; it is tried again soon.
    #[error("{what} {hook} of device {device}")]
    Attach {
        /// What was being done.
        what: &'static str,
        /// `ingress` or `egress`.
        hook: &'static str,
        /// The device's name.
        device: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Devices, addresses or routes could not be listed.
    #[error("list {what} over netlink")]
    List {
        /// What was being listed.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// No netlink socket could be opened.
    #[error("open a netlink socket")]
    Socket {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map could not be copied into a larger one; it is tried again.
    #[error("copy map {map}: {why}")]
    Copy {
        /// The pinned name.
        map: &'static str,
        /// What came in between.
        why: &'static str,
    },
    /// Entries of a map could not be read; it is tried again.
    #[error("read entries of map {map}")]
    Batch {
        /// The pinned name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program could not be put at the sockets of a cgroup; it is tried again.
    #[error("attach {name} to the cgroup")]
    Hook {
        /// The program.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A socket of the agent's own could not be used to find out its network namespace.
    #[error("find out the agent's own network namespace by a socket")]
    OwnSocket {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer about sockets as it should; it is asked again.
    #[error("{what} over netlink")]
    Diag {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot end sockets; a process that keeps a socket connected must see to that itself.
    #[error(
        "this kernel is built without CONFIG_INET_DIAG_DESTROY: connected sockets of UDP go on sending \
         to a backend that is gone until they are connected anew"
    )]
    NoSocketDestroy,
    /// The network namespaces of pods could not be found; it is tried again.
    #[error(
        "look at the cgroups and network namespaces of pods (needs CAP_SYS_ADMIN and the node's \
             process ids)"
    )]
    Pods {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("start the thread that {what}")]
    Thread {
        /// What it does.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl DatapathError {
    /// What became of loading or using the program `name`.
    pub fn refused(name: &'static str, error: ProgramError) -> Self {
        let source = Box::new(error.into());
        Self::Program { name, source }
    }
}

/// The operating system's error number behind an error of aya, when there is one.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}
