// SPDX-License-Identifier: MIT OR Apache-2.0
//! One pass: every pending Service is planned, and what differs is written.
//!
//! Nearly every Service is planned and written by itself, so that a pass over many of them holds the
//! plan of one. Those between which a frontend moves wait for the end and are written together.
//! **Invariant:** a frontend that goes from one Service to another is switched by one write.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::{Outcome, Reconciler};
use crate::diff::diff;
use crate::error_chain;
use crate::model::service::ServiceKey;
use crate::model::tables::TableContent;
use crate::plan::endpoints::NodeContext;
use crate::plan::health::health_check;
use crate::plan::node::TellsPods;
use crate::plan::{NoLocal, PlanContext, ServicePlan, plan_service};
use crate::tables::{ApplyError, Tables};

/// What planning needs of the reconciler, leaving its ids free to change.
macro_rules! context {
    ($this:ident) => {
        PlanContext {
            node: NodeContext {
                name: $this.index.node_name(),
                zone: $this.index.zone(),
            },
            addresses: &$this.addresses,
            left_to_host: &$this.left_to_host,
            tells_pods: TellsPods::new(&$this.settings.options.detect_local, $this.index.node()),
            options: &$this.settings.options,
            claims: &$this.claims,
            partial: !$this.unreadable.is_empty(),
        }
    };
}
pub(super) use context;

/// Services that are written together.
#[derive(Debug, Default)]
struct Group {
    services: BTreeMap<ServiceKey, TableContent>,
    ids: BTreeSet<u32>,
}

/// Services that take a frontend from another one or leave one to it, with their plans.
#[derive(Debug, Default)]
struct Movers {
    plans: BTreeMap<ServiceKey, (TableContent, BTreeSet<u32>)>,
    /// Who takes a frontend, and from which service id.
    taken: Vec<(ServiceKey, u32)>,
}

impl Reconciler {
    /// Plans every pending Service and writes the differences; nothing before the first
    /// `Update::Reset` or `Update::Partial`, because what is not known yet would look like gone.
    pub fn sync(&mut self, tables: &mut impl Tables) -> Outcome {
        self.pending.append(&mut self.failed);
        self.sync_changed(tables)
    }

