// SPDX-License-Identifier: MIT OR Apache-2.0
//! One connection as cells and as JSON.

use super::*;
use crate::cli::fixture;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn flow(service: u32) -> Flow {
    Flow {
        proto: 6,
        client: (ip("10.244.0.2"), 40_000),
        frontend: (ip("10.0.1.175"), 80),
        backend: (ip("10.244.0.5"), 9376),
        masquerade: Some((ip("192.168.50.10"), 61_000)),
        state: FlowState::Closing,
        service,
        sent: (12, 1_022),
        received: (10, 41_984),
        idle_secs: 75,
        age_secs: 90,
    }
}

#[test]
fn a_connection_is_told_with_names_and_numbers() {
    let fixture = fixture::planned();
    let names = fixture.names();
    let of_web = names.ids_of(|service| service.name == "web");
    let row = ConnectionText::new(&flow(of_web[0]), &names);
    let expected = [
        "default/web http",
        "10.244.0.2:40000",
        "10.0.1.175:80 TCP",
        "10.244.0.5:9376",
        "closing",
        "1m15s",
        "12/10",
        "1022 B/41 KiB",
        "192.168.50.10:61000",
        "web-7d4b9c-xk2p9",
    ];
    assert_eq!(row.cells(), expected);
    let json = serde_json::to_value(&row).unwrap();
    assert_eq!(json["service"], "default/web");
    assert_eq!(
        (&json["sentBytes"], &json["ageSeconds"]),
        (&1_022.into(), &90.into())
    );
}

#[test]
fn what_is_not_known_is_left_out() {
    let names = Names::default();
    let direct = Flow {
        masquerade: None,
        ..flow(0)
    };
    let row = ConnectionText::new(&direct, &names);
    let cells = row.cells();
    assert_eq!((&*cells[0], &*cells[8], &*cells[9]), ("-", "-", "-"));
    let json = serde_json::to_value(&row).unwrap();
    for field in [
        "service",
        "portName",
        "masqueradeAddress",
        "masqueradePort",
        "pod",
    ] {
        assert!(json.get(field).is_none(), "{field}");
    }
    let gone = SocketText::new(
        &SocketFlow {
            cookie: 4711,
            proto: 17,
            local: None,
            frontend: (ip("10.0.1.175"), 80),
            backend: (ip("10.244.0.5"), 9376),
            service: 9,
            idle_secs: 0,
        },
        &names,
    );
    let cells = gone.cells();
    assert_eq!(
        (&*cells[0], &*cells[1]),
        ("id 9", "cookie 4711, gone or of a pod")
    );
}
