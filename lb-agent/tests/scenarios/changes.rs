// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single changes lead to few writes, in the right order, and failures to another try.

use lb_agent::model::service::{Protocol, Service, ServiceKey, ServiceType, TrafficPolicy};
use lb_agent::model::snapshot::{Change, Object, Update};
use lb_agent::plan::ids::IdLimits;
use lb_agent::reconcile::Reconciler;
use lb_agent::tables::Memory;
use lb_common::abi::FrontendKey;

use crate::support::{Bench, port, service, settings, slice};

const ADDRESSES: [&str; 4] = ["10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4"];

/// The Service `web` with the first `count` addresses.
fn web(count: usize) -> Bench {
    let mut bench = Bench::empty();
    bench.take(Update::reset(vec![
        Object::Service(service("web", "10.0.0.10")),
        Object::EndpointSlice(slice("web", &ADDRESSES[..count])),
    ]));
    bench.writes();
    bench
}

fn endpoints(bench: &mut Bench, addresses: &[&str]) -> Vec<String> {
    bench.apply(Object::EndpointSlice(slice("web", addresses)));
    bench.writes()
}

#[test]
fn a_new_service_is_written_from_its_backends_to_its_frontend() {
    let mut bench = Bench::empty();
    bench.take(Update::reset(vec![
        Object::Service(service("web", "10.0.0.10")),
        Object::EndpointSlice(slice("web", &ADDRESSES[..2])),
    ]));
    let expected = [
        "put backend 1 10.244.0.1:8080 of service 1",
        "put backend 2 10.244.0.2:8080 of service 1",
        "put slot 0 of service 1 -> backend 1",
        "put slot 1 of service 1 -> backend 2",
        "put frontend 10.0.0.10:80 TCP -> service 1 count 2",
    ];
    assert_eq!(bench.writes(), expected);
}

#[test]
fn removing_one_endpoint_moves_the_last_one_and_shortens_the_list_first() {
    let mut bench = web(4);
    let expected = [
        "put slot 0 of service 1 -> backend 4",
        "put frontend 10.0.0.10:80 TCP -> service 1 count 3",
        "delete slot 3 of service 1",
        "delete backend 1",
    ];
    assert_eq!(endpoints(&mut bench, &ADDRESSES[1..]), expected);
}

#[test]
fn adding_one_endpoint_lengthens_the_list_last() {
    let mut bench = web(3);
    let expected = [
        "put backend 4 10.244.0.4:8080 of service 1",
        "put slot 3 of service 1 -> backend 4",
        "put frontend 10.0.0.10:80 TCP -> service 1 count 4",
    ];
    assert_eq!(endpoints(&mut bench, &ADDRESSES), expected);
}

#[test]
fn replacing_one_endpoint_writes_its_slot_only() {
    let mut bench = web(3);
    let expected = [
        "put backend 4 10.244.0.4:8080 of service 1",
        "put slot 1 of service 1 -> backend 4",
        "delete backend 2",
    ];
    let after = ["10.244.0.1", "10.244.0.3", "10.244.0.4"];
    assert_eq!(endpoints(&mut bench, &after), expected);
}

#[test]
fn one_change_among_a_thousand_endpoints_writes_four_entries() {
    let all: Vec<String> = (0..1000u32)
        .map(|n| format!("10.244.{}.{}", n / 250, n % 250 + 1))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut bench = Bench::empty();
    bench.apply(Object::Service(service("web", "10.0.0.10")));
    endpoints(&mut bench, &all);
    let without_one = [&all[..500], &all[501..]].concat();
    assert_eq!(endpoints(&mut bench, &without_one).len(), 4);
}

#[test]
fn an_update_that_changes_nothing_writes_nothing() {
    let mut bench = web(3);
    let reversed = ["10.244.0.3", "10.244.0.2", "10.244.0.1"];
    assert_eq!(endpoints(&mut bench, &reversed), Vec::<String>::new());
}

#[test]
fn a_reused_backend_id_has_a_new_epoch() {
    let mut bench = web(2);
    let epoch = |bench: &Bench, id: u32| bench.tables.content().v4.backends[&id].epoch;
    let before = epoch(&bench, 1);
    endpoints(&mut bench, &["10.244.0.2"]);
    assert_eq!(
        endpoints(&mut bench, &["10.244.0.2", "10.244.0.9"])[0],
        "put backend 1 10.244.0.9:8080 of service 1"
    );
    assert!(epoch(&bench, 1) > before);
}

