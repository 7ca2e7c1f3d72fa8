// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The programs as the kernel loads them: hooks, and the one place where a reason's class becomes
//! an action.
//!
//! Everything that is decided is decided in the library; `kernel/` reads, asks and writes.
//! **Invariant:** pass is `TC_ACT_UNSPEC`, never `TC_ACT_OK`, so that the programs of others
//! before and after ours see every packet. On the host this binary is empty.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the classifier macro hands the context over by value"
)]
mod hooks {
    use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
    use aya_ebpf::macros::{cgroup_sock_addr, classifier};
    use aya_ebpf::programs::{SockAddrContext, TcContext};
    use lb_common::{Class, Family as _, Reason, V4, V6};
    use lb_ebpf::icmp::Icmp;
    use lb_ebpf::path::{self, Outcome};
    use lb_ebpf::tables::Lookup;

    use crate::kernel::{
        Host, TAG, Unusual, World, connect4, connect6, edit, ethertype, first_fragment, forget,
        icmp, inner_ethertype, is_of_vlan_device, later_fragment, learn, parse, read_tagged,
        read_unusual, reject, send4, send6, show4, show6, work,
    };

    /// Length of an Ethernet header, in bytes.
    const ETHERNET: u32 = 14;
    /// The same with an 802.1Q tag that lies in the frame itself. The kernel keeps tags beside the
    /// frame, but a device that cannot insert them gets them in it.
    const TAGGED: u32 = ETHERNET + 4;

    /// tc ingress of a device with Ethernet headers.
    #[classifier]
    fn lb_tc_ingress(ctx: TcContext) -> i32 {
        ingress::<ETHERNET>(&ctx)
    }

    /// tc egress of a device with Ethernet headers.
    #[classifier]
    fn lb_tc_egress(ctx: TcContext) -> i32 {
        egress::<ETHERNET>(&ctx)
    }

    /// tc ingress of a device without link-layer headers.
    #[classifier]
    fn lb_tc_ingress_l3(ctx: TcContext) -> i32 {
        ingress::<0>(&ctx)
    }

    /// tc egress of a device without link-layer headers.
    #[classifier]
    fn lb_tc_egress_l3(ctx: TcContext) -> i32 {
        egress::<0>(&ctx)
    }

    /// Leads to the program of the layout that is in force, while layouts change.
    #[cfg(feature = "layout-next")]
    #[classifier]
    fn lb_gate_in(ctx: TcContext) -> i32 {
        crate::kernel::gate(&ctx, 0)
    }

    /// The same at egress.
    #[cfg(feature = "layout-next")]
    #[classifier]
    fn lb_gate_out(ctx: TcContext) -> i32 {
        crate::kernel::gate(&ctx, 1)
    }

    /// The same at ingress of devices without link-layer headers.
    #[cfg(feature = "layout-next")]
    #[classifier]
    fn lb_gate_in_l3(ctx: TcContext) -> i32 {
        crate::kernel::gate(&ctx, 2)
    }

    /// The same at egress of such devices.
    #[cfg(feature = "layout-next")]
    #[classifier]
    fn lb_gate_out_l3(ctx: TcContext) -> i32 {
        crate::kernel::gate(&ctx, 3)
    }

    /// Tells the agent what time the packet path thinks it is: low 32 bits of jiffies. Run by
    /// `BPF_PROG_TEST_RUN` only, never attached.
    #[classifier]
    fn lb_clock(ctx: TcContext) -> i32 {
        let now = Lookup::<V4>::now(&World::new(&ctx, 0));
        now.cast_signed()
    }

    /// A socket names an address of IPv4 to connect to.
    #[cgroup_sock_addr(connect4)]
    fn lb_connect4(ctx: SockAddrContext) -> i32 {
        connect4(ctx.sock_addr)
    }

    /// The same of IPv6.
    #[cgroup_sock_addr(connect6)]
    fn lb_connect6(ctx: SockAddrContext) -> i32 {
        connect6(ctx.sock_addr)
    }

