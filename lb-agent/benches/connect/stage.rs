// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where it happens: a network namespace with one device, three cgroups, programs on two of them.
//!
//! **Invariant:** a socket is asked about by the programs of the cgroup that it was made in; the process
//! itself is back where it was after each of them.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

use anyhow::{Context as _, Result, bail};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use lb_agent::datapath::{fit, netns_cookie};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::calls::{Family, With};
use crate::tables;

/// The programs that the agent carries.
static SHIPPED: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));
/// The bench's own.
static TOOLS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf-bench.o"));

/// Everything that is set up; dropping it removes the cgroups.
pub(crate) struct Stage {
    home: PathBuf,
    root: PathBuf,
    tools: Ebpf,
    shipped: Ebpf,
}

impl Stage {
    pub(crate) fn open(services: u32) -> Result<Self> {
        if SHIPPED.is_empty() || TOOLS.is_empty() {
            bail!("the programs were not compiled (LB_SKIP_BPF)");
        }
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        // A route for everything, so that a call gets through; nothing is ever sent.
        for words in [
            "link set lo up",
            "route add default dev lo",
            "-6 route add default dev lo",
        ] {
            let done = Command::new("ip").args(words.split(' ')).status()?;
            anyhow::ensure!(done.success(), "ip {words}: {done}");
        }
        settle()?;
        let (home, mount) = own_cgroup()?;
        let root = mount.join(format!("lb-bench-{}", id()));
        fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
        let mut stage = Self {
            home,
            root,
            tools: EbpfLoader::new().load(TOOLS)?,
            shipped: load_shipped()?,
        };
        for with in With::ALL {
            fs::create_dir(stage.cgroup(with))?;
            for name in with.programs() {
                stage.program(with, name)?.load()?;
            }
        }
        tables::fill(&mut stage.shipped, services);
        Ok(stage)
    }

    fn program(&mut self, with: With, name: &str) -> Result<&mut CgroupSockAddr> {
        let ebpf = match with {
            With::Nothing | With::Empty => &mut self.tools,
            With::Ours => &mut self.shipped,
        };
        let program = ebpf
            .program_mut(name)
            .with_context(|| format!("no {name}"))?;
        Ok(program.try_into()?)
    }

    /// Does something while the programs of a cgroup, and no others, are attached: where there is none on
    /// the whole machine, the kernel does not even look for one.
    pub(crate) fn with<T>(
        &mut self,
        with: With,
        inside: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let folder = File::open(self.cgroup(with))?;
        let mut links = Vec::new();
        for name in with.programs() {
            let program = self.program(with, name)?;
            let link = program.attach(&folder, CgroupAttachMode::Single)?;
            links.push(program.take_link(link)?);
        }
        let done = inside(self);
        drop(links);
        done
    }

    fn cgroup(&self, with: With) -> PathBuf {
        self.root.join(with.folder())
    }

    /// Sockets that the programs of a cgroup are asked about.
    pub(crate) fn sockets(&self, with: With, family: Family, count: usize) -> Result<Vec<OwnedFd>> {
        enter(&self.cgroup(with))?;
        let sockets = (0..count)
            .map(|_| Ok(UdpSocket::bind(family.any())?.into()))
            .collect();
        enter(&self.home)?;
        sockets
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for with in With::ALL {
            drop(fs::remove_dir(self.cgroup(with)));
        }
        drop(fs::remove_dir(&self.root));
    }
}

/// The agent's programs for this namespace, their maps of the sizes that they have at first.
fn load_shipped() -> Result<Ebpf> {
    let netns = netns_cookie().context("this bench needs SO_NETNS_COOKIE, of Linux 5.14")?;
    let mut loader = EbpfLoader::new();
    loader.override_global("NODE_NETNS", &netns, true);
    let object = fit(&mut loader, SHIPPED);
    loader.load(&object).context("load the programs")
}

/// Moves this process to a cgroup.
fn enter(cgroup: &Path) -> Result<()> {
    let path = cgroup.join("cgroup.procs");
    fs::write(&path, id().to_string()).with_context(|| format!("write {}", path.display()))
}

/// The cgroup v2 folder of this process, and the root of that hierarchy.
fn own_cgroup() -> Result<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    let mount = mount.context("no cgroup v2 hierarchy is mounted: `mount -t cgroup2 none DIR`")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.context("this process is in no cgroup of version 2")?;
    Ok((mount.join(own), mount))
}

/// Stays on one processor and asks to be left alone there; who is refused measures more noise.
fn settle() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut last = CpuSet::new();
    let cpus = 0..CpuSet::count();
    let cpu = cpus.rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    last.set(cpu.context("no processor may be used")?)?;
    sched_setaffinity(this, &last)?;
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters are read during the call only.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
    Ok(())
}
