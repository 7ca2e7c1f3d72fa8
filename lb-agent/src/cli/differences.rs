// SPDX-License-Identifier: MIT OR Apache-2.0
//! How what the maps hold differs from what is wanted, by what it means to who dials a Service.
//!
//! Ids, epochs, generations and the order of slots mean nothing to them and are not compared: a list is
//! how many of its slots each address has.
//! **Invariant:** pure, and sorted. Of a Service that the maps lack altogether, or have and should not,
//! only the frontends are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{
    Backend, BackendFlags, BackendState, Frontend, FrontendFlags, FrontendKey, List, Scope, SlotKey,
};
use serde::Serialize;

use super::names::PortName;
use super::render::{algorithm_text, kind_text, policy, scope_name};
use crate::model::tables::{FamilyTables, TableContent, protocol_name, socket};
use crate::plan::explain::list_name;

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Difference {
    /// `namespace/name`; none for what no Service wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port_name: Option<String>,
    pub(super) service_id: u32,
    /// What differs, such as `frontend 10.0.1.175:80 TCP` or `cluster list`.
    pub(super) object: String,
    /// `missing`, `extra`, `different`: how the maps have it.
    pub(super) is: &'static str,
    /// How it differs; empty where there is no more to say.
    pub(super) detail: String,
}

const MISSING: &str = "missing";
const EXTRA: &str = "extra";
const DIFFERENT: &str = "different";

/// Tells the Service and port of a service id.
type NameOf<'a> = &'a dyn Fn(u32) -> Option<PortName>;

/// What the maps hold, and what they should.
struct Comparison<'a> {
    name_of: NameOf<'a>,
    found: Vec<Difference>,
}

/// How `actual` differs from `wanted`. Both have the same ids for the same things.
pub(super) fn differences(
    actual: &TableContent,
    wanted: &TableContent,
    name_of: NameOf<'_>,
) -> Vec<Difference> {
    let mut comparison = Comparison {
        name_of,
        found: Vec::new(),
    };
    comparison.frontends(&actual.v4, &wanted.v4);
    comparison.frontends(&actual.v6, &wanted.v6);
    let (is, should) = (actual.services(), wanted.services());
    let common: BTreeSet<u32> = is.intersection(&should).copied().collect();
    comparison.backends(&actual.v4, &wanted.v4, &common);
    comparison.backends(&actual.v6, &wanted.v6, &common);
    comparison.ranges(&actual.v4, &wanted.v4, &common);
    comparison.ranges(&actual.v6, &wanted.v6, &common);
    comparison.lists(actual, wanted, &common);
    comparison.leftovers(actual, &(&is - &should));
    comparison.found.sort();
    comparison.found
}

