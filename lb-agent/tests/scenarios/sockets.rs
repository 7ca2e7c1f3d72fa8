// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets and packets come to the same: for random Services, what a socket is told is what a packet of
//! the same client would have met.
//!
//! Both run on the tables that planning makes, with the cursor and the random numbers at the same place,
//! so they must choose the very same backend, and refuse for the very same reason.
//! **Invariant:** nothing of the two is repeated here; only the order of questions differs.

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::model::tables::{FamilyTables, TableContent};
use lb_common::abi::{
    Affinity, AffinityKey, Algorithm, Backend, BackendFlags, Conn, ConnKey, Cursor, Direction,
    Frontend, FrontendFlags, FrontendKey, Policy, Scope, SlotKey, SocketKey, SocketPeer, proto,
};
use lb_common::{Address as _, Family, Reason, V4, V6};
use lb_ebpf::packet::tcp;
use lb_ebpf::path::{Call, Outcome, Verdict, Work, begin, connect, request, send};
use lb_ebpf::tables::{Caller, Dialled, InsertError, Lookup, NextHop, Sockets, Table, Tables};
use proptest::prelude::*;

use crate::worlds::{any_settings, world};

/// Tables that stand still, and one client.
struct Still<'a, F: Family> {
    content: &'a TableContent,
    tables: &'a FamilyTables<F::Addr>,
    position: Cursor,
    from_pod: bool,
    /// The client's address.
    client: F::Addr,
    conns: BTreeMap<ConnKey<F::Addr>, Conn<F::Addr>>,
    peers: BTreeMap<SocketKey<F::Addr>, SocketPeer<F::Addr>>,
}

impl<F: Family> Lookup<F> for Still<'_, F> {
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<&Frontend> {
        self.tables.frontends.get(key)
    }
    fn slot(&self, key: &SlotKey) -> Option<u32> {
        self.content.slots.get(key).copied()
    }
    fn backend(&self, id: u32) -> Option<&Backend<F::Addr>> {
        self.tables.backends.get(&id)
    }
    fn advance_cursor(&mut self, _: u32) -> Cursor {
        self.position
    }
    fn version(&self, _: u32) -> u32 {
        1
    }
    fn affinity(&self, _: &AffinityKey<F::Addr>) -> Option<&Affinity> {
        None
    }
    fn keep_affinity(&mut self, _: &AffinityKey<F::Addr>, _: &Affinity) {}
    fn admits(&self, service: u32, source: &F::Addr) -> bool {
        let bytes = source.as_ref();
        self.tables.source_ranges.iter().any(|key| {
            let same = |bit: usize| {
                let of = |bytes: &[u8]| bytes[bit / 8] >> (7 - bit % 8) & 1;
                of(bytes) == of(key.range.address.as_ref())
            };
            key.range.service == service && (0..usize::from(key.bits())).all(same)
        })
    }
    fn prefix(&self, _: u32, _: &F::Addr) -> Option<&F::Addr> {
        // The only table that is asked here: what the node is known by.
        Some(&self.client)
    }
    fn now(&self) -> u32 {
        0
    }
    fn ticks_per_second(&self) -> u32 {
        100
    }
    fn random(&mut self) -> u32 {
        77
    }
    fn count(&mut self, _: Reason) {}
    fn count_service(&mut self, _: u32, _: Dialled) {}
}

