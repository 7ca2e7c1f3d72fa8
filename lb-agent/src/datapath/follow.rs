// SPDX-License-Identifier: MIT OR Apache-2.0
//! Follows the node's devices and keeps the programs on those that are managed.
//!
//! Messages of the kernel are acted on at once, so that a new pod's first packet finds the
//! programs; lost messages and a periodic audit lead to a full list.
//! **Invariant:** a device's entry in `IFACES` and its egress program are there before its ingress
//! program: no flow is translated whose replies would not be.

mod settled;
mod sources;
mod unsettled;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use super::attach::{Attacher, Hook, Outcome};
use super::devices::{Managed, Rules};
use super::error::DatapathError;
use super::events::{self, Message, Messages, Netlink, Todo};
use super::grow::{Event, Switch};
use super::lacking::Lacking;
use super::maps::Ifaces;
use super::masquerade::{Masquerade, Table};
use super::netfilter::Watch;
use super::netlink;
use super::view::{View, Wanted};
use sources::Sources;

pub(super) use sources::Known;

/// Messages taken together before acting on them, so that a burst is not acted on one by one.
const MESSAGES_PER_STEP: usize = 256;
/// Wait before a new netlink socket when one broke.
const RECONNECT_WAIT: Duration = Duration::from_secs(1);

/// Keeps the programs on the managed devices.
pub(super) struct Follower {
    attacher: Attacher,
    ifaces: Ifaces,
    /// Addresses to masquerade with.
    sources: Sources,
    rules: Rules,
    view: View,
    attached: BTreeMap<u32, Wanted>,
    managed: watch::Sender<Managed>,
    repairs: Arc<AtomicU64>,
    /// Devices that are to be managed and lack a program.
    lacking: Lacking,
    /// Index into `SETTLE_WAITS` for each pair that must be asked for again.
    unsettled: BTreeMap<u32, usize>,
    /// New programs, as they come.
    switches: mpsc::UnboundedReceiver<Switch>,
    /// Devices that have not been given the new programs yet.
    outdated: BTreeSet<u32>,
    /// Who waits until every attach point has them.
    switching: Option<Sender<Event>>,
    /// No program of an earlier agent is attached any more.
    settled: bool,
    /// Rules of the packet filter that people should know of.
    rules_of_others: Watch,
}

impl Follower {
    pub(super) fn new(
        attacher: Attacher,
        ifaces: Ifaces,
        known: Known,
        rules: Rules,
        managed: watch::Sender<Managed>,
        repairs: Arc<AtomicU64>,
        switches: mpsc::UnboundedReceiver<Switch>,
    ) -> Self {
        Self {
            attacher,
            ifaces,
            sources: Sources::new(known, &rules.pods),
            rules,
            view: View::default(),
            attached: BTreeMap::new(),
            managed,
            repairs,
            lacking: Lacking::default(),
            unsettled: BTreeMap::new(),
            switches,
            outdated: BTreeSet::new(),
            switching: None,
            settled: false,
            rules_of_others: Watch::default(),
        }
    }

