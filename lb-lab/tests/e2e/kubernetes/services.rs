// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`: Services, their ports and their endpoints come, change and go.
//!
//! **Invariant:** what one Service does, no other notices. Read next: `types.rs`.

use lb_lab::{LabError, Manifests, Pod, Service};

use super::{
    answered_by, cluster, on, refused, source_is_kept, tcp_answered_by, udp_answered_by,
    unreachable,
};
use crate::cluster::{Cluster, TARGET, Vip, get};

#[test]
fn should_serve_a_basic_endpoint_from_pods() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (first, second) = (cluster.web(0, "first"), cluster.web(1, "second"));
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    refused(&client, vip.remotes());
    cluster.set_endpoints(&vip, &[&first]);
    answered_by(&client, vip.remotes(), &["first"]);
    cluster.set_endpoints(&vip, &[&first, &second]);
    answered_by(&client, vip.remotes(), &["first", "second"]);
    cluster.set_endpoints(&vip, &[&second]);
    answered_by(&client, vip.remotes(), &["second"]);
    cluster.set_endpoints(&vip, &[]);
    refused(&client, vip.remotes());
}

/// Writes a slice of its own for the ports of `part`, a Service of the same name.
fn slice(
    manifests: &Manifests,
    part: &Service,
    number: usize,
    pods: &[&Pod],
) -> Result<(), LabError> {
    let endpoints: Vec<_> = pods.iter().map(|pod| (*pod).into()).collect();
    let text = part.endpoints_to_yaml(&endpoints);
    let own = format!("  name: {}-{number}-ipv", part.name());
    let text = text.replace(&format!("  name: {}-ipv", part.name()), &own);
    manifests.write(&format!("slice-{}-{number}.yaml", part.name()), &text)
}

#[test]
fn should_serve_multiport_endpoints_from_pods() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (first, second) = (cluster.web(0, "first"), cluster.web(1, "second"));
    let _servers = [&first, &second].map(|pod| pod.serve(TARGET + 1).unwrap());
    let vip = Vip::new("web", 1);
    let addresses = vip.remotes().map(|remote| remote.ip());
    let part = || Service::new("web", &addresses);
    let one = part().tcp(80, TARGET).udp(80, TARGET);
    let two = part().tcp(81, TARGET + 1).udp(81, TARGET + 1);
    let both = one.clone().tcp(81, TARGET + 1).udp(81, TARGET + 1);
    cluster.manifests.service(&both).unwrap();
    cluster.start_agents();
    let expect = |pods: [Option<&Pod>; 2]| {
        for (port, pod) in [80, 81].into_iter().zip(pods) {
            match pod {
                Some(pod) => answered_by(&client, on(addresses, port), &[pod.name()]),
                None => refused(&client, on(addresses, port)),
            }
        }
    };
    expect([None, None]);
    cluster.change(|manifests| slice(manifests, &one, 1, &[&first]));
    expect([Some(&first), None]);
    cluster.change(|manifests| slice(manifests, &two, 2, &[&second]));
    expect([Some(&first), Some(&second)]);
    cluster.change(|manifests| manifests.remove("slice-web-1.yaml"));
    expect([None, Some(&second)]);
    cluster.change(|manifests| manifests.remove("slice-web-2.yaml"));
    expect([None, None]);
}

#[test]
fn should_be_updated_after_adding_or_deleting_ports() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let _server = pod.serve(TARGET + 1).unwrap();
    let addresses = Vip::new("web", 1).remotes().map(|remote| remote.ip());
    let one = Service::new("web", &addresses)
        .tcp(80, TARGET)
        .udp(80, TARGET);
    let both = one.clone().tcp(81, TARGET + 1).udp(81, TARGET + 1);
    let renumbered = Service::new("web", &addresses)
        .tcp(82, TARGET)
        .udp(82, TARGET);
    cluster.manifests.service(&one).unwrap();
    cluster.manifests.endpoints(&one, &[&pod]).unwrap();
    cluster.start_agents();
    let mut step = |service: &Service, served: &[u16]| {
        cluster.change(|manifests| {
            manifests.endpoints(service, &[&pod])?;
            manifests.service(service)
        });
        for port in [80, 81, 82] {
            if served.contains(&port) {
                answered_by(&client, on(addresses, port), &["web"]);
            } else {
                unreachable(&client, on(addresses, port));
            }
        }
    };
    step(&both, &[80, 81]);
    step(&renumbered, &[82]);
    step(&one, &[80]);
}

#[test]
fn should_preserve_source_pod_ip_for_traffic_thru_service_cluster_ip() {
    let Some(mut cluster) = cluster() else { return };
    let server = cluster.web(0, "server");
    let clients = [cluster.pod(0, "near"), cluster.pod(1, "far")];
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&server]);
    cluster.start_agents();
    for client in &clients {
        source_is_kept(client, vip.remotes());
    }
}

#[test]
fn should_allow_pods_to_hairpin_back_to_themselves_through_services() {
    let Some(mut cluster) = cluster() else { return };
    let pod = cluster.web(0, "web");
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&pod, vip.remotes(), &["web"]);
}

