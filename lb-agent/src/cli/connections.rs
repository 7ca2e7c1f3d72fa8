// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent connections`: who talks to whom through Services, as the pinned maps have it.
//!
//! The JSON is a contract: `lb-agent/inspect.schema.json` describes it. Fields are only ever added.
//! **Invariant:** rows are written as they are met, in no order: however many flows there are, a bounded
//! number of them is held. All are counted, whatever the limit is.

mod rows;

use std::collections::BTreeSet;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::columns::Columns;
use super::look::LookArgs;
use super::names::{Names, ServiceArg, needs_names};
use super::output::{self, Output, terminal_width};
use crate::datapath::{Flow, FlowVisitor, SocketFlow};
use crate::error_chain;
use rows::{CONNECTIONS, ConnectionText, SOCKETS, SocketText};

/// Rows that are shown unless told otherwise.
const LIMIT: u64 = 1000;
/// A walk that takes longer says how far it is, so often.
const PROGRESS: Duration = Duration::from_secs(1);
/// How many flows are met between two looks at the clock.
const PROGRESS_STEP: u64 = 4096;

/// The flags of `connections`.
#[derive(Debug, Args)]
pub(super) struct ConnectionsArgs {
    #[command(flatten)]
    look: LookArgs,
    /// Only those through this Service.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<ServiceArg>,
    /// Show so many connections and as many sockets at most, and count the others; 0 for all.
    #[arg(long, value_name = "N", default_value_t = LIMIT)]
    limit: u64,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Total {
    established: u64,
    half_open: u64,
    sockets: u64,
}

pub(super) fn connections(args: &ConnectionsArgs) -> Result<(), String> {
    let look = args.look.open()?;
    let content = look.services().map_err(|e| error_chain(&e))?;
    let found = args.look.objects()?;
    let names = Names::new(found.as_ref(), &content);
    let mut of = None;
    if let Some(ServiceArg(wanted)) = &args.service {
        needs_names(&names)?;
        let ids = names.ids_of(|service| service == wanted);
        of = Some(ids.into_iter().collect());
    }
    let stdout = BufWriter::new(io::stdout());
    let sink: Box<dyn Sink> = match args.look.output {
        Output::Text => Box::new(Text::new(stdout, args.limit)),
        Output::Json => Box::new(Json::new(stdout)),
    };
    let mut walk = Walk {
        names: &names,
        of,
        limit: if args.limit == 0 {
            u64::MAX
        } else {
            args.limit
        },
        total: Total::default(),
        sink,
        written: Ok(()),
        progress: Progress::new(args.limit),
    };
    look.flows(&mut walk).map_err(|e| error_chain(&e))?;
    look.socket_flows(&mut |flow| walk.meets_socket(&flow))
        .map_err(|e| error_chain(&e))?;
    output::settle("the connections", walk.finish())
}

/// What rows are written to.
trait Sink {
    fn connection(&mut self, row: &ConnectionText) -> io::Result<()>;
    fn socket(&mut self, row: &SocketText) -> io::Result<()>;
    fn finish(&mut self, total: Total) -> io::Result<()>;
}

/// Meets flows and writes those that are wanted.
struct Walk<'a> {
    names: &'a Names,
    /// Service ids that are wanted; none stands for all.
    of: Option<BTreeSet<u32>>,
    limit: u64,
    total: Total,
    sink: Box<dyn Sink>,
    written: io::Result<()>,
    progress: Progress,
}

impl Walk<'_> {
    fn is_wanted(&self, service: u32) -> bool {
        self.of.as_ref().is_none_or(|of| of.contains(&service))
    }

    fn meets_socket(&mut self, flow: &SocketFlow) -> bool {
        if self.is_wanted(flow.service) && self.written.is_ok() {
            self.total.sockets += 1;
            if self.total.sockets <= self.limit {
                self.written = self.sink.socket(&SocketText::new(flow, self.names));
            }
        }
        self.written.is_ok()
    }

    fn finish(mut self) -> io::Result<()> {
        self.progress.clear();
        self.written?;
        self.sink.finish(self.total)
    }
}

impl FlowVisitor for Walk<'_> {
    fn meets(&mut self, service: u32, _: u32, half_open: bool) -> bool {
        if !self.is_wanted(service) {
            return false;
        }
        if half_open {
            self.total.half_open += 1;
        } else {
            self.total.established += 1;
        }
        let met = self.total.established + self.total.half_open;
        self.progress.tell(met);
        met <= self.limit
    }

    fn takes(&mut self, flow: Flow) -> bool {
        self.written = self
            .sink
            .connection(&ConnectionText::new(&flow, self.names));
        self.written.is_ok()
    }
}

/// Tells on stderr how far a long walk is.
struct Progress {
    /// Where nobody looks, or rows are on the same terminal, it says nothing.
    on: bool,
    next: Instant,
    told: bool,
}

impl Progress {
    fn new(limit: u64) -> Self {
        // Up to the limit's default rows are held back until the widths of columns are known.
        let rows_come_last = (1..=LIMIT).contains(&limit);
        Self {
            on: io::stderr().is_terminal() && (rows_come_last || !io::stdout().is_terminal()),
            next: Instant::now() + PROGRESS,
            told: false,
        }
    }

    fn tell(&mut self, met: u64) {
        if !self.on || !met.is_multiple_of(PROGRESS_STEP) || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PROGRESS;
        self.told = true;
        // Nothing depends on it.
        write!(io::stderr(), "\r{met} connections so far").ok();
    }