impl Comparison<'_> {
    fn add(&mut self, service: u32, object: String, is: &'static str, detail: String) {
        let name = (self.name_of)(service);
        self.found.push(Difference {
            service: name.as_ref().map(|name| name.service.to_string()),
            port_name: name.map(|name| name.port),
            service_id: service,
            object,
            is,
            detail,
        });
    }

    fn frontends<A>(&mut self, actual: &FamilyTables<A>, wanted: &FamilyTables<A>)
    where
        A: Ord + Copy + Into<IpAddr>,
    {
        let object = |key: &FrontendKey<A>| {
            let at = socket(key.address.into(), key.port);
            format!("frontend {at} {}", protocol_name(key.proto))
        };
        for (key, value) in &wanted.frontends {
            match actual.frontends.get(key) {
                None => self.add(value.service, object(key), MISSING, kind_text(value.kind)),
                Some(is) => {
                    let detail = self.frontend_detail(is, value);
                    if !detail.is_empty() {
                        self.add(value.service, object(key), DIFFERENT, detail);
                    }
                }
            }
        }
        for (key, value) in &actual.frontends {
            if !wanted.frontends.contains_key(key) {
                self.add(value.service, object(key), EXTRA, kind_text(value.kind));
            }
        }
    }

    fn frontend_detail(&self, is: &Frontend, should: &Frontend) -> String {
        let mut words = Vec::new();
        let mut compare = |what: &str, is: String, should: String| {
            if is != should {
                words.push(format!("{what} {is} instead of {should}"));
            }
        };
        let name = |id| (self.name_of)(id).map_or_else(|| format!("id {id}"), |n| n.text());
        if is.service != should.service {
            compare("Service", name(is.service), name(should.service));
        }
        compare("kind", kind_text(is.kind), kind_text(should.kind));
        let algorithm = (is.algorithm, should.algorithm);
        compare(
            "algorithm",
            algorithm_text(algorithm.0),
            algorithm_text(algorithm.1),
        );
        let number = |n: u32| n.to_string();
        compare(
            "affinity seconds",
            number(is.affinity_secs),
            number(should.affinity_secs),
        );
        for list in List::ALL {
            let what = format!("slots of the {} list", list_name(list));
            let count = |frontend: &Frontend| number(frontend.count(list as u16).into());
            compare(&what, count(is), count(should));
        }
        let size = |frontend: &Frontend| number(frontend.table_size.into());
        compare("lookup table", size(is), size(should));
        for scope in Scope::ALL {
            let words = |frontend: &Frontend| {
                let policy = policy(frontend.policy(scope));
                format!("{}/{}/snat {}", policy.list, policy.if_empty, policy.snat)
            };
            compare(scope_name(scope), words(is), words(should));
        }
        let ranges = |frontend: &Frontend| match frontend.flags & FrontendFlags::SOURCE_RANGES {
            0 => "everybody".to_owned(),
            _ => "ranges".to_owned(),
        };
        compare("sources", ranges(is), ranges(should));
        words.join(", ")
    }

    fn backends<A>(
        &mut self,
        actual: &FamilyTables<A>,
        wanted: &FamilyTables<A>,
        common: &BTreeSet<u32>,
    ) where
        A: Ord + Copy + Into<IpAddr>,
    {
        let (is, should) = (by_address(actual, common), by_address(wanted, common));
        for (at, value) in &should {
            match is.get(at) {
                None => self.add(at.0, backend_name(*at), MISSING, String::new()),
                Some(found) if found != value => {
                    let detail = format!("{} instead of {}", state(*found), state(*value));
                    self.add(at.0, backend_name(*at), DIFFERENT, detail);
                }
                Some(_) => {}
            }
        }
        for at in is.keys().filter(|at| !should.contains_key(at)) {
            self.add(at.0, backend_name(*at), EXTRA, String::new());
        }
    }

    fn ranges<A>(
        &mut self,
        actual: &FamilyTables<A>,
        wanted: &FamilyTables<A>,
        common: &BTreeSet<u32>,
    ) where
        A: Ord + Copy + Into<IpAddr>,
    {
        let (is, should) = (&actual.source_ranges, &wanted.source_ranges);
        let missing = should.difference(is).map(|key| (key, MISSING));
        let extra = is.difference(should).map(|key| (key, EXTRA));
        for (key, how) in missing.chain(extra) {
            if common.contains(&key.range.service) {
                let range = format!("{}/{}", key.range.address.into(), key.bits());
                self.add(
                    key.range.service,
                    format!("source range {range}"),
                    how,
                    String::new(),
                );
            }
        }
    }

    fn lists(&mut self, actual: &TableContent, wanted: &TableContent, common: &BTreeSet<u32>) {
        let is = slots_by_address(actual, common);
        let should = slots_by_address(wanted, common);
        let none = BTreeMap::new();
        let keys: BTreeSet<_> = is.keys().chain(should.keys()).copied().collect();
        for (service, list) in keys {
            let (is, should) = (
                is.get(&(service, list)).unwrap_or(&none),
                should.get(&(service, list)).unwrap_or(&none),
            );
            let addresses: BTreeSet<_> = is.keys().chain(should.keys()).collect();
            let differing = addresses.into_iter().filter_map(|address| {
                let count = |of: &BTreeMap<String, u32>| of.get(address).copied().unwrap_or(0);
                let (is, should) = (count(is), count(should));
                (is != should).then(|| format!("{address} has {is} slots instead of {should}"))
            });
            let detail: Vec<_> = differing.collect();
            if !detail.is_empty() {
                self.add(service, list_words(list), DIFFERENT, detail.join(", "));
            }
        }
    }

    /// Entries of service ids that nobody wants and that no frontend leads to.
    fn leftovers(&mut self, actual: &TableContent, unwanted: &BTreeSet<u32>) {
        let v4 = actual.v4.frontends.values();
        let led: BTreeSet<u32> = v4
            .chain(actual.v6.frontends.values())
            .map(|frontend| frontend.service)
            .collect();
        for id in unwanted.difference(&led) {
            let v4 = actual.v4.backends.values().filter(|b| b.service == *id);
            let v6 = actual.v6.backends.values().filter(|b| b.service == *id);
            let backends = v4.count() + v6.count();
            let slots = actual.slots.keys().filter(|key| key.service == *id).count();
            let detail = format!("{backends} backends and {slots} slots that no frontend leads to");
            self.add(*id, "leftovers".to_owned(), EXTRA, detail);
        }
    }
}