/// Three pods, and Services that have all of them.
fn three_pods(cluster: &mut Cluster) -> [Pod; 3] {
    [(0, "a"), (1, "b"), (1, "c")].map(|(node, name)| cluster.web(node, name))
}

#[test]
fn should_be_able_to_up_and_down_services() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pods = three_pods(&mut cluster);
    let pods = pods.each_ref();
    let names = ["a", "b", "c"];
    let [one, two, three] =
        [("up-down-1", 1), ("up-down-2", 2), ("up-down-3", 3)].map(|(n, i)| Vip::new(n, i));
    cluster.publish(&one, &pods);
    cluster.publish(&two, &pods);
    cluster.start_agents();
    answered_by(&client, one.remotes(), &names);
    answered_by(&client, two.remotes(), &names);
    cluster.change(|manifests| manifests.delete(&one.service));
    unreachable(&client, one.remotes());
    answered_by(&client, two.remotes(), &names);
    cluster.change(|manifests| {
        manifests.endpoints(&three.service, &pods)?;
        manifests.service(&three.service)
    });
    unreachable(&client, one.remotes());
    answered_by(&client, two.remotes(), &names);
    answered_by(&client, three.remotes(), &names);
}

#[test]
fn should_work_after_the_service_has_been_recreated() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["web"]);
    cluster.change(|manifests| manifests.delete(&vip.service));
    unreachable(&client, vip.remotes());
    cluster.change(|manifests| {
        manifests.endpoints(&vip.service, &[&pod])?;
        manifests.service(&vip.service)
    });
    answered_by(&client, vip.remotes(), &["web"]);
}

#[test]
fn should_serve_endpoints_on_same_port_and_different_protocols() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = Vip::new("web", 1);
    let addresses = vip.remotes().map(|remote| remote.ip());
    let tcp = Service::new("web", &addresses).tcp(80, TARGET);
    let udp = Service::new("web", &addresses).udp(80, TARGET);
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    let mut change = |service: &Service| {
        cluster.change(|manifests| {
            manifests.endpoints(service, &[&pod])?;
            manifests.service(service)
        });
    };
    answered_by(&client, vip.remotes(), &["web"]);
    change(&tcp);
    tcp_answered_by(&client, vip.remotes(), &["web"]);
    for remote in vip.remotes() {
        assert!(client.udp_ask(remote, "hostname").is_err(), "{remote}");
    }
    change(&udp);
    udp_answered_by(&client, vip.remotes(), &["web"]);
    for remote in vip.remotes() {
        assert!(client.http_get(remote, "/").is_err(), "{remote}");
    }
    change(&vip.service);
    answered_by(&client, vip.remotes(), &["web"]);
}

#[test]
fn should_be_able_to_use_named_target_ports_that_resolve_to_different_ports_on_different_endpoints()
{
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (first, second) = (cluster.web(0, "first"), cluster.pod(1, "second"));
    let _server = second.serve(TARGET + 1).unwrap();
    let vip = Vip::new("web", 1);
    let addresses = vip.remotes().map(|remote| remote.ip());
    let other = Service::new("web", &addresses);
    let other = other.tcp(80, TARGET + 1).udp(80, TARGET + 1);
    cluster.manifests.service(&vip.service).unwrap();
    slice(&cluster.manifests, &vip.service, 1, &[&first]).unwrap();
    slice(&cluster.manifests, &other, 2, &[&second]).unwrap();
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["first", "second"]);
    // The pod whose port is another listens on no other.
    cluster.change(|manifests| manifests.remove("slice-web-1.yaml"));
    answered_by(&client, vip.remotes(), &["second"]);
}

/// A label or its absence decides whether the Service is ours; the other one never notices.
#[test]
fn should_implement_service_kubernetes_io_service_proxy_name() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let (vip, other) = (Vip::new("toggled", 1), Vip::new("other", 2));
    let label = "service.kubernetes.io/service-proxy-name";
    let labelled = vip.service.clone().label(label, "foo-bar");
    cluster.publish(&other, &[&pod]);
    cluster.manifests.service(&labelled).unwrap();
    cluster.manifests.endpoints(&labelled, &[&pod]).unwrap();
    cluster.start_agents();
    unreachable(&client, vip.remotes());
    answered_by(&client, other.remotes(), &["web"]);
    cluster.change(|manifests| manifests.service(&vip.service));
    answered_by(&client, vip.remotes(), &["web"]);
    cluster.change(|manifests| manifests.service(&labelled));
    unreachable(&client, vip.remotes());
    answered_by(&client, other.remotes(), &["web"]);
}

#[test]
fn should_implement_service_kubernetes_io_headless() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let (vip, other) = (Vip::new("toggled", 1), Vip::new("other", 2));
    let headless = vip.service.clone();
    let headless = headless.slice_label("service.kubernetes.io/headless", "");
    cluster.publish(&other, &[&pod]);
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["web"]);
    cluster.change(|manifests| manifests.endpoints(&headless, &[&pod]));
    refused(&client, vip.remotes());
    answered_by(&client, other.remotes(), &["web"]);
    cluster.set_endpoints(&vip, &[&pod]);
    for remote in vip.remotes() {
        assert_eq!(get(&client, remote, "/").text(), "web");
    }
}
