// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a container sees of file systems: an empty root with one program, and its mounts.
//!
//! **Invariant:** mounts are made in a namespace of their own, which ends with the container; the root
//! and all but the writable mounts and `/proc` are read-only. Read next: `mod.rs`, which starts it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use crate::error::LabError;

/// Where the image has its program.
pub(super) const PROGRAM: &str = "/lb-agent";
/// Devices that every container has.
const DEVICES: [&str; 4] = ["null", "zero", "random", "urandom"];
/// Where a program that is linked with libraries finds them.
const LIBRARIES: [&str; 3] = ["lib", "lib64", "usr/lib"];
/// Headers of a program lie within its first bytes.
const HEADERS: u64 = 4096;

/// A volume at its place.
#[derive(Debug)]
pub(super) struct Mount {
    /// On the machine that runs the lab.
    pub(super) source: PathBuf,
    /// In the container, absolute.
    pub(super) target: PathBuf,
    pub(super) read_only: bool,
}

/// An empty root with one program and mounts.
#[derive(Debug)]
pub(super) struct Root<'a> {
    /// An empty folder for it.
    pub(super) dir: PathBuf,
    pub(super) program: &'a Path,
    pub(super) mounts: Vec<Mount>,
}

impl Root<'_> {
    /// Makes it the root of this thread, in namespaces of its own: of mounts, of System V objects and,
    /// for what it starts, of process ids.
    pub(super) fn enter(&self, host_pid: bool) -> Result<(), LabError> {
        let mut apart = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
        apart.set(CloneFlags::CLONE_NEWPID, !host_pid);
        unshare(apart).map_err(LabError::sys("leave the namespaces of the machine"))?;
        flag("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        let hidden = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        fresh("tmpfs", &self.dir, hidden)?;
        self.bind(self.program, PROGRAM, true)?;
        if is_linked(self.program)? {
            for folder in LIBRARIES
                .iter()
                .filter(|name| Path::new("/").join(name).is_dir())
            {
                self.bind(&Path::new("/").join(folder), folder, true)?;
            }
        }
        for mount in &self.mounts {
            self.bind(&mount.source, &mount.target, mount.read_only)?;
        }
        for device in DEVICES {
            // Not read-only: that would be for the file systems of the machine, not for the device.
            let target = self.place(Path::new("/dev").join(device))?;
            touch(&target)?;
            attach(&Path::new("/dev").join(device), &target)?;
        }
        let sys = self.folder("/sys")?;
        fresh(
            "sysfs",
            &sys,
            hidden | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY,
        )?;
        self.folder("/proc")?;
        let turn = LabError::sys("turn to the container's root");
        let turned = chdir(&self.dir)
            .and_then(|()| pivot_root(".", "."))
            .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
            .and_then(|()| chdir("/"));
        turned.map_err(turn)?;
        flag("/", hidden | READ_ONLY)
    }

    /// Shows a file or folder of the machine at its place in the root.
    fn bind(
        &self,
        source: &Path,
        target: impl AsRef<Path>,
        read_only: bool,
    ) -> Result<(), LabError> {
        let target = if source.is_dir() {
            self.folder(target)?
        } else {
            let place = self.place(target)?;
            touch(&place)?;
            place
        };
        attach(source, &target)?;
        let mut flags =
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        flags.set(MsFlags::MS_RDONLY, read_only);
        flag(&target, flags)
    }

    fn folder(&self, target: impl AsRef<Path>) -> Result<PathBuf, LabError> {
        let place = self.place(target)?;
        fs::create_dir_all(&place).map_err(LabError::file("make", &place))?;
        Ok(place)
    }

    /// Where a path of the container is before it is the root; its folder is made.
    fn place(&self, target: impl AsRef<Path>) -> Result<PathBuf, LabError> {
        let target = target.as_ref();
        let place = self.dir.join(target.strip_prefix("/").unwrap_or(target));
        let folder = place.parent().unwrap_or(&self.dir);
        fs::create_dir_all(folder).map_err(LabError::file("make", folder))?;
        Ok(place)
    }
}

const READ_ONLY: MsFlags = MsFlags::MS_REMOUNT
    .union(MsFlags::MS_BIND)
    .union(MsFlags::MS_RDONLY);

/// Shows the processes of this thread's namespace at `/proc`, with the kernel's settings read-only.
/// System calls and nothing else, so it may run between fork and exec.
pub(super) fn show_processes() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)?;
    mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none)?;
    mount(none, "/proc/sys", none, flags | READ_ONLY, none)?;
    Ok(())
}

/// A file system of its own.
fn fresh(kind: &str, target: &Path, flags: MsFlags) -> Result<(), LabError> {
    mount(Some(kind), target, Some(kind), flags, None::<&str>).map_err(LabError::sys(format!(
        "mount {kind} at {}",
        target.display()
    )))
}

fn attach(source: &Path, target: &Path) -> Result<(), LabError> {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)
        .map_err(LabError::sys(format!("mount {}", source.display())))
}

/// Changes the flags of a mount.
fn flag(target: impl AsRef<Path>, flags: MsFlags) -> Result<(), LabError> {
    let (target, none) = (target.as_ref(), None::<&str>);
    mount(none, target, none, flags, none)
        .map_err(LabError::sys(format!("mount {} again", target.display())))
}

/// Makes an empty file, for another one to be shown at its place.
fn touch(path: &Path) -> Result<(), LabError> {
    File::create(path)
        .map(drop)
        .map_err(LabError::file("make", path))
}

/// Whether a program needs an interpreter, which loads the libraries that it is linked with.
pub(super) fn is_linked(program: &Path) -> Result<bool, LabError> {
    let mut bytes = Vec::new();
    let read = File::open(program).and_then(|file| file.take(HEADERS).read_to_end(&mut bytes));
    read.map_err(LabError::file("read", program))?;
    let wrong = |error: object::read::Error| LabError::Malformed {
        what: program.display().to_string(),
        why: error.to_string(),
    };
    let header = FileHeader64::<Endianness>::parse(bytes.as_slice()).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let segments = header
        .program_headers(endian, bytes.as_slice())
        .map_err(wrong)?;
    Ok(segments
        .iter()
        .any(|segment| segment.p_type(endian) == PT_INTERP))
}
