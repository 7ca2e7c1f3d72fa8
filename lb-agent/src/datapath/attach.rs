// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the programs on devices, beside those of others, and keeps them there.
//!
//! TCX where the kernel has it, else filters of a clsact qdisc; first at ingress, last at egress.
//! TCX runs before clsact, so where someone else's filter sits on a device's egress ours becomes
//! a filter too, behind it.
//! **Invariant:** an attachment is replaced in place or a second one is made before the first one
//! goes, never the other way round; and none of them ends with this process.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, TcAttachType};
use nix::errno::Errno;

use super::error::{DatapathError, os_error};
use super::loader::program;
use super::pins::{self, Pins};
use super::sockets::{SocketHooks, SocketState};

/// Where a program sits on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Packets that come in by the device.
    Ingress,
    /// Packets that leave by it.
    Egress,
}

impl Hook {
    /// The hook as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Priority of our clsact filter: the smallest runs first, the largest last.
    pub(super) const fn priority(self) -> u16 {
        match self {
            Self::Ingress => 1,
            Self::Egress => u16::MAX,
        }
    }

    const fn order(self) -> LinkOrder {
        match self {
            Self::Ingress => LinkOrder::first(),
            Self::Egress => LinkOrder::last(),
        }
    }
}

/// Which programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Programs {
    /// Those of the packet path.
    Path,
    /// The gates that lead to them while layouts change.
    #[cfg(feature = "layout-next")]
    Gates,
}

impl Programs {
    /// The program at `hook` of devices with or without Ethernet headers.
    pub(super) const fn name(self, hook: Hook, ethernet: bool) -> &'static str {
        match (self, hook, ethernet) {
            (Self::Path, Hook::Ingress, true) => "lb_tc_ingress",
            (Self::Path, Hook::Egress, true) => "lb_tc_egress",
            (Self::Path, Hook::Ingress, false) => "lb_tc_ingress_l3",
            (Self::Path, Hook::Egress, false) => "lb_tc_egress_l3",
            #[cfg(feature = "layout-next")]
            (Self::Gates, Hook::Ingress, true) => "lb_gate_in",
            #[cfg(feature = "layout-next")]
            (Self::Gates, Hook::Egress, true) => "lb_gate_out",
            #[cfg(feature = "layout-next")]
            (Self::Gates, Hook::Ingress, false) => "lb_gate_in_l3",
            #[cfg(feature = "layout-next")]
            (Self::Gates, Hook::Egress, false) => "lb_gate_out_l3",
        }
    }
}

/// Handle of our clsact filters, `lb` in ASCII: fixed, so that a new agent finds the old filter.
pub(super) const FILTER_HANDLE: u32 = 0x6c62;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A link of the kernel's own kind, from Linux 6.6 on.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

/// Filters that are on a device's clsact qdisc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Ours, at ingress.
    pub ours_ingress: bool,
    /// Ours, at egress.
    pub ours_egress: bool,
    /// Someone else's, at egress.
    pub foreign_egress: bool,
}

impl Filters {
    const fn ours(self, hook: Hook) -> bool {
        match hook {
            Hook::Ingress => self.ours_ingress,
            Hook::Egress => self.ours_egress,
        }
    }
}

/// How to attach at `hook`, given whether TCX may be used and what else is there.
pub fn choose_mechanism(hook: Hook, tcx: bool, filters: Filters) -> Mechanism {
    if !tcx || hook == Hook::Egress && filters.foreign_egress {
        Mechanism::Clsact
    } else {
        Mechanism::Tcx
    }
}

/// A device to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) ethernet: bool,
    pub(super) filters: Filters,
}

/// What [`Attacher::ensure`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Attached already; the program is this process's from now on.
    Kept,
    /// Newly attached.
    Attached,
    /// The device has gone meanwhile.
    Gone,
}

/// Attaches and detaches.
pub(super) struct Attacher {
    ebpf: Ebpf,
    pins: Pins,
    tcx: bool,
    /// Attach points that have the programs of `ebpf`.
    current: BTreeSet<(u32, Hook)>,
    sockets: SocketHooks,
    programs: Programs,
    /// Programs of `ebpf` that are pinned.
    pinned: BTreeSet<&'static str>,
}

