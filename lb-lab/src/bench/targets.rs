// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the control plane is meant to cost, and whether it does.
//!
//! **Invariant:** a target is judged only by a cluster of the size that it speaks of.
//! Read next: lb-agent/README.md, which has the same table with a date.

use serde::Serialize;

use super::numbers::rounded;
use super::report::{Cluster, Gate};

/// Bytes of a MiB by bytes of a MB.
const MB_PER_MIB: f64 = 1.048_576;

/// A target and what was measured.
#[derive(Debug, Serialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) wanted: String,
    pub(super) measured: f64,
    pub(super) unit: &'static str,
    pub(super) met: bool,
}

/// What is asked of one size of cluster.
struct Wish {
    name: &'static str,
    services: u32,
    most: f64,
    unit: &'static str,
    value: fn(&Cluster) -> f64,
}

const WISHES: [Wish; 9] = [
    wish("change, p50", 10_000, 200.0, "us", |c| c.change_micros.p50),
    wish("change, p99", 10_000, 2_000.0, "us", |c| {
        c.change_micros.p99
    }),
    wish("list to programmed", 10_000, 1_000.0, "ms", list),
    wish("list to programmed", 50_000, 5_000.0, "ms", list),
    wish("memory", 1_000, 40.0, "MB", memory),
    wish("memory", 10_000, 100.0, "MB", memory),
    wish("processor time per change", 10_000, 1_000.0, "us", |c| {
        c.cpu_per_change_micros
    }),
    wish("idle, audits included", 1_000, 0.1, "%", idle),
    wish("idle, audits included", 10_000, 0.1, "%", idle),
];
/// What the agent's `--audit-interval` is by default.
const AUDIT_INTERVAL_SECS: f64 = 3600.0;
/// How much slower a change of a large cluster may be than of a small one.
const GATE_MOST: f64 = 1.3;

const fn wish(
    name: &'static str,
    services: u32,
    most: f64,
    unit: &'static str,
    value: fn(&Cluster) -> f64,
) -> Wish {
    Wish {
        name,
        services,
        most,
        unit,
        value,
    }
}

fn list(cluster: &Cluster) -> f64 {
    cluster.list_to_programmed_ms.median
}

fn memory(cluster: &Cluster) -> f64 {
    cluster.rss_mib * MB_PER_MIB
}

/// An audit every hour, as the agent does without being told, is part of doing nothing.
fn idle(cluster: &Cluster) -> f64 {
    let audit = cluster.audit_cpu_ms.unwrap_or_default() / 1e3;
    cluster.idle_cpu_percent + audit / AUDIT_INTERVAL_SECS * 100.0
}

/// Every target for which there are numbers.
pub(super) fn judge(clusters: &[Cluster], gate: Option<&Gate>) -> Vec<Target> {
    let mut targets = Vec::new();
    for wish in &WISHES {
        let sized = clusters.iter().find(|c| c.services == wish.services);
        targets.extend(sized.map(|cluster| {
            let measured = (wish.value)(cluster);
            Target {
                name: format!("{}, {} Services", wish.name, wish.services),
                wanted: format!("<= {} {}", wish.most, wish.unit),
                measured: rounded(measured, 3),
                unit: wish.unit,
                met: measured <= wish.most,
            }
        }));
    }
    targets.extend(gate.map(|gate| Target {
        name: format!(
            "change, {} by {} Services",
            gate.services[1], gate.services[0]
        ),
        wanted: format!("<= {GATE_MOST} times"),
        measured: gate.ratio.median,
        unit: "times",
        met: gate.ratio.median <= GATE_MOST,
    }));
    targets
}