    /// Lists everything and attaches; then returns the endless rest of the work, which includes
    /// devices that could not be attached to. It is an error when none could.
    pub(super) async fn start(
        mut self,
        audit: Duration,
    ) -> Result<impl Future<Output = ()> + Send + 'static, DatapathError> {
        let mut netlink = Netlink::open()?;
        self.view = netlink::list(&netlink.handle).await?;
        self.forget_strangers();
        self.write_own();
        let first_error = self.ensure(self.view.indices().collect());
        self.attacher.ensure_sockets();
        self.rules_of_others.look();
        self.drop_stale_tables();
        if let Some(error) = first_error
            && self.attached.is_empty()
        {
            return Err(error);
        }
        self.report();
        Ok(async move {
            loop {
                self.follow(&mut netlink, audit).await;
                tracing::warn!("the netlink socket broke; opening a new one");
                loop {
                    sleep(RECONNECT_WAIT).await;
                    match Netlink::open() {
                        Ok(opened) => netlink = opened,
                        Err(error) => {
                            warn("reopen netlink", &error);
                            continue;
                        }
                    }
                    break;
                }
                self.audit(&netlink.handle).await;
            }
        })
    }

    /// Acts on messages and audits until the socket breaks.
    async fn follow(&mut self, netlink: &mut Netlink, period: Duration) {
        let mut audits = interval_at(Instant::now() + period, period);
        audits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = netlink.messages.next() => {
                    let Some(message) = message else { return };
                    self.take(&mut netlink.messages, message, &netlink.handle).await;
                }
                () = sleep(self.settle_wait()), if !self.unsettled.is_empty() => {
                    self.settle(&netlink.handle).await;
                }
                () = sleep_until(self.lacking.due()), if !self.lacking.is_empty() => {
                    self.retry(&netlink.handle).await;
                }
                _ = audits.tick() => self.audit(&netlink.handle).await,
                Some(switch) = self.switches.recv() => self.begin_switch(switch),
                Ok(()) = self.sources.cluster.changed() => self.take_cluster_facts(),
                () = sleep_until(self.sources.routes_due), if self.sources.routes_stale => {
                    self.read_routes(&netlink.handle).await;
                }
                () = yield_now(), if !self.outdated.is_empty() => self.replace_next(),
            }
        }
    }

    /// Takes one message and what has queued up behind it, then acts.
    async fn take(&mut self, messages: &mut Messages, first: Message, handle: &Handle) {
        let mut todo = Todo::default();
        let mut touched = BTreeSet::new();
        let mut next = Some(first);
        for _ in 0..MESSAGES_PER_STEP {
            let Some(message) = next else { break };
            touched.extend(events::read(&mut self.view, message.payload, &mut todo));
            next = messages.next().now_or_never().flatten();
        }
        if let Some(last) = next {
            touched.extend(events::read(&mut self.view, last.payload, &mut todo));
        }
        if todo.list {
            tracing::info!("messages about devices were lost; listing all of them");
            self.audit(handle).await;
            return;
        }
        self.react(touched);
        self.look_for_unsettled();
        self.follow_sources(&todo, handle).await;
        for index in todo.filters {
            self.check_filters(handle, index).await;
        }
        self.report();
    }

    /// Attaches to and detaches from the devices named, where that changes anything.
    fn react(&mut self, mut touched: BTreeSet<u32>) {
        touched.extend(self.view.ports_of(&touched));
        let changed = touched
            .into_iter()
            .filter(|index| {
                let wanted = self.view.wanted(*index, &self.rules);
                self.attached.get(index) != wanted.as_ref() || self.lacking.has(*index)
            })
            .collect();
        self.ensure(changed);
    }

    /// Tries the devices again that lack a program.
    async fn retry(&mut self, handle: &Handle) {
        self.lacking.begin_retry();
        for index in self.lacking.indices() {
            // Filters may be why, and messages tell of those that are managed only.
            if let Ok(filters) = netlink::list_filters(handle, index).await {
                self.view.put_filters(index, filters);
            }
        }
        self.ensure(self.lacking.indices());
        self.report();
    }

    /// Takes new programs over: devices that come have them at once, the others one by one.
    fn begin_switch(&mut self, switch: Switch) {
        self.attacher.renew(switch.programs);
        self.ensure_sockets();
        self.outdated = self.attached.keys().copied().collect();
        self.outdated.extend(self.lacking.indices());
        self.switching = Some(switch.done);
        self.end_switch();
    }

    /// Sees to it that sockets are served as chosen.
    fn ensure_sockets(&mut self) {
        let repaired = self.attacher.ensure_sockets();
        self.repairs.fetch_add(repaired, Ordering::Relaxed);
    }

    /// Replaces the programs of one device, so that other work need not wait for all of them.
    fn replace_next(&mut self) {
        if let Some(index) = self.outdated.pop_first() {
            self.ensure(BTreeSet::from([index]));
        }
        self.report();
    }

    /// Tells who waits when no attach point has an earlier program any more.
    fn end_switch(&mut self) {
        if self.switching.is_none() || !self.outdated.is_empty() {
            return;
        }
        let lacking = self.lacking.indices().into_iter();
        let lacking: Vec<_> = lacking
            .filter_map(|index| self.view.target(index))
            .collect();
        match self.attacher.is_outdated(&lacking) {
            Ok(true) => {}
            Ok(false) => {
                if let Some(done) = self.switching.take() {
                    // It has gone only when the agent ends.
                    done.send(Event::Switched).unwrap_or_default();
                }
            }
            Err(error) => warn("look for earlier programs", &error),
        }
    }

    /// Brings devices into the state that the view asks for; returns the first error, all of which
    /// are logged. Devices that lack a program then are tried again soon.
    fn ensure(&mut self, devices: BTreeSet<u32>) -> Option<DatapathError> {
        let mut wanted = BTreeMap::new();
        let mut first_error = None;
        let mut lacking = BTreeMap::new();
        let mut released = Vec::new();
        let mut failed = |error: DatapathError| {
            warn("manage devices", &error);
            first_error.get_or_insert(error);
        };
        let masquerade = Masquerade::new(&self.view, &self.sources.cluster_facts.service_addresses);
        for index in devices {
            self.lacking.remove(index);
            match self.view.wanted(index, &self.rules) {
                Some(device) => match self
                    .ifaces
                    .put(index, device.iface)
                    .and_then(|()| self.sources.prefixes.set(index, &masquerade.device(index)))
                {
                    Ok(()) => {
                        wanted.insert(index, device);
                    }
                    Err(error) => {
                        lacking.insert(index, device.target.name);
                        failed(error);
                    }
                },
                None => released.push(index),
            }
        }
        for index in released {
            self.release(index).unwrap_or_else(&mut failed);
        }
        // ORDER: see the invariant above; across all devices, because replies leave by others.
        for hook in [Hook::Egress, Hook::Ingress] {
            wanted.retain(|index, device| {
                // Moving from one mechanism to the other is no repair.
                let had = self.attached.get(index).is_some_and(|before| {
                    self.attacher.mechanism(&before.target, hook)
                        == self.attacher.mechanism(&device.target, hook)
                });
                match self.attacher.ensure(&device.target, hook) {
                    Ok(Outcome::Attached) if had => {
                        self.repairs.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(
                            device = device.target.name,
                            hook = hook.name(),
                            "put the program back, it had been detached"
                        );
                        true
                    }
                    Ok(Outcome::Attached | Outcome::Kept) => true,
                    Ok(Outcome::Gone) => false,
                    Err(error) => {
                        lacking.insert(*index, device.target.name.clone());
                        failed(error);
                        false
                    }
                }
            });
        }
        self.attached.extend(wanted);
        self.lacking.add(lacking);
        first_error
    }

    /// Stops managing a device, which may be gone.
    fn release(&mut self, index: u32) -> Result<(), DatapathError> {
        let was = self.attached.remove(&index).map(|device| device.target);
        if let Some(target) = self.view.target(index).or(was) {
            // ORDER: no new flows first, then no more replies.
            self.attacher.remove(&target, Hook::Ingress)?;
            self.attacher.remove(&target, Hook::Egress)?;
        }
        self.sources.prefixes.set(index, &Table::new())?;
        self.ifaces.remove(index)
    }

    /// Removes what an earlier agent left for devices that are gone.
    fn forget_strangers(&mut self) {
        let known: BTreeSet<u32> = self.view.indices().collect();
        match self.attacher.pinned() {
            Ok(pinned) => {
                for (index, hook) in pinned {
                    if !known.contains(&index)
                        && let Err(error) = self.attacher.unpin(index, hook)
                    {
                        warn("remove an old link", &error);
                    }
                }
            }
            Err(error) => warn("read old links", &error),
        }
        if let Err(error) = self.attacher.forget_qdiscs(&known) {
            warn("forget old qdiscs", &error);
        }
        for index in self.ifaces.indices() {
            if !known.contains(&index)
                && let Err(error) = self.ifaces.remove(index)
            {
                warn("remove an old device", &error);
            }
        }
    }

    /// Lists everything anew and puts back whatever is missing.
    async fn audit(&mut self, handle: &Handle) {
        match netlink::list(handle).await {
            Ok(view) => {
                let mut devices: BTreeSet<u32> = view.indices().collect();
                devices.extend(self.attached.keys());
                devices.extend(self.lacking.indices());
                self.view = view;
                self.forget_strangers();
                self.write_own();
                self.ensure(devices);
                self.ensure_sockets();
                self.rules_of_others.look();
                self.drop_stale_tables();
                self.look_for_unsettled();
                self.report();
            }
            Err(error) => warn("audit devices", &error),
        }
    }

    /// Looks at a device's filters after they have changed.
    async fn check_filters(&mut self, handle: &Handle, index: u32) {
        let Some(device) = self.attached.get(&index) else {
            return;
        };
        let Ok(filters) = netlink::list_filters(handle, index).await else {
            return;
        };
        let before = device.target.filters;
        self.view.put_filters(index, filters);
        // Our own doing changes them too; only what ours depends on is worth another look.
        let lost = before.ours_ingress && !filters.ours_ingress
            || before.ours_egress && !filters.ours_egress;
        if lost || before.foreign_egress != filters.foreign_egress {
            self.ensure(BTreeSet::from([index]));
        } else if let Some(device) = self.attached.get_mut(&index) {
            device.target.filters = filters;
        }
    }

    /// Publishes which devices are managed, if that has changed.
    fn report(&mut self) {
        self.end_switch();
        self.forget_earlier();
        let devices = self
            .attached
            .iter()
            .map(|(index, device)| (*index, (device.target.name.clone(), device.role)))
            .collect();
        let lacking = self.lacking.names();
        let managed = Managed {
            devices,
            lacking,
            addresses: self.view.node_addresses(),
            node: self.sources.written.clone(),
            sockets: self.attacher.sockets().clone(),
            filter: self.rules_of_others.found(),
        };
        let mut changed = false;
        self.managed.send_if_modified(|current| {
            changed = current.devices != managed.devices || current.lacking != managed.lacking;
            let differs = *current != managed;
            current.clone_from(&managed);
            differs
        });
        if changed {
            tracing::info!("managed devices: {managed}");
            for name in &managed.lacking {
                tracing::warn!(device = name, "lacks a program; trying again");
            }
        }
    }
}

fn warn(what: &str, error: &DatapathError) {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}");
}