impl Attacher {
    pub(super) fn new(ebpf: Ebpf, pins: Pins, tcx: bool, sockets: SocketHooks) -> Self {
        Self {
            ebpf,
            pins,
            tcx,
            current: BTreeSet::new(),
            sockets,
            programs: Programs::Path,
            pinned: BTreeSet::new(),
        }
    }

    /// The same that attaches gates.
    #[cfg(feature = "layout-next")]
    pub(super) fn with_gates(mut self) -> Self {
        self.programs = Programs::Gates;
        self
    }

    /// True when the device has a program of ours at `hook`, whosever it was.
    #[cfg(feature = "layout-next")]
    pub(super) fn has(&self, target: &Target, hook: Hook) -> bool {
        self.link_path(target.index, hook).exists() || target.filters.ours(hook)
    }

    /// Pins a program, so that a later build finds it when layouts change.
    fn pin(&mut self, name: &'static str) -> Result<(), DatapathError> {
        if self.programs == Programs::Path && !self.pinned.contains(name) {
            let program = program(&mut self.ebpf, name)?;
            self.pins.pin_program(program, name)?;
            self.pinned.insert(name);
        }
        Ok(())
    }

    /// Removes what programs needed that are attached nowhere any more.
    pub(super) fn forget_earlier(&self) -> Result<(), DatapathError> {
        self.pins.forget_earlier(&self.pinned)
    }

    /// Sees to it that sockets are served as chosen; tells how many programs had to be put back.
    pub(super) fn ensure_sockets(&mut self) -> u64 {
        self.sockets.ensure(&mut self.ebpf, &self.pins)
    }

    /// How sockets are served.
    pub(super) fn sockets(&self) -> &SocketState {
        self.sockets.state()
    }

    /// From now on these are the programs to attach; what is attached stays until it is ensured.
    pub(super) fn renew(&mut self, ebpf: Ebpf) {
        self.ebpf = ebpf;
        self.current.clear();
        self.pinned.clear();
        self.sockets.renew();
    }

    /// True when some attach point may have an earlier program: by its pinned link, or by a filter
    /// on one of the devices that `lack` a program.
    pub(super) fn is_outdated(&self, lack: &[Target]) -> Result<bool, DatapathError> {
        let is_old = |point: &(u32, Hook)| !self.current.contains(point);
        let filters = lack.iter().any(|target| {
            let is_left = |hook| target.filters.ours(hook) && is_old(&(target.index, hook));
            [Hook::Ingress, Hook::Egress].into_iter().any(is_left)
        });
        Ok(filters || self.sockets.is_outdated(&self.pins) || self.pinned()?.iter().any(is_old))
    }

    /// Sees to it that the program of `hook` is on the device, once.
    pub(super) fn ensure(&mut self, target: &Target, hook: Hook) -> Result<Outcome, DatapathError> {
        // ORDER: before it is attached.
        self.pin(self.programs.name(hook, target.ethernet))?;
        let outcome = match choose_mechanism(hook, self.tcx, target.filters) {
            Mechanism::Clsact => self.ensure_filter(target, hook),
            Mechanism::Tcx => self.ensure_link(target, hook),
        };
        match outcome {
            Err(error) if os_error(&error) == Some(Errno::ENODEV as i32) => Ok(Outcome::Gone),
            Ok(outcome) => {
                // ORDER: the other kind goes only after this kind is there.
                self.remove_other(target, hook)?;
                self.current.insert((target.index, hook));
                Ok(outcome)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes ours off a device. One that has gone has taken its filters along.
    pub(super) fn remove(&self, target: &Target, hook: Hook) -> Result<(), DatapathError> {
        self.unpin(target.index, hook)?;
        if target.filters.ours(hook) {
            remove_filter(&target.name, hook)?;
        }
        Ok(())
    }

    /// Removes the link of a device that no longer exists, or must not have one.
    pub(super) fn unpin(&self, index: u32, hook: Hook) -> Result<(), DatapathError> {
        let path = self.link_path(index, hook);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Directory {
                    what: "remove link",
                    path,
                    source,
                })
            }
            _ => Ok(()),
        }
    }

