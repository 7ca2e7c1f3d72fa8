// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bench of packets measures what it says, in the shape that it says.
//!
//! **Invariant:** how good the numbers are is not judged here: the machine may be busy. But what must
//! cost more than something else does.
//! Read next: benches/packet.

#[path = "../benches/packet/bench/mod.rs"]
mod bench;
mod support;

use bench::Options;
use bench::cluster::Family;
use bench::wire::Proto;
use serde_json::Value;

fn report(options: &Options) -> Value {
    let mut told = 0;
    let report = bench::run(options, &mut |_| told += 1).unwrap();
    assert!(told > 0, "it says what it does");
    assert!(report.table().contains("the empty program"));
    serde_json::from_str(&report.json().unwrap()).unwrap()
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or(f64::NAN)
}

/// The cost of the case of this name, as a ratio to the empty program.
fn ratio(report: &Value, name: &str) -> f64 {
    let cases = report["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == name);
    number(
        case.unwrap_or_else(|| panic!("no {name} in {report:#}")),
        "ratioToFloor",
    )
}

fn small() -> Options {
    Options {
        services: 20,
        flows: 256,
        rounds: 1,
        runs: 5,
        families: Family::ALL.to_vec(),
        protos: Proto::ALL.to_vec(),
        only: String::new(),
        micro: false,
        real_time: false,
    }
}

#[test]
fn every_case_has_numbers_that_make_sense() {
    if !support::can_run() {
        return;
    }
    let report = report(&small());
    assert!(number(&report, "floorNs") > 0.0, "{report:#}");
    assert_eq!(report["absent"], Value::Array(Vec::new()));
    let cases = report["cases"].as_array().unwrap();
    for case in cases {
        assert!(number(case, "minNs") > 0.0, "{case}");
        assert!(number(case, "medianNs") > 0.0, "{case}");
        assert!(
            (0.1..10_000.0).contains(&number(case, "ratioToFloor")),
            "{case}"
        );
        assert!(case["dropped"] == false, "{case}");
    }
    for of in ["IPv4 TCP", "IPv4 UDP", "IPv6 TCP", "IPv6 UDP"] {
        let ratio = |name: &str| ratio(&report, &format!("{of}, {name}"));
        // A lookup and a rewriting, a lookup alone, and a flow that is chosen, claimed and inserted.
        let established = ratio("ClusterIP, one flow");
        assert!(
            ratio("not ours, egress") < ratio("reply, one flow"),
            "{report:#}"
        );
        assert!(established < ratio("first packet, free room"), "{report:#}");
        assert!(ratio("ClusterIP, 256 flows") > 1.0, "{report:#}");
        assert!(
            ratio("NodePort with SNAT, one flow, egress") > 1.0,
            "{report:#}"
        );
    }
    assert!(
        ratio(&report, "IPv4 TCP, not IP, ingress")
            < ratio(&report, "IPv4 TCP, ClusterIP, one flow")
    );
    // None of 65,536 flows was measured, so no target that speaks of them is judged.
    let targets = report["targets"].as_array().unwrap();
    assert!(targets.iter().all(|target| target["met"].is_boolean()));
    assert_eq!(targets.len(), 15, "{targets:#?}");
}

#[test]
fn some_cases_and_single_operations_can_be_measured_alone() {
    if !support::can_run() {
        return;
    }
    let options = Options {
        families: vec![Family::V4],
        protos: vec![Proto::Tcp],
        only: "smallest DNAT, one flow".to_owned(),
        micro: true,
        rounds: 1,
        runs: 2,
        ..small()
    };
    let report = report(&options);
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 1, "{report:#}");
    assert!(ratio(&report, "IPv4 TCP, smallest DNAT, one flow") > 1.0);
    let micro = report["micro"].as_array().unwrap();
    assert_eq!(micro.len(), 24, "{report:#}");
    assert!(
        micro
            .iter()
            .all(|operation| number(operation, "medianNs") > 0.0)
    );
}
