// SPDX-License-Identifier: MIT OR Apache-2.0
//! A test's small world, and steps through it: a packet in, everything that must then be true.
//!
//! The names are those of the classic example: a client pod, a Service `hostnames`, three backends.
//! **Invariant:** a step states the whole result: verdict, exact bytes, all counters, all entries.

use std::net::{IpAddr, SocketAddr};

use lb_common::Reason;
use lb_common::abi::{Action, ConnFlags, ConnState, Frontend, Hook as Side};

use super::kernel::{Entry, Hook, Kernel, Sizes, Verdict};
use super::wire::{ACK, Proto, SYN, Segment};

/// The epoch of every backend, unless a test says otherwise.
pub(crate) const EPOCH: u32 = 7;
/// The generation of every frontend, unless a test says otherwise.
pub(crate) const GENERATION: u32 = 3;
/// The service behind `vip(1)`, and so on.
pub(crate) const HOSTNAMES: u32 = 1;
/// The service behind `vip(2)`.
pub(crate) const OTHER: u32 = 2;
/// The client's port.
pub(crate) const CLIENT_PORT: u16 = 40_000;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// One family and protocol, with programs and maps of its own.
pub(crate) struct Case {
    pub(crate) family: Family,
    pub(crate) proto: Proto,
    pub(crate) kernel: Kernel,
}

/// One packet, and the whole state after it.
pub(crate) struct Step<'a> {
    pub(crate) description: &'a str,
    pub(crate) hook: Hook,
    pub(crate) input: Vec<u8>,
    pub(crate) verdict: Verdict,
    pub(crate) output: Vec<u8>,
    /// Counters since the test began; all others are zero.
    pub(crate) counters: &'a [(Reason, u64)],
    /// Everything in the connection tables, in any order.
    pub(crate) entries: Vec<Entry>,
}

impl Case {
    /// None, with the reason printed, when the machine does not let us.
    pub(crate) fn open(proto: Proto, family: Family, sizes: Sizes) -> Option<Self> {
        Kernel::open(sizes).map(|kernel| Self {
            family,
            proto,
            kernel,
        })
    }

    /// An address with this last byte in the pods' or the Services' range.
    fn address(&self, service: bool, last: u8) -> IpAddr {
        match (self.family, service) {
            (Family::V4, false) => [10, 244, 0, last].into(),
            (Family::V4, true) => [10, 0, 1, last].into(),
            (Family::V6, false) => [0xfd00, 0x10, 0x244, 0, 0, 0, 0, last.into()].into(),
            (Family::V6, true) => [0xfd00, 0x10, 0, 0, 0, 0, 1, last.into()].into(),
        }
    }

    pub(crate) fn client(&self) -> SocketAddr {
        (self.address(false, 9), CLIENT_PORT).into()
    }

    /// What clients of service `service` dial.
    pub(crate) fn vip(&self, service: u32) -> SocketAddr {
        let last = 174 + u8::try_from(service).unwrap();
        (self.address(true, last), 80).into()
    }

    /// The backend at `index`: 10.244.0.5, .6, .7 in IPv4.
    pub(crate) fn backend(&self, index: u32) -> SocketAddr {
        let last = 5 + u8::try_from(index).unwrap();
        (self.address(false, last), 9376).into()
    }

    /// Writes a service with these backends: slots and backends first, then the frontend. The id
    /// of the backend at `index` is `100 * service + index`.
    pub(crate) fn serve(&mut self, service: u32, indices: &[u32]) {
        for (slot, &index) in (0..).zip(indices) {
            let at = self.backend(index);
            let id = backend_id(service, index);
            self.kernel.put_backend(id, service, EPOCH, at);
            self.kernel.put_slot(service, slot, id);
        }
        let frontend = frontend(service, indices.len());
        self.kernel
            .put_frontend(self.vip(service), self.proto, frontend);
    }

    /// A packet from the client that opens a flow to `destination`.
    pub(crate) fn opening(&self, destination: SocketAddr) -> Segment {
        let segment = Segment::new(self.proto, self.client(), destination);
        match self.proto {
            Proto::Tcp | Proto::Sctp => segment.flags(SYN),
            Proto::Udp => segment.payload(b"where am I?"),
        }
    }

