// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `--explain` says of endpoints that no manifest of a sensible size can show.

use std::net::{IpAddr, Ipv4Addr};

use lb_agent::cli::PlanText;
use lb_agent::model::endpoint::{EndpointSlice, SliceKey};
use lb_agent::model::snapshot::Object;
use serde_json::{Value, json};

use crate::support::{Bench, endpoint, service, slice};

/// Endpoints that a list can hold.
const LIST_MAX: u32 = 65_535;

/// Slices of the Service `web` with `count` endpoints, the addresses from 10.64.0.0 on.
fn slices(count: u32) -> Vec<Object> {
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a40_0000 + n));
    let numbers: Vec<u32> = (0..count).collect();
    let slice = |(at, numbers): (usize, &[u32])| {
        let endpoints = numbers.iter().map(|n| endpoint(&address(*n).to_string()));
        Object::EndpointSlice(EndpointSlice {
            triggered_micros: None,
            key: SliceKey {
                namespace: "default".to_owned(),
                name: format!("web-{at}"),
            },
            endpoints: endpoints.collect(),
            ..slice("web", &[])
        })
    };
    numbers.chunks(1_000).enumerate().map(slice).collect()
}

#[test]
fn endpoints_that_a_list_has_no_room_for_are_named_and_no_backends() {
    let mut bench = Bench::empty();
    let mut objects = slices(LIST_MAX + 2);
    objects.push(Object::Service(service("web", "10.0.0.10")));
    bench.take(lb_agent::model::snapshot::Update::reset(objects));
    let plan = serde_json::to_value(PlanText::new(&bench.reconciler, true)).unwrap();
    let frontends = plan["frontends"].as_array().unwrap();
    assert_eq!(frontends.len(), 2);
    for frontend in frontends {
        let backends = frontend["backends"].as_array().unwrap();
        assert_eq!(backends.len(), LIST_MAX as usize);
        assert_eq!(backends[backends.len() - 1]["address"], "10.64.255.254");
    }
    let left = |address: &str| {
        json!({
            "service": "default/web", "portName": "", "address": address, "port": 8080, "node": "",
            "list": "cluster",
            "reason": "a list holds 65535 endpoints, and so many come before it",
        })
    };
    assert_eq!(
        plan["leftOut"],
        json!([left("10.64.255.255"), left("10.65.0.0")])
    );
    let warnings: Vec<&Value> = plan["warnings"].as_array().unwrap().iter().collect();
    let message = warnings[0]["message"].as_str().unwrap();
    assert!(
        message.contains("65537 endpoints, of which 65535 fit"),
        "{message}"
    );
}