    /// Forgets which qdiscs an agent has made on devices that are gone with them.
    pub(super) fn forget_qdiscs(&self, known: &BTreeSet<u32>) -> Result<(), DatapathError> {
        for name in pins::list(&self.pins.qdiscs())? {
            if name.parse().is_ok_and(|index| !known.contains(&index)) {
                pins::remove(&self.pins.qdiscs().join(name))?;
            }
        }
        Ok(())
    }

    /// Devices and hooks that have a pinned link.
    pub(super) fn pinned(&self) -> Result<Vec<(u32, Hook)>, DatapathError> {
        let names = pins::list(&self.pins.links())?;
        Ok(names.iter().filter_map(|name| parse_link(name)).collect())
    }

    /// How `target` ought to be attached at `hook` on this kernel.
    pub(super) fn mechanism(&self, target: &Target, hook: Hook) -> Mechanism {
        choose_mechanism(hook, self.tcx, target.filters)
    }

    fn link_path(&self, index: u32, hook: Hook) -> PathBuf {
        self.pins.links().join(format!("{index}-{}", hook.name()))
    }

    fn ensure_link(&mut self, target: &Target, hook: Hook) -> Result<Outcome, DatapathError> {
        let path = self.link_path(target.index, hook);
        let attempt = Attempt {
            what: "attach to",
            device: &target.name,
            hook,
        };
        let name = self.programs.name(hook, target.ethernet);
        let program = program(&mut self.ebpf, name)?;
        match PinnedLink::from_pin(&path) {
            Ok(pinned) => {
                let link = SchedClassifierLink::try_from(FdLink::from(pinned))
                    .map_err(|e| attempt.failed(e))?;
                match program.attach_to_link(link) {
                    Ok(id) => {
                        // The pin keeps the link; this only closes our descriptor of it.
                        drop(program.take_link(id).map_err(|e| attempt.failed(e))?);
                        return Ok(Outcome::Kept);
                    }
                    // KERNEL: a link whose device has gone or that was detached by force.
                    Err(error) if os_error(&error) == Some(Errno::ENOLINK as i32) => {
                        std::fs::remove_file(&path).map_err(|e| attempt.failed(e))?;
                    }
                    Err(error) => return Err(attempt.failed(error)),
                }
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(attempt.failed(error)),
        }
        let id = program
            .attach_with_options(
                &target.name,
                hook.attach_type(),
                TcAttachOptions::TcxOrder(hook.order()),
            )
            .map_err(|e| attempt.failed(e))?;
        let link = program.take_link(id).map_err(|e| attempt.failed(e))?;
        let link = FdLink::try_from(link).map_err(|e| attempt.failed(e))?;
        link.pin(&path).map_err(|e| attempt.failed(e))?;
        Ok(Outcome::Attached)
    }

    fn ensure_filter(&mut self, target: &Target, hook: Hook) -> Result<Outcome, DatapathError> {
        let attempt = Attempt {
            what: "attach a filter to",
            device: &target.name,
            hook,
        };
        let name = self.programs.name(hook, target.ethernet);
        let program = program(&mut self.ebpf, name)?;
        let existing = filter(&target.name, hook).map_err(|e| attempt.failed(e))?;
        let (id, outcome) = match program.attach_to_link(existing) {
            Ok(id) => (id, Outcome::Kept),
            Err(error) if is_no_filter(&error) => {
                match tc::qdisc_add_clsact(&target.name) {
                    // ORDER: noted after it is made, or somebody else's would count as ours.
                    Ok(()) => pins::create(&self.pins.qdisc(target.index))?,
                    Err(error) if os_error(&error) == Some(Errno::EEXIST as i32) => {}
                    Err(error) => return Err(attempt.failed(error)),
                }
                let options = TcAttachOptions::Netlink(NlOptions {
                    priority: hook.priority(),
                    handle: TcHandle::from(FILTER_HANDLE),
                    classid: None,
                });
                let id = program
                    .attach_with_options(&target.name, hook.attach_type(), options)
                    .map_err(|e| attempt.failed(e))?;
                (id, Outcome::Attached)
            }
            Err(error) => return Err(attempt.failed(error)),
        };
        // Dropping it would detach the filter, which must outlive this process.
        std::mem::forget(program.take_link(id).map_err(|e| attempt.failed(e))?);
        Ok(outcome)
    }

    /// Removes what is there of the mechanism that is not used on this device.
    fn remove_other(&self, target: &Target, hook: Hook) -> Result<(), DatapathError> {
        match self.mechanism(target, hook) {
            Mechanism::Clsact => self.unpin(target.index, hook),
            Mechanism::Tcx if target.filters.ours(hook) => remove_filter(&target.name, hook),
            Mechanism::Tcx => Ok(()),
        }
    }
}

/// Our filter on a device, whether or not it is there.
fn filter(device: &str, hook: Hook) -> io::Result<SchedClassifierLink> {
    let handle = TcHandle::from(FILTER_HANDLE);
    SchedClassifierLink::attached(device, hook.attach_type(), hook.priority(), handle, None)
}

/// Removes our filter; none, or no device, is no error.
pub(super) fn remove_filter(device: &str, hook: Hook) -> Result<(), DatapathError> {
    let detached = filter(device, hook)
        .map_err(ProgramError::from)
        .and_then(aya::programs::links::Link::detach);
    match detached {
        Err(error) if is_no_filter(&error) || os_error(&error) == Some(Errno::ENODEV as i32) => {
            Ok(())
        }
        Err(error) => Err(Attempt {
            what: "remove the filter from",
            device,
            hook,
        }
        .failed(error)),
        Ok(()) => Ok(()),
    }
}

/// True when the kernel found no such filter, or no qdisc that could have one.
fn is_no_filter(error: &ProgramError) -> bool {
    matches!(
        os_error(error).map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::EINVAL)
    )
}

