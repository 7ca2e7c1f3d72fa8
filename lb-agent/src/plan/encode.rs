// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the rules of one port to its entries in the tables.
//!
//! **Invariant:** nothing is decided here about which endpoints are used; ids and slots move as
//! little as the change asks for.

use std::collections::BTreeSet;

use lb_common::abi::{
    Algorithm, BackendFlags, BackendState, Frontend, FrontendFlags, Kind, List, Policy, Scope,
    limits,
};

use super::ServicePlan;
use super::endpoints::Candidate;
use super::ids::{BackendId, Exhausted, Ids, PortKey};
use super::lists::{ListSizes, Member};
use super::rules::{FrontendRule, PortRules, ScopeRule, Snat, Verdict};
use crate::model::endpoint::WEIGHT_DEFAULT;
use crate::model::service::Service;

/// Endpoints that a list can hold.
pub(super) const LIST_MAX: usize = limits::BACKENDS_PER_SERVICE as usize;

/// What the encoding needs beside the rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder<'a> {
    pub(super) service: &'a Service,
    pub(super) algorithm: Algorithm,
    /// Backends that only the tables tell of stay in their lists.
    pub(super) partial: bool,
}

impl Encoder<'_> {
    /// Adds the frontends, backends, slots and source ranges of one port to `plan`.
    pub(super) fn port(
        self,
        rules: &PortRules<'_>,
        ids: &mut Ids,
        plan: &mut ServicePlan,
    ) -> Result<(), Exhausted> {
        let key = PortKey {
            service: self.service.key.clone(),
            family: rules.family,
            name: rules.port.name.clone(),
            protocol: rules.port.protocol,
        };
        let addresses: Vec<_> = rules.frontends.iter().map(|rule| rule.at).collect();
        let (id, generation) = ids.port(&key, &self.service.uid, &addresses)?;
        let used = |list| uses(rules, list);
        let mut exhausted = Ok(());
        let mut lists = [Vec::new(), Vec::new()];
        for (at, candidate) in rules.candidates.iter().enumerate() {
            ids.confirm(id, &candidate.address);
            let flags = flags(rules, at, candidate);
            if !rules.keeps(at) {
                continue;
            }
            match ids.backend(id, candidate.address) {
                Ok(backend) => {
                    plan.put_backend(id, backend, candidate, flags);
                    for list in List::ALL {
                        if used(list) && flags & in_list(list) != 0 {
                            lists[list as usize].push(Member {
                                id: backend.id,
                                address: candidate.address,
                                weight: candidate.endpoint.weight,
                            });
                        }
                    }
                }
                Err(error) => exhausted = Err(error),
            }
        }
        if self.partial {
            plan.keep_unconfirmed(id, &mut lists, ids);
        }
        let sizes = plan.put_lists((rules.port, id), &mut lists, self.algorithm, ids);
        for rule in &rules.frontends {
            let at = rule.at;
            let frontend = self.frontend((id, generation), rule, sizes);
            plan.tables
                .put_frontend(at.address, at.port, at.proto, frontend);
        }
        for range in source_ranges(rules) {
            plan.tables.put_source_range(id, range);
        }
        exhausted
    }

    fn frontend(
        self,
        (id, generation): (u32, u32),
        rule: &FrontendRule,
        ListSizes { counts, table }: ListSizes,
    ) -> Frontend {
        let policy = |scope: Scope| {
            let rule = rule.scopes[scope as usize];
            policy(rule, counts[rule.list as usize])
        };
        let flags = if rule.source_ranges.is_empty() {
            0
        } else {
            FrontendFlags::SOURCE_RANGES
        };
        Frontend {
            service: id,
            generation,
            affinity_secs: self.service.affinity_timeout_secs.unwrap_or(0),
            cluster_count: counts[List::Cluster as usize],
            local_count: counts[List::Local as usize],
            pod_policy: policy(Scope::Pod),
            node_policy: policy(Scope::Node),
            external_policy: policy(Scope::External),
            algorithm: self.algorithm as u8,
            kind: rule.kind as u8,
            flags,
            table_size: table,
        }
    }
}