    /// A first answer from `source` to a client's address and port.
    pub(crate) fn answer(&self, source: SocketAddr, client: SocketAddr) -> Segment {
        let segment = Segment::new(self.proto, source, client);
        match self.proto {
            Proto::Tcp | Proto::Sctp => segment.flags(SYN | ACK),
            Proto::Udp => segment.payload(b"hostnames-0uton"),
        }
    }

    /// A flow of the client through `vip(service)` to the backend at `index`, just opened.
    pub(crate) fn flow(&self, service: u32, index: u32) -> Flow {
        Flow {
            proto: self.proto,
            client: self.client(),
            frontend: self.vip(service),
            backend: self.backend(index),
            client_port: CLIENT_PORT,
            service,
            backend_id: backend_id(service, index),
            epoch: EPOCH,
            generation: GENERATION,
            request_seen: 0,
            reply_seen: 0,
            flags: 0,
        }
    }

    /// Sends a packet in and compares everything.
    pub(crate) fn check(&self, step: Step<'_>) {
        let what = step.description;
        let (verdict, output) = self.kernel.run(step.hook, &step.input);
        assert_eq!(verdict, step.verdict, "verdict: {what}");
        assert_eq!(hex(&output), hex(&step.output), "bytes: {what}");
        self.check_state(what, step.counters, step.entries);
    }

    /// Compares counters and entries alone.
    pub(crate) fn check_state(
        &self,
        what: &str,
        counters: &[(Reason, u64)],
        mut entries: Vec<Entry>,
    ) {
        let counters = counters.iter().copied().collect();
        assert_eq!(self.kernel.counters(), counters, "counters: {what}");
        entries.sort();
        assert_eq!(self.kernel.entries(), entries, "entries: {what}");
    }

    /// A packet that is translated: `input` becomes `output`, nothing is counted.
    pub(crate) fn translates(
        &self,
        description: &str,
        hook: Hook,
        (input, output): (&Segment, &Segment),
        entries: Vec<Entry>,
    ) {
        self.check(Step {
            description,
            hook,
            input: input.frame(),
            verdict: Verdict::Pass,
            output: output.frame(),
            counters: &[],
            entries,
        });
    }

    /// A packet that leaves as it came, with nothing counted and the entries as they were.
    pub(crate) fn leaves_alone(&self, description: &str, hook: Hook, input: &[u8]) {
        let entries = self.kernel.entries();
        self.check(Step {
            description,
            hook,
            input: input.to_vec(),
            verdict: Verdict::Pass,
            output: input.to_vec(),
            counters: &[],
            entries,
        });
    }

    /// A packet that is dropped for a reason, counted for the first time.
    pub(crate) fn drops(&self, description: &str, input: &Segment, reason: Reason) {
        let entries = self.kernel.entries();
        self.check(Step {
            description,
            hook: Hook::Ingress,
            input: input.frame(),
            verdict: Verdict::Drop,
            output: input.frame(),
            counters: &[(reason, 1)],
            entries,
        });
    }

    /// Opens the client's flow through `vip(service)` to the backend at `index`, every packet
    /// checked; gives the flow as it is then.
    pub(crate) fn establish(&self, service: u32, index: u32) -> Flow {
        let flow = self.flow(service, index);
        let request = self.opening(flow.frontend);
        self.translates(
            "the first packet goes to a backend",
            Hook::Ingress,
            (&request, &request.to(flow.backend)),
            flow.entries(),
        );
        let reply = self.answer(flow.backend, flow.client);
        let replied = Flow {
            reply_seen: ConnState::REPLIED,
            ..flow
        };
        self.translates(
            "the answer comes from the frontend",
            Hook::Egress,
            (&reply, &reply.from(flow.frontend)),
            replied.entries(),
        );
        if self.proto == Proto::Tcp {
            let acknowledged = request.flags(ACK);
            self.translates(
                "the client's acknowledgement makes the flow an established one",
                Hook::Ingress,
                (&acknowledged, &acknowledged.to(flow.backend)),
                replied.entries(),
            );
        }
        replied
    }
}

/// The id of the backend at `index` for a service: services do not share ids.
pub(crate) fn backend_id(service: u32, index: u32) -> u32 {
    100 * service + index
}

/// A round-robin frontend with `count` backends.
pub(crate) fn frontend(service: u32, count: usize) -> Frontend {
    Frontend {
        service,
        generation: GENERATION,
        cluster_count: count.try_into().unwrap(),
        ..Frontend::default()
    }
}