/// A backend by what it is: service id, address and port.
type BackendAt = (u32, IpAddr, u16);

fn by_address<A>(tables: &FamilyTables<A>, of: &BTreeSet<u32>) -> BTreeMap<BackendAt, (u8, u8)>
where
    A: Ord + Copy + Into<IpAddr>,
{
    let wanted = tables.backends.values().filter(|b| of.contains(&b.service));
    wanted
        .map(|b: &Backend<A>| {
            let local = b.flags & BackendFlags::ON_THIS_NODE;
            ((b.service, b.address.into(), b.port), (b.state, local))
        })
        .collect()
}

fn backend_name((_, address, port): BackendAt) -> String {
    format!("backend {}", socket(address, port))
}

fn state((state, local): (u8, u8)) -> String {
    let state = if state == BackendState::Terminating as u8 {
        "terminating"
    } else {
        "serving"
    };
    let place = if local == 0 { "" } else { " on this node" };
    format!("{state}{place}")
}

/// How many slots each address has, by service id and list; lookup tables are lists here.
fn slots_by_address(
    content: &TableContent,
    of: &BTreeSet<u32>,
) -> BTreeMap<(u32, u16), BTreeMap<String, u32>> {
    let mut found: BTreeMap<_, BTreeMap<String, u32>> = BTreeMap::new();
    for (key, backend) in &content.slots {
        if of.contains(&key.service) {
            let of_list = found.entry((key.service, key.list)).or_default();
            *of_list
                .entry(slot_words(content, *key, *backend))
                .or_default() += 1;
        }
    }
    found
}

/// The address that a slot leads to; one of another Service or none shows up as that.
fn slot_words(content: &TableContent, key: SlotKey, id: u32) -> String {
    let v4 = content.v4.backends.get(&id);
    let v4 = v4.map(|b| (b.service, socket(b.address.into(), b.port)));
    let v6 = content.v6.backends.get(&id);
    let v6 = v6.map(|b| (b.service, socket(b.address.into(), b.port)));
    match v4.or(v6) {
        Some((service, at)) if service == key.service => at,
        Some((service, at)) => format!("{at} of service id {service}"),
        None => format!("backend {id}, which is not there,"),
    }
}

fn list_words(number: u16) -> String {
    let list = List::ALL
        .into_iter()
        .find(|list| *list as u16 == number % List::TABLES);
    let list = list.map_or("unknown", list_name);
    if number < List::TABLES {
        format!("{list} list")
    } else {
        format!("lookup table of the {list} list")
    }
}

#[cfg(test)]
#[path = "differences_tests.rs"]
mod tests;