fn is_absent(error: &LinkError) -> bool {
    os_error(error) == Some(Errno::ENOENT as i32)
}

pub(super) fn parse_link(name: &str) -> Option<(u32, Hook)> {
    let (index, hook) = name.split_once('-')?;
    let hook = [Hook::Ingress, Hook::Egress]
        .into_iter()
        .find(|known| known.name() == hook)?;
    Some((index.parse().ok()?, hook))
}

/// What was being done to which device, to be told with what went wrong.
struct Attempt<'a> {
    what: &'static str,
    device: &'a str,
    hook: Hook,
}

impl Attempt<'_> {
    fn failed(&self, source: impl std::error::Error + Send + Sync + 'static) -> DatapathError {
        DatapathError::Attach {
            what: self.what,
            hook: self.hook.name(),
            device: self.device.to_owned(),
            source: Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_filter_at_egress_makes_ours_a_filter_behind_it() {
        let none = Filters::default();
        let foreign = Filters {
            foreign_egress: true,
            ..none
        };
        for (hook, tcx, filters, mechanism) in [
            (Hook::Ingress, true, none, Mechanism::Tcx),
            (Hook::Egress, true, none, Mechanism::Tcx),
            (Hook::Ingress, true, foreign, Mechanism::Tcx),
            (Hook::Egress, true, foreign, Mechanism::Clsact),
            (Hook::Ingress, false, none, Mechanism::Clsact),
            (Hook::Egress, false, foreign, Mechanism::Clsact),
        ] {
            assert_eq!(choose_mechanism(hook, tcx, filters), mechanism);
        }
    }

    #[test]
    fn names_of_pinned_links_are_read_back() {
        assert_eq!(parse_link("12-ingress"), Some((12, Hook::Ingress)));
        assert_eq!(parse_link("3-egress"), Some((3, Hook::Egress)));
        assert_eq!(parse_link("eth0-egress"), None);
        assert_eq!(parse_link("3-sideways"), None);
    }
}
