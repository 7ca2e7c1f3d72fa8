// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows as they come to be: by packets that pass the programs, never by writing entries.
//!
//! **Invariant:** a flow counts as established only when its packets were rewritten both ways, so a
//! case that measures nothing is an error and not a good number.

use anyhow::{Result, bail};

use super::kernel::{Hook, Kernel, PASS};
use super::wire::{Ends, Kind, Proto, ends_of, frame};

/// Marks packets that egress shall masquerade.
const SNAT_MARK: u32 = 0x4000;

/// An established flow: its packets in both directions, as they reach each hook.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// From the client, at ingress.
    pub(crate) request: Vec<u8>,
    /// The same after ingress.
    pub(crate) translated: Vec<u8>,
    /// From the backend, as it reaches the egress of the client's device.
    pub(crate) reply: Vec<u8>,
    /// Set when the request leaves with its source translated as well.
    pub(crate) snat: Option<Snat>,
}

/// What the second pair of hooks of a masqueraded flow sees.
#[derive(Clone, Debug)]
pub(crate) struct Snat {
    /// The request on its way out, with the mark that it carries.
    pub(crate) leaving: Vec<u8>,
    pub(crate) mark: u32,
    /// The reply on its way in.
    pub(crate) returning: Vec<u8>,
}

/// Lets the packets pass that establish the flow; none when the programs leave it alone.
pub(crate) fn establish(kernel: &Kernel, proto: Proto, ends: Ends) -> Result<Option<Flow>> {
    let (open, answer) = match proto {
        Proto::Tcp => (Kind::Syn, Kind::SynAck),
        Proto::Udp => (Kind::Data, Kind::Data),
    };
    let Some(way) = forward(kernel, &frame(proto, open, ends))? else {
        return Ok(None);
    };
    let replies = way.outside.reversed();
    let reply = backward(
        kernel,
        &frame(proto, answer, replies),
        way.masqueraded,
        ends,
    )?;
    let request = frame(proto, Kind::Data, ends);
    // The packet that makes the flow an established one, and one that finds it so.
    for _ in 0..2 {
        let passed = forward(kernel, &request)?;
        if passed.is_none_or(|passed| passed.outside != way.outside) {
            bail!("{ends:?}: a packet of an established flow goes elsewhere");
        }
    }
    let (translated, mark) = pass(kernel, Hook::Ingress, &request, 0)?;
    Ok(Some(Flow {
        snat: way.masqueraded.then(|| Snat {
            leaving: translated.clone(),
            mark,
            returning: frame(proto, Kind::Data, replies),
        }),
        reply: frame(proto, Kind::Data, ends_of(&reply)),
        request,
        translated,
    }))
}

/// Where the requests of a flow go.
#[derive(Clone, Copy)]
struct Way {
    /// As they reach the backend.
    outside: Ends,
    masqueraded: bool,
}

/// A request through ingress and, when it is to be masqueraded, egress; none when it is left alone.
fn forward(kernel: &Kernel, request: &[u8]) -> Result<Option<Way>> {
    let (translated, mark) = pass(kernel, Hook::Ingress, request, 0)?;
    let inside = ends_of(&translated);
    if inside == ends_of(request) {
        return Ok(None);
    }
    let masqueraded = mark & SNAT_MARK != 0;
    let outside = if masqueraded {
        let (left, _) = pass(kernel, Hook::Egress, &translated, mark)?;
        ends_of(&left)
    } else {
        inside
    };
    if masqueraded && outside.source == inside.source {
        bail!("{inside:?}: a marked packet is not masqueraded");
    }
    Ok(Some(Way {
        outside,
        masqueraded,
    }))
}

/// The answer, all the way back to the client: how it reaches the egress of the client's device.
fn backward(kernel: &Kernel, answer: &[u8], masqueraded: bool, ends: Ends) -> Result<Vec<u8>> {
    let inside = if masqueraded {
        pass(kernel, Hook::Ingress, answer, 0)?.0
    } else {
        answer.to_vec()
    };
    let (back, _) = pass(kernel, Hook::Egress, &inside, 0)?;
    if ends_of(&back) != ends.reversed() {
        bail!("{ends:?}: the answer comes back as {:?}", ends_of(&back));
    }
    Ok(inside)
}

/// A packet that must not be dropped, and its mark afterwards.
fn pass(kernel: &Kernel, hook: Hook, frame: &[u8], mark: u32) -> Result<(Vec<u8>, u32)> {
    let left = kernel.run(hook, frame, mark)?;
    if left.verdict != PASS {
        bail!("{hook:?} says {} to {:?}", left.verdict, ends_of(frame));
    }
    Ok((left.frame, left.mark))
}

/// Mixes the order, always in the same way. Entries lie in memory as they were inserted; in that order
/// the processor would fetch them ahead of time, as no traffic lets it.
pub(crate) fn shuffle<T>(list: &mut [T]) {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for last in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = state % (last as u64 + 1);
        list.swap(last, usize::try_from(other).unwrap_or(0));
    }
}
