// SPDX-License-Identifier: MIT OR Apache-2.0
//! Takes away what agents have put into the kernel, and nothing else.
//!
//! Attachments are found by their pins and, with clsact, by the handle and the name of our filters;
//! everything else by its name below the pin directory. Programs and maps end with what holds them.
//! **Invariant:** what we did not make stays, and is told; what fails keeps nothing else from being
//! removed. Done again it finds nothing.

use std::io;
use std::path::{Path, PathBuf};

use lb_common::abi::names;
use netlink_packet_route::tc::{TcAttribute, TcHandle};
use nix::errno::Errno;
use rtnetlink::Handle;
use serde::Serialize;

use super::attach::{Hook, parse_link, remove_filter};
use super::error::DatapathError;
use super::events::Netlink;
use super::link::Link;
use super::netlink;
use super::owner::Owner;
use super::pins::{self, LAYOUT_PREFIX, Pins, UPGRADE_PREFIX};
use super::sockets::{PROGRAMS, fresh_pin, ours_on};
use super::view::View;
use crate::error_chain;

/// Something of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thing {
    /// What it is, such as `map`.
    pub what: &'static str,
    /// Which one.
    pub name: String,
}

/// Something that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What it is.
    pub what: &'static str,
    /// Which one.
    pub name: String,
    /// Why it stays.
    pub why: String,
    /// Whether it ought to have gone.
    pub failed: bool,
}

/// What was removed, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// In the order in which it went.
    pub removed: Vec<Thing>,
    /// What is still there.
    pub left: Vec<Left>,
}

impl Removal {
    /// Notes how an attempt ended; nothing when there was nothing.
    pub fn note(&mut self, what: &'static str, name: String, result: Result<bool, String>) {
        match result {
            Ok(true) => self.removed.push(Thing { what, name }),
            Ok(false) => {}
            Err(why) => self.left.push(Left {
                what,
                name,
                why,
                failed: true,
            }),
        }
    }

    fn stranger(&mut self, path: &Path) {
        self.left.push(Left {
            what: "pin",
            name: path.display().to_string(),
            why: "no agent has made it".to_owned(),
            failed: false,
        });
    }
}

/// The right to take away what is pinned below a directory: no agent runs there, and none begins.
pub struct Cleanup {
    root: PathBuf,
    /// None where there is no such directory.
    _owner: Option<Owner>,
}

impl Cleanup {
    /// Takes the directory; an error while an agent owns it.
    pub fn begin(bpffs: &Path) -> Result<Self, DatapathError> {
        let owner = Owner::take_existing(bpffs)?;
        if owner.is_some() {
            pins::require_bpffs(bpffs)?;
        }
        Ok(Self {
            root: bpffs.to_owned(),
            _owner: owner,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes everything, in the network namespace of the calling thread; tells which programs of
    /// ours stay on the cgroup for another reason.
    ///
    /// ORDER: sockets first; then ingress everywhere before egress, so that no flow is translated
    /// whose replies would not be; then what the programs used.
    pub async fn remove(
        self,
        cgroup: Option<&Path>,
        removal: &mut Removal,
    ) -> Result<(), DatapathError> {
        let pins = Pins::at(&self.root);
        let handle = Netlink::open()?.handle;
        let view = netlink::list(&handle).await?;
        for (name, pin) in PROGRAMS.iter().rev() {
            let pin = pins.links().join(pin);
            for pin in [fresh_pin(&pin), pin] {
                let gone = take_link(&pin);
                removal.note("program at sockets", (*name).to_owned(), gone);
            }
        }
        for name in cgroup.map(ours_on).unwrap_or_default() {
            removal.left.push(Left {
                what: "program at sockets",
                name,
                why: "nothing below --bpffs holds it; is there another agent?".to_owned(),
                failed: false,
            });
        }
        for hook in [Hook::Ingress, Hook::Egress] {
            remove_links(&pins, &view, hook, removal)?;
            remove_filters(&view, hook, removal);
        }
        remove_qdiscs(&pins, &view, &handle, removal).await?;
        remove_pins(&pins, removal)?;
        remove_folders(&pins, removal)
    }
}

/// Ends a link and removes its pin; false when there is none.
fn take_link(pin: &Path) -> Result<bool, String> {
    let Some(link) = Link::open(pin).map_err(|error| error.to_string())? else {
        return Ok(false);
    };
    link.detach().map_err(|error| error.to_string())?;
    take_file(pin)
}

/// Removes a pin; false when there is none.
fn take_file(pin: &Path) -> Result<bool, String> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true).map_err(|error| error.to_string()),
    }
}

/// Removes a directory that must be empty; false when there is none.
fn take_folder(path: &Path) -> Result<bool, String> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true).map_err(|error| error.to_string()),
    }
}

/// A device's name, or its number where it is gone.
fn device(view: &View, index: u32) -> String {
    let target = view.target(index);
    target.map_or_else(|| format!("device {index}"), |target| target.name)
}

fn remove_links(
    pins: &Pins,
    view: &View,
    hook: Hook,
    removal: &mut Removal,
) -> Result<(), DatapathError> {
    let mut names = pins::list(&pins.links())?;
    names.sort();
    for name in names {
        let Some((index, _)) = parse_link(&name).filter(|(_, found)| *found == hook) else {
            continue;
        };
        let gone = take_link(&pins.links().join(&name));
        let name = format!("{} {}", device(view, index), hook.name());
        removal.note("program at device", name, gone);
    }
    Ok(())
}