impl PortRules<'_> {
    /// The members of a list that fit into it, and those that are cut, as positions in the
    /// candidates.
    pub fn members(&self, list: List) -> (&[usize], &[usize]) {
        let all = match list {
            List::Cluster => &self.selection.cluster,
            List::Local => &self.selection.local,
        };
        all.split_at(all.len().min(LIST_MAX))
    }

    /// The lists that some frontend chooses from.
    pub fn lists_used(&self) -> impl Iterator<Item = List> {
        List::ALL.into_iter().filter(|list| uses(self, *list))
    }

    /// Whether the candidate at `at` has a backend: all that would answer and that some frontend
    /// could have chosen, because flows that they have go on.
    pub fn keeps(&self, at: usize) -> bool {
        let Some(candidate) = self.candidates.get(at) else {
            return false;
        };
        let serves = candidate.endpoint.ready || candidate.draining();
        serves && (uses(self, List::Cluster) || candidate.local)
    }
}

/// True when some frontend chooses from `list`.
fn uses(rules: &PortRules<'_>, list: List) -> bool {
    let scopes = rules.frontends.iter().flat_map(|rule| &rule.scopes);
    scopes.into_iter().any(|scope| scope.list == list)
}

fn in_list(list: List) -> u8 {
    match list {
        List::Cluster => BackendFlags::IN_CLUSTER_LIST,
        List::Local => BackendFlags::IN_LOCAL_LIST,
    }
}

fn flags(rules: &PortRules<'_>, at: usize, candidate: &Candidate<'_>) -> u8 {
    let mut flags = 0;
    if candidate.local {
        flags |= BackendFlags::ON_THIS_NODE;
    }
    for (list, members) in [
        (List::Cluster, &rules.selection.cluster),
        (List::Local, &rules.selection.local),
    ] {
        if uses(rules, list) && members.binary_search(&at).is_ok() {
            flags |= in_list(list);
        }
    }
    flags
}

/// The bits for a list of `count` backends, which may be more than the rule knows of.
fn policy(rule: ScopeRule, count: u16) -> u8 {
    let list = match rule.list {
        List::Cluster => 0,
        List::Local => Policy::LOCAL_LIST,
    };
    let verdict = match rule.verdict {
        Verdict::Drop if count == 0 => Policy::DROP_IF_EMPTY,
        Verdict::Forward | Verdict::Reject | Verdict::Drop => 0,
    };
    let snat = match rule.snat {
        Snat::Never => 0,
        Snat::Remote => Policy::SNAT_REMOTE,
        Snat::Always => Policy::SNAT_ALWAYS,
    };
    list | verdict | snat
}

fn source_ranges(rules: &PortRules<'_>) -> BTreeSet<crate::model::prefix::Prefix> {
    let balancers = rules
        .frontends
        .iter()
        .filter(|r| r.kind == Kind::LoadBalancer);
    balancers
        .flat_map(|rule| rule.source_ranges.iter().copied())
        .collect()
}

impl ServicePlan {
    /// Adds the backends of `service` that only the tables tell of; their weights are not known.
    fn keep_unconfirmed(&mut self, service: u32, lists: &mut [Vec<Member>; 2], ids: &Ids) {
        for kept in ids.unconfirmed(service) {
            let state = if kept.lists.is_empty() {
                BackendState::Terminating
            } else {
                BackendState::Active
            };
            let mut flags = 0;
            for list in &kept.lists {
                lists[*list as usize].push(Member {
                    id: kept.backend.id,
                    address: kept.address,
                    weight: WEIGHT_DEFAULT,
                });
                flags |= in_list(*list);
            }
            let owner = (service, kept.backend.epoch);
            self.tables
                .put_backend(kept.backend.id, owner, kept.address, (state, flags));
        }
    }

    fn put_backend(&mut self, service: u32, id: BackendId, candidate: &Candidate<'_>, flags: u8) {
        let state = if candidate.endpoint.ready {
            BackendState::Active
        } else {
            BackendState::Terminating
        };
        self.tables.put_backend(
            id.id,
            (service, id.epoch),
            candidate.address,
            (state, flags),
        );
    }
}