#[test]
fn an_endpoint_that_comes_back_has_a_new_epoch() {
    let mut bench = web(2);
    let epochs = |bench: &Bench| -> Vec<u32> {
        bench
            .tables
            .content()
            .v4
            .backends
            .values()
            .map(|b| b.epoch)
            .collect()
    };
    let before = epochs(&bench);
    endpoints(&mut bench, &[]);
    endpoints(&mut bench, &ADDRESSES[..2]);
    assert!(epochs(&bench).iter().all(|epoch| !before.contains(epoch)));
}

#[test]
fn a_service_that_is_created_again_has_a_new_generation() {
    let mut bench = web(1);
    let key = FrontendKey::new([10, 0, 0, 10], 80, 6);
    let generation = |bench: &Bench| bench.tables.content().v4.frontends[&key].generation;
    let first = generation(&bench);

    bench.delete(&Object::Service(service("web", "10.0.0.10")));
    bench.apply(Object::Service(service("web", "10.0.0.10")));
    let second = generation(&bench);
    assert_ne!(first, second, "deleted and created");

    let mut again = service("web", "10.0.0.10");
    again.uid = "another".to_owned();
    bench.apply(Object::Service(again));
    assert_ne!(second, generation(&bench), "both between two looks");
}

#[test]
fn a_frontend_that_changes_hands_is_switched_and_never_missing() {
    let mut bench = web(1);
    bench.apply(Object::EndpointSlice(slice("rival", &["10.244.0.9"])));
    bench.apply(Object::Service(service("rival", "10.0.0.11")));
    bench.writes();
    let changes = vec![
        Change::Apply(Object::Service(service("rival", "10.0.0.10"))),
        Change::Delete(Object::Service(service("web", "10.0.0.10")).reference()),
    ];
    bench.take(Update::Changes(changes));
    let expected = [
        "delete frontend 10.0.0.11:80 TCP",
        "put frontend 10.0.0.10:80 TCP -> service 2 count 1",
        "delete slot 0 of service 1",
        "delete backend 1",
    ];
    assert_eq!(bench.writes(), expected);
}

#[test]
fn a_renamed_port_goes_over_to_new_slots_before_the_old_ones_go() {
    let mut bench = web(1);
    let mut renamed = service("web", "10.0.0.10");
    renamed.ports = vec![port("http", 80, Protocol::Tcp)];
    let mut ports = slice("web", &ADDRESSES[..1]);
    ports.ports[0].name = "http".to_owned();
    let changes = [Object::Service(renamed), Object::EndpointSlice(ports)];
    bench.take(Update::Changes(changes.map(Change::Apply).into()));
    let expected = [
        "put backend 2 10.244.0.1:8080 of service 2",
        "put slot 0 of service 2 -> backend 2",
        "put frontend 10.0.0.10:80 TCP -> service 2 count 1",
        "delete slot 0 of service 1",
        "delete backend 1",
    ];
    assert_eq!(bench.writes(), expected);
}

#[test]
fn nothing_is_written_before_the_first_list_is_complete() {
    let left = web(2).tables.content().clone();
    let mut bench = Bench::on(left.clone(), 1_000);
    let early = Change::Apply(Object::Service(service("web", "10.0.0.10")));
    bench.take(Update::Changes(vec![early]));
    assert_eq!(bench.tables.content(), &left);
}

#[test]
fn a_failed_write_is_tried_again_and_holds_up_nobody_else() {
    let mut bench = Bench::empty();
    bench.tables.fail_nth(1);
    let outcome = bench.take(Update::reset(vec![
        Object::Service(service("a", "10.0.0.10")),
        Object::EndpointSlice(slice("a", &ADDRESSES[..2])),
        Object::Service(service("b", "10.0.0.11")),
    ]));
    assert_eq!((outcome.services, outcome.pending), (1, 1));
    assert!(
        bench.text().starts_with("10.0.0.11:80 TCP  default/b"),
        "{}",
        bench.text()
    );
    bench.writes();

    let outcome = bench.take(Update::Changes(Vec::new()));
    assert_eq!(outcome.pending, 0);
    let expected = [
        "put backend 2 10.244.0.2:8080 of service 1",
        "put slot 0 of service 1 -> backend 1",
        "put slot 1 of service 1 -> backend 2",
        "put frontend 10.0.0.10:80 TCP -> service 1 count 2",
    ];
    assert_eq!(
        bench.writes(),
        expected,
        "what was carried out is not repeated"
    );
}