impl<F: Family> Tables<F> for Still<'_, F> {
    fn may_be_known(&self, _: &ConnKey<F::Addr>) -> bool {
        true
    }
    fn find(&mut self, _: &ConnKey<F::Addr>, _: bool) -> Option<(Table, &Conn<F::Addr>)> {
        None
    }
    fn conn(&self, _: Table, _: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>> {
        None
    }
    fn insert_conn(
        &mut self,
        _: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        self.conns.insert(*key, *conn);
        Ok(())
    }
    fn replace_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        self.insert_conn(table, key, conn)
    }
    fn remove_conn(&mut self, _: Table, key: &ConnKey<F::Addr>) {
        self.conns.remove(key);
    }
    // A flow that opens writes nothing into entries that are there.
    fn touch_conn(&mut self, _: Table, _: &ConnKey<F::Addr>, _: u32) {}
    fn mark_conn(&mut self, _: Table, _: &ConnKey<F::Addr>, _: Direction, _: u8) {}
    fn unmark_conn(&mut self, _: Table, _: &ConnKey<F::Addr>, _: Direction, _: u8) {}
    fn set_next_hop(&mut self, _: Table, _: &ConnKey<F::Addr>, _: [u8; 6]) {}
    fn set_validated(&mut self, _: Table, _: &ConnKey<F::Addr>, _: u32) {}
    fn is_pod(&self, _: &F::Addr) -> bool {
        self.from_pod
    }
    fn size(&self) -> (u32, u32) {
        (1, 0)
    }
    fn device(&self) -> u32 {
        1
    }
    fn is_marked(&self) -> bool {
        false
    }
    fn set_mark(&mut self, _: bool) {}
    fn masquerades_by_mark(&self) -> bool {
        true
    }
    fn is_masquerade_port(&self, _: u16) -> bool {
        false
    }
    fn masquerade_port(&self, _: u32) -> u16 {
        0
    }
    fn has_own_socket(&self, _: &ConnKey<F::Addr>) -> bool {
        false
    }
    fn has_direct_socket(&self, _: &ConnKey<F::Addr>) -> bool {
        false
    }
    fn next_hop(&self, _: &F::Addr) -> NextHop {
        NextHop::Routed
    }
}

impl<F: Family> Sockets<F> for Still<'_, F> {
    fn cookie(&self) -> u64 {
        40_000
    }
    fn bound(&self) -> F::Addr {
        F::Addr::ZERO
    }
    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<&SocketPeer<F::Addr>> {
        self.peers.get(key)
    }
    fn keep_peer(
        &mut self,
        key: &SocketKey<F::Addr>,
        peer: &SocketPeer<F::Addr>,
    ) -> Result<(), InsertError> {
        self.peers.insert(*key, *peer);
        Ok(())
    }
    fn touch_peer(&mut self, _: &SocketKey<F::Addr>, _: u32, _: u32) {}
    fn idle_secs(&self) -> u32 {
        180
    }
}

/// What became of a call or a packet: where it goes, that it is left alone, or why it is refused.
type Came<F> = Result<Option<(<F as Family>::Addr, u16)>, Reason>;

/// A first packet to a frontend.
fn packet<F: Family>(
    still: &mut Still<'_, F>,
    key: &FrontendKey<F::Addr>,
    mut work: Work<F::Addr>,
) -> Came<F> {
    work.packet.source = still.client;
    // As the port of the socket counts for those who choose by it.
    work.packet.source_port = 40_000;
    work.packet.destination = key.address;
    work.packet.destination_port = key.port;
    work.packet.proto = key.proto;
    work.packet.tcp_flags = if key.proto == proto::TCP { tcp::SYN } else { 0 };
    let mut outcome = request(still, &mut work);
    if outcome == Outcome::Begin {
        outcome = begin(still, &mut work);
    }
    match outcome {
        Outcome::Edit => Ok(Some((work.edit.address, work.edit.destination_port))),
        Outcome::Refused(reason) => Err(reason),
        Outcome::Pass | Outcome::Begin => Ok(None),
    }
}

/// The call of a socket: connecting, or sending without.
fn call<F: Family>(
    still: &mut Still<'_, F>,
    key: &FrontendKey<F::Addr>,
    caller: Caller,
    sending: bool,
) -> Came<F> {
    let mut call = Call::new(key.address, key.port, key.proto);
    let verdict = if sending {
        send(still, &mut call, caller)
    } else {
        connect(still, &mut call, caller)
    };
    match verdict {
        Verdict::Changed => Ok(Some((call.peer.address, call.peer.port))),
        Verdict::Refused(reason) => Err(reason),
        Verdict::Pass => Ok(None),
    }
}

/// True when the choice depends on nothing that a socket does not know yet.
fn is_foreseeable(frontend: &Frontend) -> bool {
    let algorithm = Algorithm::from_byte(frontend.algorithm);
    !algorithm.is_some_and(Algorithm::has_table)
}