    /// A datagram names where it goes, an address of IPv4; also one within IPv6.
    #[cgroup_sock_addr(sendmsg4)]
    fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
        send4(ctx.sock_addr)
    }

    /// The same of IPv6.
    #[cgroup_sock_addr(sendmsg6)]
    fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
        send6(ctx.sock_addr)
    }

    /// A process is told where a datagram comes from.
    #[cgroup_sock_addr(recvmsg4)]
    fn lb_recvmsg4(ctx: SockAddrContext) -> i32 {
        show4(ctx.sock_addr)
    }

    /// The same of IPv6.
    #[cgroup_sock_addr(recvmsg6)]
    fn lb_recvmsg6(ctx: SockAddrContext) -> i32 {
        show6(ctx.sock_addr)
    }

    /// A process asks for the peer of a socket.
    #[cgroup_sock_addr(getpeername4)]
    fn lb_getpeername4(ctx: SockAddrContext) -> i32 {
        show4(ctx.sock_addr)
    }

    /// The same of IPv6.
    #[cgroup_sock_addr(getpeername6)]
    fn lb_getpeername6(ctx: SockAddrContext) -> i32 {
        show6(ctx.sock_addr)
    }

    /// Tells the agent which network namespace a socket of its own is in, where it cannot ask.
    #[cgroup_sock_addr(connect4)]
    fn lb_learn4(ctx: SockAddrContext) -> i32 {
        learn(ctx.sock_addr)
    }

    #[inline(always)]
    fn ingress<const L2: u32>(ctx: &TcContext) -> i32 {
        if L2 == ETHERNET && is_of_vlan_device(ctx) {
            return TC_ACT_UNSPEC;
        }
        let (protocol, l2) = link::<L2>(ctx);
        if protocol == V4::ETHERTYPE {
            return action::<V4>(
                ctx,
                l2,
                true,
                path::request::<V4, World>,
                path::begin::<V4, World>,
            );
        }
        if protocol == V6::ETHERTYPE {
            return action::<V6>(
                ctx,
                l2,
                true,
                path::request::<V6, World>,
                path::begin::<V6, World>,
            );
        }
        TC_ACT_UNSPEC
    }

    #[inline(always)]
    fn egress<const L2: u32>(ctx: &TcContext) -> i32 {
        if L2 == ETHERNET && is_of_vlan_device(ctx) {
            return TC_ACT_UNSPEC;
        }
        let (protocol, l2) = link::<L2>(ctx);
        if protocol == V4::ETHERTYPE {
            return action::<V4>(
                ctx,
                l2,
                false,
                path::reply::<V4, World>,
                path::begin_reply::<V4, World>,
            );
        }
        if protocol == V6::ETHERTYPE {
            return action::<V6>(
                ctx,
                l2,
                false,
                path::reply::<V6, World>,
                path::begin_reply::<V6, World>,
            );
        }
        TC_ACT_UNSPEC
    }

    /// The ethertype and the length of the link-layer header, where that has `L2` bytes as a rule.
    #[inline(always)]
    fn link<const L2: u32>(ctx: &TcContext) -> (u16, u32) {
        let protocol = ethertype(ctx);
        if L2 == ETHERNET && protocol == TAG {
            return (inner_ethertype(ctx), TAGGED);
        }
        (protocol, L2)
    }

    /// Parses, decides, carries out.
    #[inline(always)]
    fn action<F: Host + Icmp>(
        ctx: &TcContext,
        l2: u32,
        at_ingress: bool,
        step: impl FnOnce(&mut World, &mut path::Work<F::Addr>) -> Outcome,
        begin: impl FnOnce(&mut World, &mut path::Work<F::Addr>) -> Outcome,
    ) -> i32 {
        let Some(work) = work::<F>() else {
            return TC_ACT_UNSPEC;
        };
        let mut l2 = l2;
        if parse::<F>(ctx, l2, &mut work.packet).is_none() {
            match read_unusual::<F>(ctx.skb.skb, l2) {
                Unusual::Read => {}
                Unusual::LaterFragment => {
                    return later_fragment::<F>(ctx.skb.skb, l2, at_ingress);
                }
                Unusual::Other if l2 == ETHERNET && read_tagged::<F>(ctx.skb.skb) != 0 => {
                    l2 = TAGGED;
                }
                Unusual::Other => return icmp::<F>(ctx.skb.skb, l2, at_ingress),
            }
        }
        work.l2 = l2;
        let work = forget(work);
        // VERIFIER: as read from the record it is one number; either of the two that it can be is walked
        // to the end otherwise, and verifiers before 6.12 see no other difference. Without a header it is
        // one constant.
        let l2 = if l2 == 0 { 0 } else { work.l2 };
        let mut world = World::new(ctx, l2);
        let mut outcome = step(&mut world, work);
        if outcome == Outcome::Begin {
            outcome = begin(&mut world, work);
        }
        if outcome == Outcome::Edit {
            outcome = edit::<F>(ctx, l2, work).into();
            if work.packet.first_fragment {
                first_fragment::<F>(ctx.skb.skb, l2, at_ingress);
            }
        }
        match outcome {
            Outcome::Pass | Outcome::Edit | Outcome::Begin => TC_ACT_UNSPEC,
            Outcome::Refused(reason) => refuse::<F>(ctx, l2, &mut world, reason),
        }
    }

    /// Counts a reason and turns its class into an action.
    #[inline(always)]
    fn refuse<F: Host>(ctx: &TcContext, l2: u32, world: &mut World, reason: Reason) -> i32 {
        Lookup::<F>::count(world, reason);
        match reason.class() {
            Class::Drop => TC_ACT_SHOT,
            Class::Reject => reject::<F>(ctx.skb.skb, l2),
            Class::Pass | Class::Note => TC_ACT_UNSPEC,
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // The verifier proves that no panic is reachable: a program with this loop does not load.
        loop {}
    }

    /// Some helpers are for GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