#[test]
fn a_full_map_leaves_the_service_as_it_was_until_there_is_room() {
    let mut bench = web(2);
    bench.tables.set_limit(Some(2));
    bench.apply(Object::EndpointSlice(slice("web", &ADDRESSES[..3])));
    assert!(bench.reconciler.is_pending());
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.tables.set_limit(None);
    bench.take(Update::Changes(Vec::new()));
    assert!(!bench.reconciler.is_pending());
    assert_eq!(bench.writes().len(), 3);
}

#[test]
fn ids_that_wait_for_a_failed_delete_are_not_given_away() {
    let mut bench = web(1);
    // The frontend and the slot are deleted, the backend is not.
    bench.tables.fail_nth(2);
    bench.delete(&Object::Service(service("web", "10.0.0.10")));
    assert!(bench.reconciler.is_pending());
    bench.writes();
    let changes = [
        Object::EndpointSlice(slice("b", &["10.244.0.9"])),
        Object::Service(service("b", "10.0.0.11")),
    ];
    bench.take(Update::Changes(changes.map(Change::Apply).into()));
    let writes = bench.writes();
    assert!(
        writes.contains(&"put backend 2 10.244.0.9:8080 of service 2".to_owned()),
        "{writes:?}"
    );
    assert!(
        writes.contains(&"delete backend 1".to_owned()),
        "{writes:?}"
    );
}

#[test]
fn what_an_earlier_process_left_is_removed_after_the_rest_is_in_place() {
    let mut before = web(2);
    before.apply(Object::EndpointSlice(slice("old", &["10.244.0.9"])));
    before.apply(Object::Service(service("old", "10.0.0.11")));
    let mut bench = Bench::on(before.tables.content().clone(), 1_000);
    bench.take(Update::reset(vec![
        Object::Service(service("web", "10.0.0.10")),
        Object::EndpointSlice(slice("web", &ADDRESSES[..3])),
    ]));
    let expected = [
        "put backend 4 10.244.0.3:8080 of service 1",
        "put slot 2 of service 1 -> backend 4",
        "put frontend 10.0.0.10:80 TCP -> service 1 count 3",
        "delete frontend 10.0.0.11:80 TCP",
        "delete slot 0 of service 2",
        "delete backend 3",
    ];
    assert_eq!(bench.writes(), expected);
}

#[test]
fn when_service_ids_run_out_the_services_that_have_one_go_on() {
    let mut settings = settings();
    settings.id_limits = IdLimits {
        services: 2,
        backends: 10,
    };
    let mut tables = Memory::default();
    let mut reconciler = Reconciler::restore(settings, tables.content(), 1);
    reconciler.receive(Update::reset(vec![
        Object::Service(service("a", "10.0.0.10")),
        Object::Service(service("b", "10.0.0.11")),
    ]));
    let outcome = reconciler.sync(&mut tables);
    assert_eq!(outcome.pending, 0);
    assert_eq!(tables.content().v4.frontends.len(), 1);
    let (key, warning) = reconciler.warnings().next().unwrap();
    assert_eq!(*key, ServiceKey::new("default", "b"));
    assert!(
        warning.to_string().contains("all ids are in use"),
        "{warning}"
    );
}

/// A Service with a health check at port 31001.
fn checked(name: &str, ip: &str, created_secs: i64) -> Service {
    Service {
        service_type: ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        health_check_node_port: Some(31_001),
        created_secs: Some(created_secs),
        ..service(name, ip)
    }
}

/// Services that have no health check because another one has its port.
fn unchecked(bench: &Bench) -> Vec<String> {
    let warnings = bench.reconciler.warnings();
    let warnings = warnings.filter(|(_, warning)| warning.reason() == "HealthCheckTaken");
    warnings.map(|(key, _)| key.name.clone()).collect()
}

#[test]
fn the_port_of_a_health_check_goes_to_the_oldest_that_is_there() {
    let mut bench = Bench::empty();
    bench.apply(Object::Service(checked("young", "10.0.0.10", 30)));
    assert!(unchecked(&bench).is_empty());
    let older = Object::Service(checked("zoo", "10.0.0.11", 10));
    bench.apply(older.clone());
    assert_eq!(unchecked(&bench), ["young"], "the older one came later");
    bench.apply(Object::Service(checked("mid", "10.0.0.12", 20)));
    assert_eq!(unchecked(&bench), ["mid", "young"]);
    bench.delete(&older);
    assert_eq!(unchecked(&bench), ["young"]);
    let mut other = checked("mid", "10.0.0.12", 20);
    other.external_policy = TrafficPolicy::Cluster;
    bench.apply(Object::Service(other));
    assert!(
        unchecked(&bench).is_empty(),
        "it has no health check any more"
    );
}
