// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules of the packet filter that concern Services: those of a kube-proxy, which runs or has left
//! them behind, and what is dropped.
//!
//! Read from the kernel: tables of nftables (iptables-nft is one of its users) by netlink, those of the
//! older iptables by its own options of a socket, and only where that is in use already.
//! **Invariant:** nothing is changed, also not by loading a module. What cannot be read is not there.

use std::collections::BTreeSet;
use std::io;

use nix::sys::socket::SockProtocol;

use super::devices::FilterFindings;
use super::kube_proxy;
use super::legacy;
use super::probe::{Finding, Health};
use super::request::{DUMP, REQUEST, Requests, attributes, part};

/// `NFT_MSG_NEWCHAIN` and `NFT_MSG_GETCHAIN` of `NFNL_SUBSYS_NFTABLES`
/// (`include/uapi/linux/netfilter/nf_tables.h`).
const SUBSYSTEM: u16 = 10 << 8;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
/// Length of `struct nfgenmsg`, before the attributes.
const GENERAL: usize = 4;
/// Attributes of a chain.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
/// The attribute of a hook that says which one.
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_FORWARD`, and the policy `NF_DROP`.
const FORWARD: u32 = 2;
const DROP: u32 = 0;
/// Families that have that hook: `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [u8; 3] = [1, 2, 10];

/// The chain of kube-proxy that masquerades marked packets, with iptables; with nftables it has a table
/// of its own.
pub(super) const KUBE_POSTROUTING: &str = "KUBE-POSTROUTING";
const KUBE_PROXY: &str = "kube-proxy";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// The process of a kube-proxy that runs here.
    running: Option<u32>,
    /// Where rules of kube-proxy masquerade marked packets.
    pub(super) left: BTreeSet<String>,
    /// Chains that drop what is forwarded and not accepted.
    pub(super) forward_drop: BTreeSet<String>,
}

impl Rules {
    /// Looks at the rules of the calling thread's network namespace.
    pub(super) fn look() -> Self {
        let mut rules = Self {
            running: kube_proxy::running(),
            ..Self::default()
        };
        // Without nftables in the kernel there is nothing to read.
        rules.read_nftables().unwrap_or_default();
        for table in legacy::tables_with(KUBE_POSTROUTING) {
            rules.left.insert(table);
        }
        rules
    }

    fn read_nftables(&mut self) -> io::Result<()> {
        let mut requests = Requests::open(SockProtocol::NetlinkNetFilter)?;
        requests.send(GET_CHAIN, REQUEST | DUMP, &[0; GENERAL])?;
        requests.receive(NEW_CHAIN, |chain| self.take(chain))
    }

    /// Takes a chain of nftables in.
    fn take(&mut self, chain: &[u8]) {
        let [family] = part::<1>(chain, 0);
        let (mut table, mut name) = (String::new(), String::new());
        let (mut hook, mut policy) = (None, None);
        for (number, value) in attributes(chain.get(GENERAL..).unwrap_or_default()) {
            match number {
                TABLE => table = text(value),
                NAME => name = text(value),
                HOOK => hook = attributes(value).find(|(number, _)| *number == HOOK_NUMBER),
                POLICY => policy = Some(u32::from_be_bytes(part(value, 0))),
                _ => {}
            }
        }
        if name == KUBE_POSTROUTING || table == KUBE_PROXY {
            let place = if table == KUBE_PROXY { &table } else { &name };
            let place = format!("{place} ({} table {table})", family_name(family));
            self.left.insert(place);
        }
        let hook = hook.map(|(_, value)| u32::from_be_bytes(part(value, 0)));
        if hook == Some(FORWARD) && policy == Some(DROP) && FAMILIES.contains(&family) {
            let place = format!("{name} ({} table {table})", family_name(family));
            self.forward_drop.insert(place);
        }
    }

