// SPDX-License-Identifier: MIT OR Apache-2.0
//! The older text format of metrics, which kube-proxy has and everything reads, made of `OpenMetrics`.
//!
//! The formats differ in the names of counters, in types, and in the line about units.
//! **Invariant:** samples are the same, byte for byte.

use std::fmt::Write as _;

/// What the older format is called.
pub(super) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What the newer one is called.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether who sends this header wants the newer format.
pub(super) fn wants_open_metrics(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| accept.contains("application/openmetrics-text"))
}

/// The same in the older format.
pub(super) fn older(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        let (hash, keyword) = (words.next(), words.next());
        let (name, rest) = (words.next(), words.next());
        match (hash, keyword, name, rest) {
            (Some("#"), Some("HELP"), Some(name), rest) => help = Some((name, rest)),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                // Writing to a String cannot fail.
                if let Some((name, Some(help))) = help.take() {
                    writeln!(text, "# HELP {name}{suffix} {help}").ok();
                }
                writeln!(text, "# TYPE {name}{suffix} {kind}").ok();
            }
            (Some("#"), Some("UNIT" | "EOF"), _, _) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_as_their_samples_and_units_are_left_out() {
        let text = "# HELP lb_writes Writes that were done.\n# TYPE lb_writes counter\n\
            lb_writes_total{map=\"a # b\"} 2\n\
            # HELP lb_age_seconds How old.\n# TYPE lb_age_seconds gauge\n\
            # UNIT lb_age_seconds seconds\nlb_age_seconds 1.5\n\
            # HELP lb_build What.\n# TYPE lb_build info\nlb_build_info{version=\"1\"} 1\n\
            # HELP x_total Odd.\n# TYPE x_total unknown\nx_total 1\n# EOF\n";
        let wanted = "# HELP lb_writes_total Writes that were done.\n# TYPE lb_writes_total counter\n\
            lb_writes_total{map=\"a # b\"} 2\n\
            # HELP lb_age_seconds How old.\n# TYPE lb_age_seconds gauge\nlb_age_seconds 1.5\n\
            # HELP lb_build_info What.\n# TYPE lb_build_info gauge\nlb_build_info{version=\"1\"} 1\n\
            # HELP x_total Odd.\n# TYPE x_total untyped\nx_total 1\n";
        assert_eq!(older(text), wanted);
    }

    #[test]
    fn prometheus_gets_the_newer_format_and_everybody_else_the_older_one() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert!(wants_open_metrics(Some(prometheus)));
        assert!(!wants_open_metrics(Some("*/*")));
        assert!(!wants_open_metrics(None));
    }
}