    fn clear(&self) {
        if self.told {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}

/// For people: two tables and a line.
struct Text {
    limit: u64,
    width: Option<usize>,
    shown: u64,
    /// The table that is being written; between two tables only the writer is there.
    connections: Option<Columns<'static, BufWriter<Stdout>>>,
    sockets: Option<Columns<'static, BufWriter<Stdout>>>,
}

impl Text {
    fn new(out: BufWriter<Stdout>, limit: u64) -> Self {
        let width = terminal_width();
        Self {
            limit,
            width,
            shown: 0,
            connections: Some(Columns::new(out, &CONNECTIONS, width)),
            sockets: None,
        }
    }
}

impl Sink for Text {
    fn connection(&mut self, row: &ConnectionText) -> io::Result<()> {
        self.shown += 1;
        self.connections
            .as_mut()
            .map_or(Ok(()), |table| table.push(row.cells()))
    }

    fn socket(&mut self, row: &SocketText) -> io::Result<()> {
        self.shown += 1;
        if let Some(connections) = self.connections.take() {
            let mut out = connections.finish()?;
            writeln!(out)?;
            self.sockets = Some(Columns::new(out, &SOCKETS, self.width));
        }
        self.sockets
            .as_mut()
            .map_or(Ok(()), |table| table.push(row.cells()))
    }

    fn finish(&mut self, total: Total) -> io::Result<()> {
        let tables = [self.connections.take(), self.sockets.take()];
        for table in tables.into_iter().flatten() {
            let mut out = table.finish()?;
            writeln!(out, "\n{}", summary(total, self.shown, self.limit))?;
            out.flush()?;
        }
        Ok(())
    }
}

fn summary(total: Total, shown: u64, limit: u64) -> String {
    let Total {
        established,
        half_open,
        sockets,
    } = total;
    let all = format!("{established} established, {half_open} half-open, {sockets} at sockets");
    if shown < established + half_open + sockets {
        return format!("{all}; {shown} are shown (--limit {limit}; 0 shows all)");
    }
    all
}

/// For programs: one object, written as it comes.
struct Json<W> {
    out: W,
    connections: u64,
    sockets: u64,
    in_sockets: bool,
}

impl<W: Write> Json<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            connections: 0,
            sockets: 0,
            in_sockets: false,
        }
    }

    fn row(out: &mut impl Write, before: u64, row: &impl Serialize) -> io::Result<()> {
        let comma = if before == 0 { "" } else { "," };
        write!(out, "{comma}\n    ")?;
        serde_json::to_writer(out, row).map_err(io::Error::from)
    }

    fn begin_sockets(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.in_sockets, true) {
            return Ok(());
        }
        if self.connections == 0 {
            write!(self.out, "{{\n  \"connections\": [")?;
        }
        write!(self.out, "\n  ],\n  \"sockets\": [")
    }
}

impl<W: Write> Sink for Json<W> {
    fn connection(&mut self, row: &ConnectionText) -> io::Result<()> {
        if self.connections == 0 {
            write!(self.out, "{{\n  \"connections\": [")?;
        }
        Self::row(&mut self.out, self.connections, row)?;
        self.connections += 1;
        Ok(())
    }

    fn socket(&mut self, row: &SocketText) -> io::Result<()> {
        self.begin_sockets()?;
        Self::row(&mut self.out, self.sockets, row)?;
        self.sockets += 1;
        Ok(())
    }

    fn finish(&mut self, total: Total) -> io::Result<()> {
        self.begin_sockets()?;
        write!(self.out, "\n  ],\n  \"total\": ")?;
        serde_json::to_writer(&mut self.out, &total)?;
        writeln!(self.out, "\n}}")?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cli::{contract, fixture};
    use crate::datapath::FlowState;

    fn flow(service: u32) -> Flow {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        Flow {
            proto: 6,
            client: (ip("10.244.0.2"), 40_000),
            frontend: (ip("10.0.1.175"), 80),
            backend: (ip("10.244.0.5"), 9376),
            masquerade: Some((ip("192.168.50.10"), 61_000)),
            state: FlowState::HalfOpen,
            service,
            sent: (1, 60),
            received: (0, 0),
            idle_secs: 0,
            age_secs: 0,
        }
    }

    /// What is written for so many connections and sockets.
    fn written(connections: u32, sockets: u32) -> serde_json::Value {
        let names = fixture::planned().names();
        let mut json = Json::new(Vec::new());
        for service in 1..=connections {
            let row = ConnectionText::new(&flow(service), &names);
            json.connection(&row).unwrap();
        }
        for service in 1..=sockets {
            let flow = flow(service);
            let peer = SocketFlow {
                cookie: 7,
                proto: 17,
                local: Some("192.168.50.10:40001".parse().unwrap()),
                frontend: flow.frontend,
                backend: flow.backend,
                service,
                idle_secs: 3,
            };
            json.socket(&SocketText::new(&peer, &names)).unwrap();
        }
        json.finish(Total::default()).unwrap();
        serde_json::from_slice(&json.out).unwrap()
    }

    #[test]
    fn what_is_written_piece_by_piece_is_one_document_of_the_schema() {
        for (connections, sockets) in [(0, 0), (1, 0), (0, 2), (9, 9)] {
            let told = written(connections, sockets);
            assert_eq!(contract::broken("connections", &told), [""; 0]);
            assert_eq!(
                told["connections"].as_array().unwrap().len(),
                connections as usize
            );
            assert_eq!(told["sockets"].as_array().unwrap().len(), sockets as usize);
        }
    }

    #[test]
    fn the_last_line_counts_all_and_tells_how_to_see_them() {
        let total = Total {
            established: 2000,
            half_open: 3,
            sockets: 1,
        };
        assert_eq!(
            summary(total, 2004, 0),
            "2000 established, 3 half-open, 1 at sockets"
        );
        assert_eq!(
            summary(total, 1001, 1000),
            "2000 established, 3 half-open, 1 at sockets; 1001 are shown (--limit 1000; 0 shows all)"
        );
    }
}
