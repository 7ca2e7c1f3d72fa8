// SPDX-License-Identifier: MIT OR Apache-2.0
//! The process itself, under the names that Prometheus has for every process, read when somebody asks.
//!
//! **Invariant:** what the kernel does not tell has no line.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Ticks in a second in `/proc`, on every architecture that there is (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// This process for `/metrics`.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let help = "What was built";
        let mut metric = encoder.encode_descriptor("lb_build", help, None, MetricType::Info)?;
        metric.encode_info(&version)?;
        if let Some(times) = fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|s| times(&s))
        {
            let help = "Time that processors spent on this process";
            let kind = MetricType::Counter;
            let mut metric = encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?;
            metric.encode_counter::<NoLabelSet, f64, u64>(&times.cpu, None)?;
            if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|s| boot(&s)) {
                let help = "When this process began, since 1970";
                let began = boot + times.since_boot;
                gauge(encoder, "process_start_time_seconds", help, began)?;
            }
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, help, field) in [
            ("process_resident_memory_bytes", "Memory in use", "VmRSS:"),
            (
                "process_virtual_memory_bytes",
                "Addresses in use",
                "VmSize:",
            ),
        ] {
            if let Some(kib) = field_of(&status, field) {
                gauge(encoder, name, help, kib * 1024.0)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One is the folder's own.
            let count = i64::try_from(open.count())
                .unwrap_or(i64::MAX)
                .saturating_sub(1);
            let kind = MetricType::Gauge;
            let help = "Open file descriptors";
            let mut metric = encoder.encode_descriptor("process_open_fds", help, None, kind)?;
            metric.encode_gauge(&count)?;
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        match field_of(&limits, "Max open files") {
            Some(most) => gauge(encoder, "process_max_fds", "Most of them", most),
            None => Ok(()),
        }
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    metric.encode_gauge(&value)
}

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    cpu: f64,
    since_boot: f64,
}

/// Times in the text of `/proc/self/stat`: fields 14, 15 and 22 of `proc_pid_stat(5)`.
fn times(stat: &str) -> Option<Times> {
    // The name, which is the second field, may have blanks and brackets in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds =
        |number: usize| Some(fields.get(number - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Times {
        cpu: seconds(14)? + seconds(15)?,
        since_boot: seconds(22)?,
    })
}

/// When the machine was started, in the text of `/proc/stat`.
fn boot(stat: &str) -> Option<f64> {
    field_of(stat, "btime")
}

/// The first number behind a name at the begin of a line.
fn field_of(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn times_are_read_behind_a_name_with_blanks() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4 1 2 3 4 150 50 0 0 20 0 4 0 12345 99 1 1\n";
        let wanted = Times {
            cpu: 2.0,
            since_boot: 123.45,
        };
        assert_eq!(times(stat), Some(wanted));
        assert_eq!(times("7 (a"), None);
    }

    #[test]
    fn this_process_is_told_in_the_units_of_its_names() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| field_of(&text, &format!("{name} ")).unwrap();
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") > value("process_open_fds"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age} s old");
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
        assert!(text.contains("lb_build_info{version="), "{text}");
    }
}
