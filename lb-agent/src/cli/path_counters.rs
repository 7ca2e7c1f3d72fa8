// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of the packet path as a whole, read when somebody asks for the metrics: packets by
//! reason, programs that had to be put back, and sockets that were ended.
//!
//! **Invariant:** every reason has its line, also one that has not occurred: a counter that appears
//! only at its first event has no increase to be seen.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::datapath::{DatapathError, ReasonCounters};
use crate::error_chain;

/// The counters of the packet path for `/metrics`.
#[derive(Debug)]
pub(super) struct PathCounters {
    reasons: ReasonCounters,
    repairs: Arc<AtomicU64>,
    destroyed: Arc<AtomicU64>,
}

impl PathCounters {
    pub(super) const fn new(
        reasons: ReasonCounters,
        repairs: Arc<AtomicU64>,
        destroyed: Arc<AtomicU64>,
    ) -> Self {
        Self {
            reasons,
            repairs,
            destroyed,
        }
    }
}

impl Collector for PathCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let repairs = self.repairs.load(Ordering::Relaxed);
        let destroyed = self.destroyed.load(Ordering::Relaxed);
        write(&mut encoder, &self.reasons.read(), repairs, destroyed)
    }
}

/// Writes everything; without the reasons where they cannot be read.
fn write(
    encoder: &mut DescriptorEncoder<'_>,
    reasons: &Result<Vec<(Reason, u64)>, DatapathError>,
    repairs: u64,
    destroyed: u64,
) -> Result<(), fmt::Error> {
    let counter = MetricType::Counter;
    match reasons {
        Ok(reasons) => {
            let help = "Packets that were refused, dropped or remarkable, by reason";
            let mut metric = encoder.encode_descriptor("reasons", help, None, counter)?;
            for (reason, count) in reasons {
                let labels = [("reason", reason.name())];
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, u64, u64>(count, None)?;
            }
        }
        Err(error) => tracing::warn!(error = error_chain(error), "read counters of reasons"),
    }
    let help = "Programs that had to be put back on a device";
    let mut metric = encoder.encode_descriptor("program_repairs", help, None, counter)?;
    metric.encode_counter::<NoLabelSet, u64, u64>(&repairs, None)?;
    let help = "Connected sockets of UDP that were ended because their backend was gone";
    let mut metric = encoder.encode_descriptor("sockets_destroyed", help, None, counter)?;
    metric.encode_counter::<NoLabelSet, u64, u64>(&destroyed, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[derive(Debug)]
    struct Counted;

    impl Collector for Counted {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            let count = |reason| (reason, u64::from(reason == Reason::NoBackend) * 7);
            let reasons = Reason::ALL.iter().copied().map(count).collect();
            write(&mut encoder, &Ok(reasons), 3, 5)
        }
    }

    #[test]
    fn every_reason_has_a_line_also_at_zero() {
        let mut registry = Registry::default();
        let all = registry.sub_registry_with_prefix("lb");
        all.register_collector(Box::new(Counted));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for reason in Reason::ALL {
            let count = if *reason == Reason::NoBackend { 7 } else { 0 };
            let line = format!("lb_reasons_total{{reason=\"{}\"}} {count}\n", reason.name());
            assert!(text.contains(&line), "{line} in:\n{text}");
        }
        assert!(text.contains("lb_program_repairs_total 3\n"), "{text}");
        assert!(text.contains("lb_sockets_destroyed_total 5\n"), "{text}");
    }
}
