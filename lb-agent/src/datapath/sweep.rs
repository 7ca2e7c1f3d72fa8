// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removes the entries of flows that have ended, and lets what they have counted be summed.
//!
//! A thread of its own walks the flow tables in small steps; the packet path never waits for it.
//! Entries are a pair when each names the other; the younger one decides and both go. An entry
//! whose pair key leads to another flow's entry is judged and removed alone.
//! **Invariant:** each entry is read again right before it is removed, and stays if it was used.
//! What remains: the kernel has no removal with a condition, so a packet between that read and its
//! removal loses the entry. UDP and a SYN then open the flow again; other TCP goes to the stack.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_common::abi::{Action, Conn, ConnKey, ConnState, proto};

use super::error::DatapathError;
use super::loader::Clock;
use super::maps::Flows;
use super::pins::Pins;
use super::traffic::Meter;

/// A TCP client that never got an answer gives up after a few retransmissions of its SYN; Linux's
/// own connection tracking allows 60 to 120 seconds.
const TCP_HALF_OPEN_SECS: u32 = 60;
/// Enough for the last acknowledgement and for one retransmission of a FIN.
const TCP_OVER_SECS: u32 = 10;
/// For how long Linux remembers a connection that it ended first (`TCP_TIMEWAIT_LEN`). Within it a backend
/// refuses the SYN of another client from the same port, so a masquerade port is not drawn again before.
const TIME_WAIT_SECS: u32 = 60;
/// Both entries are written within one packet, so one alone is left from a failed insert or from
/// UDP that has chosen another backend, whose last answers are under way no longer.
const UNPAIRED_SECS: u32 = 60;

/// Entries looked at in one step, about 5 ms of work.
const STEP_ENTRIES: usize = 4096;
/// Rest between two steps, so that a full table costs a fraction of one CPU.
const STEP_REST: Duration = Duration::from_millis(20);
/// Time before the first pass.
const PASS_REST_FIRST: Duration = Duration::from_secs(1);
/// Time between two passes while flows end.
const PASS_REST: Duration = Duration::from_secs(5);
/// Time between two passes while none does; not more, or a burst of short flows fills the table
/// before the next pass.
const PASS_REST_IDLE: Duration = Duration::from_secs(15);

/// For how long a flow may be without packets, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP while neither side has ended.
    pub tcp_established: u32,
    /// TCP after one side has ended, and the other may still send.
    pub tcp_close_wait: u32,
    /// UDP that was sent one way only.
    pub udp: u32,
    /// UDP that went both ways.
    pub udp_stream: u32,
}

impl Default for Timeouts {
    /// What kube-proxy sets for TCP, and what Linux has for UDP, which kube-proxy leaves alone.
    fn default() -> Self {
        Self {
            tcp_established: 24 * 60 * 60,
            tcp_close_wait: 60 * 60,
            udp: 30,
            udp_stream: 180,
        }
    }
}

impl Timeouts {
    /// True when a flow that was last seen `age_secs` ago in both directions needs no entries; one of
    /// TCP that has ended by FINs needs them for `closed_secs`.
    fn has_expired(&self, protocol: u8, state: u8, closed_secs: u32, age_secs: u32) -> bool {
        let replied = state & ConnState::REPLIED != 0;
        let half_closed = state & ConnState::CLOSED != 0;
        let timeout_secs = match protocol {
            // A backend forgets a connection that is reset at once.
            proto::TCP if state & ConnState::RESET != 0 => TCP_OVER_SECS,
            proto::TCP if ConnState::is_over(state) => closed_secs,
            proto::TCP if replied && half_closed => self.tcp_close_wait,
            proto::TCP if replied => self.tcp_established,
            proto::TCP => TCP_HALF_OPEN_SECS,
            _ if replied => self.udp_stream,
            _ => self.udp,
        };
        age_secs > timeout_secs
    }
}

/// The moment at which flows are judged, and by what.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// Low 32 bits of the kernel's jiffies.
    now: u32,
    /// Ticks in a second.
    hz: u32,
    timeouts: Timeouts,
    /// For how long a masqueraded flow that has ended keeps its port.
    port_secs: u32,
}

/// For how long masqueraded flows that have ended keep their ports in a table with so many entries: less
/// from half full on, and from three quarters on no longer than other flows, because a full table takes no
/// new ones.
fn port_secs_for(entries: usize, entries_max: usize) -> u32 {
    let quarter = (entries_max / 4).max(1);
    let beyond = entries.saturating_sub(2 * quarter).min(quarter);
    let kept = (TIME_WAIT_SECS - TCP_OVER_SECS) as usize * (quarter - beyond) / quarter;
    TCP_OVER_SECS.saturating_add(u32::try_from(kept).unwrap_or(u32::MAX))
}

/// True for the entries that hold a masquerade port.
const fn is_masqueraded<A>(conn: &Conn<A>) -> bool {
    conn.action == Action::Snat as u8 || conn.action == Action::UndoSnat as u8
}