fn compare<F: Family>(
    content: &TableContent,
    tables: &FamilyTables<F::Addr>,
    empty: fn() -> Work<F::Addr>,
    (client, position): (F::Addr, Cursor),
) -> Result<(), TestCaseError> {
    let still = |from_pod| Still::<F> {
        content,
        tables,
        position,
        from_pod,
        client,
        conns: BTreeMap::new(),
        peers: BTreeMap::new(),
    };
    // Sockets of SCTP call no hook.
    let dialled = tables.frontends.iter();
    for (key, frontend) in dialled.filter(|(key, _)| key.proto != proto::SCTP) {
        let ways = if key.proto == proto::UDP {
            &[false, true][..]
        } else {
            &[false]
        };
        for sending in ways {
            let pod = call(&mut still(true), key, Caller::Pod(1), *sending);
            let left = frontend.flags & FrontendFlags::SOURCE_RANGES != 0
                || frontend.policy(Scope::Pod) & Policy::SNAT_ALWAYS != 0;
            if left {
                prop_assert_eq!(pod, Ok(None), "{:?}", key);
            } else {
                let by_packet = packet(&mut still(true), key, empty());
                if is_foreseeable(frontend) {
                    prop_assert_eq!(pod, by_packet, "{:?}", key);
                } else {
                    prop_assert_eq!(kind(&pod), kind(&by_packet), "{:?}", key);
                }
            }
            let node = call(&mut still(false), key, Caller::Node, *sending);
            // Where the rules for the node are those for everybody else, so is what comes of them.
            if frontend.node_policy == frontend.external_policy {
                let by_packet = packet(&mut still(false), key, empty());
                prop_assert_eq!(node, by_packet, "{:?}", key);
            }
            check(tables, frontend, key, node)?;
        }
    }
    Ok(())
}

/// How it ended, without where.
fn kind<A>(came: &Result<Option<A>, Reason>) -> Result<bool, Reason> {
    came.as_ref().map(Option::is_some).map_err(|reason| *reason)
}

/// Checks what a socket of the node was told by the frontend's own words.
fn check<A: lb_common::Address>(
    tables: &FamilyTables<A>,
    frontend: &Frontend,
    key: &FrontendKey<A>,
    came: Result<Option<(A, u16)>, Reason>,
) -> Result<(), TestCaseError> {
    let list = frontend.list(Scope::Node);
    let drops = frontend.policy(Scope::Node) & Policy::DROP_IF_EMPTY != 0;
    match came {
        Ok(Some(reached)) => {
            let bit = BackendFlags::IN_CLUSTER_LIST << list;
            let of_list: BTreeSet<_> = tables
                .backends
                .values()
                .filter(|b| b.service == frontend.service && b.flags & bit != 0)
                .map(|b| (b.address, b.port))
                .collect();
            prop_assert!(of_list.contains(&reached), "{key:?}: {reached:?}");
        }
        Ok(None) => prop_assert!(false, "{key:?} was left alone"),
        Err(Reason::SourceRange) => {
            prop_assert!(
                frontend.flags & FrontendFlags::SOURCE_RANGES != 0,
                "{key:?}"
            );
        }
        Err(Reason::NoBackend) => prop_assert!(frontend.count(list) == 0 && !drops, "{key:?}"),
        Err(Reason::PolicyDrop) => prop_assert!(frontend.count(list) == 0 && drops, "{key:?}"),
        Err(other) => prop_assert!(false, "{key:?}: {other:?}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_socket_is_told_what_a_packet_would_have_met(
        world in world(),
        settings in any_settings(),
        position in 0..12_u64,
        in_range in any::<bool>(),
    ) {
        let content = world.listed(&settings).tables.content().clone();
        let client = if in_range { [192, 0, 2, 10] } else { [172, 16, 0, 1] };
        compare::<V4>(&content, &content.v4, Work::new, (client, position))?;
        let mut client = [0; 16];
        client[..4].copy_from_slice(if in_range { &[0x20, 1, 0xd, 0xb8] } else { &[0xfd, 9, 0, 0] });
        client[15] = 1;
        compare::<V6>(&content, &content.v6, Work::new, (client, position))?;
    }
}