    /// The same without the Services whose last write failed, unless they have changed since: a
    /// change of another one must not wait for them again.
    pub fn sync_changed(&mut self, tables: &mut impl Tables) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.listed {
            return outcome;
        }
        let mut movers = Movers::default();
        for key in self.pending.clone() {
            let plan = self.plan(&key);
            let ids = self.ids.owned_by(&key);
            let holders = self.mirror.holders(&plan.tables);
            let taken: Vec<u32> = holders.difference(&ids).copied().collect();
            if taken.is_empty() && !self.leaves_a_frontend(&key, &ids, &plan.tables) {
                let services = BTreeMap::from([(key, plan.tables)]);
                self.write_group(&Group { services, ids }, tables, &mut outcome);
            } else {
                let taken = taken.into_iter().map(|id| (key.clone(), id));
                movers.taken.extend(taken);
                movers.plans.insert(key, (plan.tables, ids));
            }
        }
        for group in self.groups(movers) {
            self.write_group(&group, tables, &mut outcome);
        }
        if self.may_prune() {
            outcome.changes += self.prune(tables);
        }
        for map in std::mem::take(&mut self.full) {
            tables.relieve(map);
        }
        // ORDER: before the ids are free, while nobody counts with them.
        tables.forget_services(&self.ids.take_released());
        self.ids.end_pass();
        outcome.pending = self.pending_len();
        outcome
    }

    /// True when another Service has a claim on a frontend that `key` has and no longer wants.
    fn leaves_a_frontend(
        &self,
        key: &ServiceKey,
        ids: &BTreeSet<u32>,
        desired: &TableContent,
    ) -> bool {
        self.mirror.left_by(ids, desired).into_iter().any(|left| {
            let owner = self.claims.owner(&left);
            owner.is_some_and(|owner| owner != key)
        })
    }

    /// Puts Services together between which a frontend moves, as few as possible.
    fn groups(&self, movers: Movers) -> Vec<Group> {
        let mut circles: Vec<BTreeSet<ServiceKey>> = Vec::new();
        for (taker, id) in movers.taken {
            let mut circle = BTreeSet::from([taker]);
            // Only now is it known who took over which id of an earlier process.
            circle.extend(self.ids.owner(id).map(|owner| owner.service.clone()));
            let touching = circles.extract_if(.., |known| !known.is_disjoint(&circle));
            let touching: Vec<_> = touching.collect();
            circle.extend(touching.into_iter().flatten());
            circles.push(circle);
        }
        let mut plans = movers.plans;
        let mut groups = Vec::new();
        for circle in circles {
            let mut group = Group::default();
            for key in circle {
                if let Some((tables, ids)) = plans.remove(&key) {
                    group.services.insert(key, tables);
                    group.ids.extend(ids);
                }
            }
            groups.push(group);
        }
        groups.extend(plans.into_iter().map(|(key, (tables, ids))| Group {
            services: BTreeMap::from([(key, tables)]),
            ids,
        }));
        groups
    }

    /// Writes one group; its Services stay pending if a write fails.
    fn write_group(&mut self, group: &Group, tables: &mut impl Tables, outcome: &mut Outcome) {
        let mut shares = group.services.values();
        let mut together = TableContent::default();
        let desired = if let (Some(only), None) = (shares.next(), shares.next()) {
            only
        } else {
            for share in group.services.values() {
                together.merge(share.clone());
            }
            &together
        };
        let (done, result) = self.write_difference(&group.ids, desired, tables);
        outcome.changes += done;
        if let Err(error) = result {
            self.full.extend(error.full_map());
            for key in group.services.keys() {
                let error = error_chain(&error);
                warn!(service = %key, error, "write failed, trying again later");
                self.pending.remove(key);
                self.failed.insert(key.clone());
            }
            return;
        }
        if done > 0 {
            outcome.services += group.services.len();
        }
        for (key, desired) in &group.services {
            self.ids.settle(key, desired);
            self.pending.remove(key);
            self.failed.remove(key);
        }
    }

    fn plan(&mut self, key: &ServiceKey) -> ServicePlan {
        let Some(snapshot) = self.index.snapshot(key) else {
            self.warnings.set(key, "", BTreeSet::new());
            self.health.set(key, "", None);
            self.no_local.set(key, NoLocal::default());
            return ServicePlan::default();
        };
        let context = context!(self);
        let mut plan = plan_service(&snapshot, context, &mut self.ids);
        let warnings = std::mem::take(&mut plan.warnings);
        self.no_local.set(key, plan.no_local);
        let uid = &snapshot.service.uid;
        self.warnings.set(key, uid, warnings);
        self.health.set(key, uid, health_check(&snapshot, context));
        plan
    }

    /// Writes a difference and stops at the first write that fails, because later ones count on it.
    fn write_difference(
        &mut self,
        ids: &BTreeSet<u32>,
        desired: &TableContent,
        tables: &mut impl Tables,
    ) -> (usize, Result<(), ApplyError>) {
        let mut done = 0;
        for op in diff(&self.mirror.share(ids), desired) {
            if let Err(error) = tables.apply(&op) {
                return (done, Err(error));
            }
            self.mirror.apply(&op);
            done += 1;
        }
        (done, Ok(()))
    }
    /// Deletes what an earlier process left behind and no Service wants.
    fn prune(&mut self, tables: &mut impl Tables) -> usize {
        let orphans = self.ids.orphans();
        let (done, result) = self.write_difference(&orphans, &TableContent::default(), tables);
        match result {
            Ok(()) => {
                if done > 0 {
                    info!("removed {done} entries that no Service wants any more");
                }
                self.ids.release_orphans();
                self.prune_due = false;
            }
            Err(error) => warn!(error = %error_chain(&error), "prune failed, trying again later"),
        }
        done
    }
}