/// Seconds since an entry was used. It counts ticks modulo 2^32 and may be younger than `now`.
pub(super) fn age_secs(now: u32, last_seen: u32, hz: u32) -> u32 {
    let ticks = now.wrapping_sub(last_seen).cast_signed().max(0);
    ticks.unsigned_abs() / hz.max(1)
}

/// True when an entry and, if there is one, its pair can go.
fn is_done<A: Copy>(
    key: &ConnKey<A>,
    conn: &Conn<A>,
    pair: Option<&Conn<A>>,
    moment: Moment,
) -> bool {
    let age = age_secs(moment.now, conn.last_seen, moment.hz);
    match pair {
        Some(pair) => {
            let age = age.min(age_secs(moment.now, pair.last_seen, moment.hz));
            let state = conn.state() | pair.state();
            let closed_secs = if is_masqueraded(conn) {
                moment.port_secs
            } else {
                TCP_OVER_SECS
            };
            let timeouts = moment.timeouts;
            timeouts.has_expired(key.proto, state, closed_secs, age)
        }
        None => age > UNPAIRED_SECS,
    }
}

/// The running sweeper; dropping it ends the thread.
pub(super) struct Sweeper {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    removed: Arc<AtomicU64>,
}

impl Sweeper {
    /// `meters` sum the entries of IPv4 and IPv6.
    pub(super) fn start(
        pins: &Pins,
        timeouts: Timeouts,
        meters: [Meter; 2],
    ) -> Result<Self, DatapathError> {
        let clock = Clock::open(pins)?;
        let now = clock.now()?;
        let [v4, v6] = meters.map(|mut meter| {
            meter.start(now, clock.hz);
            meter
        });
        let v4 = Metered(Flows::open_v4(pins)?, v4);
        let v6 = Metered(Flows::open_v6(pins)?, v6);
        let (stop, stopped) = sync_channel(0);
        let removed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&removed);
        let thread = std::thread::Builder::new()
            .name("lb-sweep".to_owned())
            .spawn(move || {
                let judge = Judge { clock, timeouts };
                run(v4, v6, &judge, &stopped, &counter);
            })
            .map_err(|source| DatapathError::Thread {
                what: "removes ended flows",
                source,
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            removed,
        })
    }

    /// Flows removed since the start.
    pub(super) fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }
}

impl Sweeper {
    /// Ends the thread; everything that it removed is then counted.
    pub(super) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that removes ended flows had panicked");
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(
    mut v4: Metered<[u8; 4]>,
    mut v6: Metered<[u8; 16]>,
    judge: &Judge,
    stopped: &Receiver<()>,
    counter: &AtomicU64,
) {
    // Soon, for what ended while no agent ran.
    let mut rest = PASS_REST_FIRST;
    let mut port_secs = [TIME_WAIT_SECS; 2];
    while !wait(stopped, rest) {
        let before = counter.load(Ordering::Relaxed);
        let [for_v4, for_v6] = &mut port_secs;
        let pass = sweep(&mut v4, judge, for_v4, stopped, counter)
            .and_then(|()| sweep(&mut v6, judge, for_v6, stopped, counter));
        match pass {
            Ok(()) => {
                rest = if counter.load(Ordering::Relaxed) > before {
                    PASS_REST
                } else {
                    PASS_REST_IDLE.min(rest * 2)
                };
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "sweep flows");
                rest = PASS_REST_IDLE;
            }
        }
    }
}

/// What it takes to judge flows at any moment.
struct Judge {
    clock: Clock,
    timeouts: Timeouts,
}

impl Judge {
    fn moment(&self, port_secs: u32) -> Result<Moment, DatapathError> {
        Ok(Moment {
            now: self.clock.now()?,
            hz: self.clock.hz,
            timeouts: self.timeouts,
            port_secs,
        })
    }
}

/// Waits; true when it is time to end.
fn wait(stopped: &Receiver<()>, rest: Duration) -> bool {
    !matches!(stopped.recv_timeout(rest), Err(RecvTimeoutError::Timeout))
}