fn remove_filters(view: &View, hook: Hook, removal: &mut Removal) {
    for index in view.indices() {
        let filters = view.filters(index);
        let ours = match hook {
            Hook::Ingress => filters.ours_ingress,
            Hook::Egress => filters.ours_egress,
        };
        if !ours {
            continue;
        }
        let name = device(view, index);
        let gone = remove_filter(&name, hook).map(|()| true);
        let gone = gone.map_err(|error| error_chain(&error));
        removal.note("filter", format!("{name} {}", hook.name()), gone);
    }
}

/// Removes the clsact qdiscs that an agent has made and that nothing else uses, and the notes of them.
async fn remove_qdiscs(
    pins: &Pins,
    view: &View,
    handle: &Handle,
    removal: &mut Removal,
) -> Result<(), DatapathError> {
    for name in pins::list(&pins.qdiscs())? {
        let Ok(index) = name.parse() else { continue };
        let is_there = netlink::list_clsact(handle).await?.contains(&index);
        if is_there {
            let device = device(view, index);
            if netlink::has_filters(handle, index).await? {
                removal.left.push(Left {
                    what: "clsact qdisc",
                    name: device,
                    why: "filters of others are on it".to_owned(),
                    failed: false,
                });
            } else {
                let gone = remove_clsact(handle, index).await;
                removal.note("clsact qdisc", device, gone);
            }
        }
        if let Err(why) = take_folder(&pins.qdiscs().join(&name)) {
            removal.note("directory", format!("qdiscs/{name}"), Err(why));
        }
    }
    Ok(())
}

async fn remove_clsact(handle: &Handle, index: u32) -> Result<bool, String> {
    let index = i32::try_from(index).map_err(|error| error.to_string())?;
    let mut request = handle.qdisc().del(index);
    let message = request.message_mut();
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    let kind = TcAttribute::Kind("clsact".to_owned());
    message.attributes.push(kind);
    let done = request.execute().await;
    done.map(|()| true).map_err(|error| error_chain(&error))
}

/// Removes the maps and the clock. Those that were to take the place of others, and programs that were
/// told by where they were attached, go without a word.
fn remove_pins(pins: &Pins, removal: &mut Removal) -> Result<(), DatapathError> {
    for folder in incoming(pins)? {
        for name in pins::list(&folder)? {
            let path = folder.join(&name);
            let gone = take_file(&path).map(|_| false);
            removal.note("map", path.display().to_string(), gone);
        }
    }
    for name in names::ALL {
        removal.note("map", (*name).to_owned(), take_file(&pins.map(name)));
    }
    removal.note("program", "clock".to_owned(), take_file(&pins.clock()));
    Ok(())
}

/// Directories in which agents keep programs and prepare maps; nobody else pins anything there.
fn incoming(pins: &Pins) -> Result<Vec<PathBuf>, DatapathError> {
    let mut folders = named(pins, UPGRADE_PREFIX)?;
    folders.extend([pins.next_maps(), pins.programs()]);
    Ok(folders)
}

/// Whether a change of layouts was left on its way.
pub(super) fn is_upgrading(pins: &Pins) -> Result<bool, DatapathError> {
    Ok(!named(pins, UPGRADE_PREFIX)?.is_empty())
}

/// Directories whose names begin so.
fn named(pins: &Pins, prefix: &str) -> Result<Vec<PathBuf>, DatapathError> {
    let names = pins::list(pins.root())?;
    let ours = names.iter().filter(|name| name.starts_with(prefix));
    Ok(ours.map(|name| pins.root().join(name)).collect())
}

/// Removes the directories, and tells what is in them that is not ours.
fn remove_folders(pins: &Pins, removal: &mut Removal) -> Result<(), DatapathError> {
    let root = pins.root();
    let mut folders = incoming(pins)?;
    folders.extend([pins.links(), pins.qdiscs()]);
    folders.extend(named(pins, LAYOUT_PREFIX)?);
    folders.push(root.to_owned());
    for path in &folders {
        for name in pins::list(path)? {
            let inner = path.join(&name);
            if !folders.contains(&inner) && !is_ours(&name) {
                removal.stranger(&inner);
            }
        }
        match std::fs::remove_dir(path) {
            // Of the others nobody needs to hear.
            Ok(()) => {
                let gone = Ok(path == root);
                removal.note("directory", path.display().to_string(), gone);
            }
            Err(error) if is_in_use(&error) => {}
            Err(error) => {
                let why = Err(error.to_string());
                removal.note("directory", path.display().to_string(), why);
            }
        }
    }
    Ok(())
}

/// Whether an agent gives this name to a pin or a note; what could not be removed has been told.
fn is_ours(name: &str) -> bool {
    let link = name.strip_suffix("-new").unwrap_or(name);
    parse_link(name).is_some()
        || PROGRAMS.iter().any(|(_, pin)| *pin == link)
        || names::ALL.contains(&name)
        || name == "clock"
        || name.parse::<u32>().is_ok()
}

/// True when a directory is not there, has something in it, or is where a file system is mounted.
fn is_in_use(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(
        number,
        Some(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EBUSY)
    )
}
