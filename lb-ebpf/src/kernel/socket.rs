// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Calls of sockets: what they name, and the way back into the kernel.
//!
//! These programs run where the process runs, and may be interrupted by a packet or by another process
//! on the same CPU; so they have no per-CPU record to work in, unlike those of tc.
//! **Invariant:** a call that is not ours returns with nothing written.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr as SockAddr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval,
};
use lb_common::abi::{FrontendKey, SocketKey, SocketPeer};
use lb_common::{Address as _, Class, V4, V6};
use lb_ebpf::path::{self, Call, Verdict};
use lb_ebpf::tables::{Caller, InsertError, Lookup, Sockets};

use super::maps::{LEARNED, NAMESPACES};
use super::presence::is_frontend_port;
use super::{Host, settings};

/// What a hook that may refuse returns.
const GO_ON: i32 = 1;
const REFUSE: i32 = 0;
/// `ECONNREFUSED` (`include/uapi/asm-generic/errno.h`).
const CONNECTION_REFUSED: i32 = 111;
/// The third word of an IPv4 address within IPv6 (RFC 4291, 2.5.5.2).
const MAPPED: u32 = 0xffff_u32.to_be();

/// Where a call has its address: in the form of its own family, or IPv4 within IPv6.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Form {
    V4 = 0,
    V6 = 1,
    Mapped = 2,
}

/// The kernel around one call.
pub(super) struct Socket {
    ctx: *mut SockAddr,
    form: Form,
}

impl Socket {
    #[inline(always)]
    fn address(&self) -> [u32; 4] {
        // SAFETY: the context is valid for as long as the program runs. Volatile, because the kernel
        // allows accesses of one word only, which the compiler would join.
        unsafe {
            let ip6 = (&raw const (*self.ctx).user_ip6).cast::<u32>();
            match self.form {
                Form::V4 => [ptr::read_volatile(&raw const (*self.ctx).user_ip4), 0, 0, 0],
                Form::V6 => [
                    ptr::read_volatile(ip6),
                    ptr::read_volatile(ip6.add(1)),
                    ptr::read_volatile(ip6.add(2)),
                    ptr::read_volatile(ip6.add(3)),
                ],
                Form::Mapped => [ptr::read_volatile(ip6.add(3)), 0, 0, 0],
            }
        }
    }

    #[inline(always)]
    fn set_peer(&self, [a, b, c, d]: [u32; 4], port: u16) {
        // SAFETY: as above; programs of this kind may write these fields.
        unsafe {
            let ip6 = (&raw mut (*self.ctx).user_ip6).cast::<u32>();
            match self.form {
                Form::V4 => ptr::write_volatile(&raw mut (*self.ctx).user_ip4, a),
                Form::V6 => {
                    ptr::write_volatile(ip6, a);
                    ptr::write_volatile(ip6.add(1), b);
                    ptr::write_volatile(ip6.add(2), c);
                    ptr::write_volatile(ip6.add(3), d);
                }
                Form::Mapped => ptr::write_volatile(ip6.add(3), a),
            }
            ptr::write_volatile(&raw mut (*self.ctx).user_port, port.to_be().into());
        }
    }

    /// The peer's port in host order, and the protocol.
    #[inline(always)]
    fn port(&self) -> (u16, u8) {
        // SAFETY: as above.
        let (port, number) = unsafe {
            (
                ptr::read_volatile(&raw const (*self.ctx).user_port),
                ptr::read_volatile(&raw const (*self.ctx).protocol),
            )
        };
        #[expect(clippy::cast_possible_truncation, reason = "16 bits and 8 bits")]
        let named = (u16::from_be(port as u16), number as u8);
        named
    }

    /// Whose socket it is; none when it is to be left alone.
    #[inline(always)]
    fn caller(&self) -> Option<Caller> {
        // SAFETY: the context is valid.
        let netns = unsafe { bpf_get_netns_cookie(self.ctx.cast()) };
        if netns == settings::node_netns() {
            return Some(Caller::Node);
        }
        if !settings::serves_pods() {
            return None;
        }
        // SAFETY: the helper has no arguments; an aligned word is read.
        let served = unsafe {
            bpf_get_current_cgroup_id() != settings::root_cgroup()
                && NAMESPACES.get(netns).is_some_and(|served| *served != 0)
        };
        served.then_some(Caller::Pod(netns))
    }