/// One pass over one table; counts each flow as it is removed, so that a pass that fails or is
/// stopped on its way has counted what it did.
///
/// Keys are gathered first and removed afterwards, so that the reading is many entries at a time
/// and ends soon, and the writing has the pace that it needs. How many there were decides for how long
/// the next pass lets ports be kept.
fn sweep<A: Copy + Into<IpAddr>>(
    metered: &mut Metered<A>,
    judge: &Judge,
    port_secs: &mut u32,
    stopped: &Receiver<()>,
    counter: &AtomicU64,
) -> Result<(), DatapathError>
where
    ConnKey<A>: bytemuck::Pod + PartialEq,
    Conn<A>: bytemuck::Pod,
{
    let mut done = Vec::new();
    let mut entries = 0;
    let Metered(flows, meter) = &mut *metered;
    meter.begin(judge.moment(*port_secs)?.now);
    let mut batches = flows.batches(STEP_ENTRIES);
    let mut moment = None;
    while let Some((keys, conns)) = batches.next().map_err(|error| flows.unread(error))? {
        if moment.is_some() && wait(stopped, STEP_REST) {
            return Ok(());
        }
        // Later than the reading: an entry may look older than it was, and is read again.
        let at = *moment.insert(judge.moment(*port_secs)?);
        entries += keys.len();
        // The young majority needs no second look: only an old entry's pair is asked for.
        let old = keys.iter().zip(conns).filter(|(key, conn)| {
            is_done(key, conn, None, at) || is_done(key, conn, Some(conn), at)
        });
        done.extend(old.map(|(key, _)| *key));
        meter.add(keys, conns);
    }
    drop(batches);
    meter.end();
    for step in done.chunks(STEP_ENTRIES) {
        // A moment too early only makes the flows look younger.
        let moment = judge.moment(*port_secs)?;
        for key in step {
            if remove_done(metered, key, moment)? {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        if step.len() == STEP_ENTRIES && wait(stopped, STEP_REST) {
            break;
        }
    }
    *port_secs = port_secs_for(entries, metered.0.entries_max()?);
    Ok(())
}

/// Where entries are looked up and removed.
trait Entries<A> {
    fn lookup(&self, key: &ConnKey<A>) -> Result<Option<Conn<A>>, DatapathError>;
    /// Removes an entry that was just read.
    fn remove(&mut self, key: &ConnKey<A>, conn: &Conn<A>) -> Result<(), DatapathError>;
}

/// The flow entries of one family, and who sums what they count.
struct Metered<A>(Flows<A>, Meter)
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod;

impl<A: Copy + Into<IpAddr>> Entries<A> for Metered<A>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
{
    fn lookup(&self, key: &ConnKey<A>) -> Result<Option<Conn<A>>, DatapathError> {
        self.0.lookup(key)
    }

    fn remove(&mut self, key: &ConnKey<A>, conn: &Conn<A>) -> Result<(), DatapathError> {
        self.1.close(key, conn);
        self.0.remove(key)?;
        // ORDER: after the removal; if that fails, the entry will be met again.
        self.1.forget(key, conn);
        Ok(())
    }
}

/// What is under an entry's pair key, if it is its pair: after UDP has chosen another backend, the
/// old reply entry leads to the new request entry, which leads elsewhere.
fn pair_of<A: Copy>(
    key: &ConnKey<A>,
    conn: &Conn<A>,
    found: Option<Conn<A>>,
) -> Option<(ConnKey<A>, Conn<A>)>
where
    ConnKey<A>: PartialEq,
{
    let pair_key = conn.pair_key(key);
    found
        .filter(|pair| pair.pair_key(&pair_key) == *key)
        .map(|pair| (pair_key, pair))
}

/// Removes one flow if it has still ended; false when nothing was removed.
fn remove_done<A: Copy>(
    flows: &mut impl Entries<A>,
    key: &ConnKey<A>,
    moment: Moment,
) -> Result<bool, DatapathError>
where
    ConnKey<A>: PartialEq,
{
    // Gone already when its pair came first.
    let Some(conn) = flows.lookup(key)? else {
        return Ok(false);
    };
    let pair = pair_of(key, &conn, flows.lookup(&conn.pair_key(key))?);
    if !is_done(key, &conn, pair.as_ref().map(|(_, pair)| pair), moment) {
        return Ok(false);
    }
    let Some(pair) = pair else {
        return remove_unused(flows, &(*key, conn));
    };
    // ORDER: the request first, so that none is left without its reply entry.
    let (request, reply) = if conn.action == Action::Dnat as u8 || conn.action == Action::Snat as u8
    {
        ((*key, conn), pair)
    } else {
        (pair, (*key, conn))
    };
    // An answer meanwhile is life of the request as well.
    if unused(flows, &reply)?.is_none() || !remove_unused(flows, &request)? {
        return Ok(false);
    }
    remove_unused(flows, &reply)?;
    Ok(true)
}

/// An entry as it is now, if nobody used it since it was read.
fn unused<A: Copy>(
    flows: &impl Entries<A>,
    (key, conn): &(ConnKey<A>, Conn<A>),
) -> Result<Option<Conn<A>>, DatapathError> {
    let now = flows.lookup(key)?;
    Ok(now.filter(|now| now.last_seen == conn.last_seen))
}

fn remove_unused<A: Copy>(
    flows: &mut impl Entries<A>,
    entry: &(ConnKey<A>, Conn<A>),
) -> Result<bool, DatapathError> {
    let unused = unused(flows, entry)?;
    if let Some(now) = &unused {
        flows.remove(&entry.0, now)?;
    }
    Ok(unused.is_some())
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