/// What two entries together say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) proto: Proto,
    pub(crate) client: SocketAddr,
    pub(crate) frontend: SocketAddr,
    pub(crate) backend: SocketAddr,
    /// The client's port as the backend sees it.
    pub(crate) client_port: u16,
    pub(crate) service: u32,
    pub(crate) backend_id: u32,
    pub(crate) epoch: u32,
    pub(crate) generation: u32,
    pub(crate) request_seen: u8,
    pub(crate) reply_seen: u8,
    /// Bits of `ConnFlags`.
    pub(crate) flags: u8,
}

impl Flow {
    pub(crate) fn request_entry(&self) -> Entry {
        Entry {
            hook: Side::Ingress as u8,
            source: self.client,
            destination: self.frontend,
            peer: self.backend,
            client_port: self.client_port,
            proto: self.proto.number(),
            service: self.service,
            backend: self.backend_id,
            epoch: self.epoch,
            generation: self.generation,
            request_seen: self.request_seen,
            reply_seen: self.reply_seen,
            action: Action::Dnat as u8,
            flags: self.flags,
            hop: 0,
            next_hop: [0; 6],
        }
    }

    pub(crate) fn reply_entry(&self) -> Entry {
        Entry {
            hook: Side::Egress as u8,
            source: self.backend,
            destination: self.translated_client(),
            peer: self.frontend,
            client_port: self.client.port(),
            action: Action::UndoDnat as u8,
            ..self.request_entry()
        }
    }

    /// What ingress leaves for egress when the flow is to be masqueraded.
    pub(crate) fn pending_entry(&self) -> Entry {
        Entry {
            hook: Side::Egress as u8,
            source: self.translated_client(),
            destination: self.backend,
            peer: self.backend,
            action: Action::Snat as u8,
            flags: ConnFlags::PENDING,
            request_seen: 0,
            reply_seen: 0,
            ..self.request_entry()
        }
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        vec![self.request_entry(), self.reply_entry()]
    }

    /// The client as the backend sees it.
    pub(crate) fn translated_client(&self) -> SocketAddr {
        (self.client.ip(), self.client_port).into()
    }
}

/// The entries of several flows.
pub(crate) fn entries(flows: &[Flow]) -> Vec<Entry> {
    flows.iter().flat_map(Flow::entries).collect()
}

/// Bytes in lines of sixteen, so that a difference is found by eye.
fn hex(bytes: &[u8]) -> Vec<String> {
    bytes
        .chunks(16)
        .map(|line| format!("{line:02x?}"))
        .collect()
}

/// Makes a test of a function for each family, and for each protocol unless one is given.
macro_rules! each {
    ($($function:ident),* $(,)?) => {
        $(each!(@ $function [
            tcp_over_ipv4 Tcp V4, tcp_over_ipv6 Tcp V6, udp_over_ipv4 Udp V4, udp_over_ipv6 Udp V6
        ]);)*
    };
    (tcp: $($function:ident),* $(,)?) => {
        $(each!(@ $function [tcp_over_ipv4 Tcp V4, tcp_over_ipv6 Tcp V6]);)*
    };
    (udp: $($function:ident),* $(,)?) => {
        $(each!(@ $function [udp_over_ipv4 Udp V4, udp_over_ipv6 Udp V6]);)*
    };
    (sctp: $($function:ident),* $(,)?) => {
        $(each!(@ $function [sctp_over_ipv4 Sctp V4, sctp_over_ipv6 Sctp V6]);)*
    };
    (all: $($function:ident),* $(,)?) => {
        $(each!(@ $function [
            tcp_over_ipv4 Tcp V4, tcp_over_ipv6 Tcp V6, udp_over_ipv4 Udp V4, udp_over_ipv6 Udp V6,
            sctp_over_ipv4 Sctp V4, sctp_over_ipv6 Sctp V6
        ]);)*
    };
    (ipv4: $($function:ident),* $(,)?) => {
        $(each!(@ $function [tcp_over_ipv4 Tcp V4, udp_over_ipv4 Udp V4]);)*
    };
    (@ $function:ident [$($name:ident $proto:ident $family:ident),*]) => {
        mod $function {
            $(#[test]
            fn $name() {
                let (proto, family) = ($crate::wire::Proto::$proto, $crate::case::Family::$family);
                if let Some(mut case) = $crate::case::Case::open(proto, family, Default::default()) {
                    super::$function(&mut case);
                }
            })*
        }
    };
}
pub(crate) use each;