    /// What the hook returns for a verdict, once it is carried out.
    #[inline(always)]
    fn carry_out<F: Host>(&mut self, verdict: Verdict, call: &Call<F::Addr>) -> i32 {
        match verdict {
            Verdict::Pass => GO_ON,
            Verdict::Changed => {
                self.set_peer(call.peer.address.words(), call.peer.port);
                GO_ON
            }
            Verdict::Refused(reason) => {
                Lookup::<F>::count(self, reason);
                if reason.class() == Class::Reject && settings::can_set_error() {
                    // SAFETY: where the kernel has this helper for programs of this kind.
                    unsafe { bpf_set_retval(-CONNECTION_REFUSED) };
                }
                REFUSE
            }
        }
    }
}

impl<F: Host> Sockets<F> for Socket {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    fn bound(&self) -> F::Addr {
        // SAFETY: the context is valid, and so is the socket that it points to.
        let words = unsafe {
            let sock = (*self.ctx).__bindgen_anon_1.sk;
            let ip6 = (&raw const (*sock).src_ip6).cast::<u32>();
            if F::IS_V6 {
                [
                    ptr::read_volatile(ip6),
                    ptr::read_volatile(ip6.add(1)),
                    ptr::read_volatile(ip6.add(2)),
                    ptr::read_volatile(ip6.add(3)),
                ]
            } else {
                [ptr::read_volatile(&raw const (*sock).src_ip4), 0, 0, 0]
            }
        };
        F::Addr::from_words(words)
    }

    #[inline(always)]
    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<&SocketPeer<F::Addr>> {
        // SAFETY: one socket's entries are written by its own calls only; two of them at once can mix
        // two choices, of which either would do, and the epoch is checked.
        unsafe { F::sockets().get(key) }
    }

    #[inline(always)]
    fn keep_peer(
        &mut self,
        key: &SocketKey<F::Addr>,
        peer: &SocketPeer<F::Addr>,
    ) -> Result<(), InsertError> {
        // In place where there is one: a tenth of what it costs to put another element in its place.
        if let Some(held) = F::sockets().get_ptr_mut(key) {
            // SAFETY: a valid element of this socket; see `peer`.
            unsafe { (*held).take_over(peer) };
            return Ok(());
        }
        let kept = F::sockets().insert(key, peer, u64::from(BPF_ANY));
        kept.map_err(|_| InsertError::Full)
    }

    #[inline(always)]
    fn touch_peer(&mut self, key: &SocketKey<F::Addr>, now: u32, version: u32) {
        if let Some(peer) = F::sockets().get_ptr_mut(key) {
            // SAFETY: aligned words of a valid element.
            unsafe {
                ptr::write_volatile(&raw mut (*peer).last_used, now);
                ptr::write_volatile(&raw mut (*peer).validated, version);
            }
        }
    }

    #[inline(always)]
    fn idle_secs(&self) -> u32 {
        settings::socket_idle_secs()
    }
}

/// What a call is for.
#[derive(Clone, Copy)]
enum Step {
    Connect,
    Send,
    Show,
}

/// A call with nothing in it, zeroed word by word: the compiler would do it byte by byte, in a loop that
/// takes longer than the rest of the program.
#[inline(always)]
fn blank<A>(call: &mut MaybeUninit<Call<A>>) -> &mut Call<A> {
    let words = call.as_mut_ptr().cast::<u64>();
    let mut index = 0;
    while index < const { size_of::<Call<A>>() / size_of::<u64>() } {
        // SAFETY: within the call, whose size is a multiple of its alignment of eight bytes.
        unsafe { words.add(index).write_volatile(0) };
        index += 1;
    }
    // SAFETY: every byte has been written, and all of its fields may be zero.
    unsafe { call.assume_init_mut() }
}