    /// What a person should know of the rules.
    pub(super) fn findings(&self) -> Vec<Finding> {
        const RUNNING: &str = "kube-proxy";
        const LEFT: &str = "rules of kube-proxy";
        const CLEANUP: &str = "once it is gone, remove them with `kube-proxy --cleanup`";
        const FORWARDING: &str = "forwarding";
        let list = |places: &BTreeSet<String>| {
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            places.join(", ")
        };
        let running = match self.running {
            Some(process) => format!(
                "runs here (process {process}), and may: connections that its rules translate go on, \
                 new ones are translated by lb before they come to its rules"
            ),
            None => "is not seen to run here".to_owned(),
        };
        let running = Finding::new(RUNNING, Health::Fine, running);
        let left = if self.left.is_empty() {
            Finding::new(LEFT, Health::Fine, "none")
        } else {
            let detail = format!(
                "{}: they masquerade marked packets before lb does, to the same address; {CLEANUP}",
                list(&self.left)
            );
            Finding::new(LEFT, Health::Less, detail)
        };
        let forwarding = if self.forward_drop.is_empty() {
            Finding::new(FORWARDING, Health::Fine, "no policy drops it")
        } else {
            let detail = format!(
                "the policy of {} is DROP: without kube-proxy's own rule what goes to and from pods \
                 must be accepted by another one, else Services are not reached",
                list(&self.forward_drop)
            );
            Finding::new(FORWARDING, Health::Less, detail)
        };
        vec![running, left, forwarding]
    }
}

/// Tells of rules when they have changed.
#[derive(Debug, Default)]
pub(super) struct Watch(Rules);

impl Watch {
    /// What was found last, in numbers.
    pub(super) fn found(&self) -> FilterFindings {
        FilterFindings {
            kube_proxy: self.0.left.len(),
            forward_drop: self.0.forward_drop.len(),
        }
    }

    /// Looks again, and warns of what is new.
    pub(super) fn look(&mut self) {
        let rules = Rules::look();
        if rules == self.0 {
            return;
        }
        for finding in rules.findings() {
            if finding.health == Health::Less {
                tracing::warn!("{}: {}", finding.what, finding.detail);
            } else {
                tracing::info!("{}: {}", finding.what, finding.detail);
            }
        }
        self.0 = rules;
    }
}

/// A name as the kernel sends it, with a zero at its end.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(number.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn chain(family: u8, table: &[u8], name: &[u8], rest: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        bytes.extend(attribute(TABLE, table));
        bytes.extend(attribute(NAME, name));
        bytes.extend(rest.concat());
        bytes
    }

    #[test]
    fn chains_are_recognised_by_their_names_hooks_and_policies() {
        let mut rules = Rules::default();
        let hook = |number: u32| attribute(HOOK, &attribute(HOOK_NUMBER, &number.to_be_bytes()));
        let policy = |policy: u32| attribute(POLICY, &policy.to_be_bytes());
        rules.take(&chain(2, b"nat\0", b"KUBE-POSTROUTING\0", &[]));
        rules.take(&chain(10, b"kube-proxy\0", b"services\0", &[]));
        rules.take(&chain(
            2,
            b"filter\0",
            b"FORWARD\0",
            &[hook(FORWARD), policy(DROP)],
        ));
        rules.take(&chain(2, b"filter\0", b"INPUT\0", &[hook(1), policy(DROP)]));
        rules.take(&chain(
            2,
            b"other\0",
            b"FORWARD\0",
            &[hook(FORWARD), policy(1)],
        ));
        rules.take(&chain(2, b"nat\0", b"POSTROUTING\0", &[]));
        assert_eq!(
            rules.left.iter().map(String::as_str).collect::<Vec<_>>(),
            [
                "KUBE-POSTROUTING (ip table nat)",
                "kube-proxy (ip6 table kube-proxy)"
            ]
        );
        let dropped: Vec<_> = rules.forward_drop.iter().map(String::as_str).collect();
        assert_eq!(dropped, ["FORWARD (ip table filter)"]);
        rules.running = Some(4711);
        let findings = rules.findings();
        let [running, others @ ..] = findings.as_slice() else {
            panic!("{findings:?}");
        };
        // It may run, but for what it leaves behind.
        assert!(running.health == Health::Fine && running.detail.contains("process 4711"));
        assert!(others.iter().all(|f| f.health == Health::Less));
        assert!(
            Rules::default()
                .findings()
                .iter()
                .all(|f| f.health == Health::Fine)
        );
    }
}