/// Decides about a call and carries the verdict out. What most calls are asked comes first, before
/// there is anything to fill in.
#[inline(always)]
fn serve<F: Host>(ctx: *mut SockAddr, form: Form, step: Step) -> i32 {
    let mut socket = Socket { ctx, form };
    let (port, number) = socket.port();
    if !matches!(step, Step::Show) && !is_frontend_port(port, number) {
        return GO_ON;
    }
    let address = F::Addr::from_words(socket.address());
    let key = FrontendKey::new(address, port, number);
    let mut found = None;
    let mut whose = None;
    if matches!(step, Step::Connect) {
        if !address.is_loopback_or_unspecified() {
            found = Lookup::<F>::frontend(&socket, &key);
            if found.is_none() {
                return GO_ON;
            }
        }
    } else {
        whose = socket.caller();
        if whose.is_none() {
            return GO_ON;
        }
    }
    let mut call = MaybeUninit::uninit();
    let call = blank(&mut call);
    if let Some(frontend) = found {
        call.choice.frontend_key = key;
        call.choice.frontend.take_over(frontend);
    }
    // VERIFIER: asked here by a connect, whose stack has no room for the answer any earlier.
    let whose = if matches!(step, Step::Connect) {
        socket.caller()
    } else {
        whose
    };
    let Some(caller) = whose else {
        return GO_ON;
    };
    call.packet.destination = address;
    call.packet.destination_port = port;
    call.packet.proto = number;
    let verdict = match step {
        Step::Connect => path::connect::<F, Socket>(&mut socket, call, caller),
        Step::Send => path::send::<F, Socket>(&mut socket, call, caller),
        Step::Show => path::shown::<F, Socket>(&mut socket, call),
    };
    socket.carry_out::<F>(verdict, call)
}

/// Whether a call of IPv6 names an address of IPv4.
#[inline(always)]
fn is_mapped(ctx: *mut SockAddr) -> bool {
    let [a, b, c, _] = Socket {
        ctx,
        form: Form::V6,
    }
    .address();
    (a | b) == 0 && c == MAPPED
}

/// The hooks of one kind: at calls that name an address of IPv4, and at those that name one of IPv6,
/// where IPv4 may be within.
///
/// VERIFIER: each family and form is a function of its own, so that their stacks are not one.
macro_rules! hooks {
    ($step:ident, $v4:ident, $v6:ident, $mapped:ident, $own:ident) => {
        #[inline(always)]
        pub(crate) fn $v4(ctx: *mut SockAddr) -> i32 {
            serve::<V4>(ctx, Form::V4, Step::$step)
        }

        #[inline(always)]
        pub(crate) fn $v6(ctx: *mut SockAddr) -> i32 {
            if is_mapped(ctx) {
                return $mapped(ctx);
            }
            $own(ctx)
        }

        #[inline(never)]
        fn $mapped(ctx: *mut SockAddr) -> i32 {
            serve::<V4>(ctx, Form::Mapped, Step::$step)
        }

        #[inline(never)]
        fn $own(ctx: *mut SockAddr) -> i32 {
            serve::<V6>(ctx, Form::V6, Step::$step)
        }
    };
}

hooks!(Connect, connect4, connect6, connect_mapped, connect_own);
hooks!(Send, send4, send6, send_mapped, send_own);
hooks!(Show, show4, show6, show_mapped, show_own);

/// Writes the cookie of the namespace of the agent's own socket where the agent reads it.
#[inline(always)]
pub(crate) fn learn(ctx: *mut SockAddr) -> i32 {
    // SAFETY: the context is valid; the element is this program's alone.
    unsafe {
        if bpf_get_socket_cookie(ctx.cast()) == settings::learning_socket()
            && let Some(learned) = LEARNED.get_ptr_mut(0)
        {
            ptr::write_volatile(learned, bpf_get_netns_cookie(ctx.cast()));
        }
    }
    GO_ON
}
