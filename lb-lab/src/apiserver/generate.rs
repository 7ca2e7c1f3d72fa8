// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cluster of any size, in objects as large as those of a real API server.
//!
//! **Invariant:** the objects follow from the numbers alone, and a change is of one endpoint of one slice,
//! back and forth between two addresses. They are written as text: building values first would take
//! most of the time of a large cluster. Read next: `console`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ApiServer;
use super::object::Parts;
use super::resource::Resource;

/// Namespaces over which Services are spread.
const NAMESPACES: usize = 50;
/// Changes that are remembered.
const CHANGES: usize = 1 << 20;
/// Endpoints of a slice, as kube-controller-manager fills them.
const SLICE: usize = 100;
/// When everything came to be.
const TIME: &str = "2026-01-01T00:00:00Z";
const SERVICE_ADDRESSES: u32 = 0x0a60_000a;
const POD_ADDRESSES: u32 = 0x0a80_0001;
/// Of the endpoints that have changed.
const OTHER_ADDRESSES: u32 = 0x0a40_0001;
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

/// What kind of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterSpec {
    /// Services of one port each.
    pub services: usize,
    /// Ready endpoints of each, in one slice per family.
    pub endpoints_per_service: usize,
    /// Endpoints of one more Service, in slices of 100; none without.
    pub big_service: usize,
    /// The name of the first of the four nodes.
    pub node: Option<String>,
    /// Whether Services have an IPv6 address and slices, too.
    pub dual_stack: bool,
}

/// A generated cluster.
#[derive(Debug)]
pub struct Cluster {
    spec: ClusterSpec,
    nodes: [String; 4],
    flipped: Vec<bool>,
}

/// One slice: of which Service, and which of its endpoints.
#[derive(Clone, Copy)]
struct Slice {
    service: usize,
    number: usize,
    is_v6: bool,
}

impl Cluster {
    /// Makes the cluster's objects, and forgets how they came.
    pub fn generate(server: &ApiServer, spec: ClusterSpec) -> Self {
        let first = spec.node.clone().unwrap_or_else(|| "node-0".to_owned());
        let others = [1, 2, 3].map(|number| format!("node-{number}"));
        let [second, third, fourth] = others;
        let count = spec.services + usize::from(spec.big_service > 0);
        let cluster = Self {
            spec,
            nodes: [first, second, third, fourth],
            flipped: vec![false; count],
        };
        for number in 0..cluster.nodes.len() {
            cluster.put_node(server, number);
        }
        for service in 0..count {
            cluster.put_service(server, service);
            let slices = cluster.endpoints(service).div_ceil(SLICE).max(1);
            for number in 0..slices {
                for is_v6 in [false, true] {
                    if !is_v6 || cluster.spec.dual_stack {
                        let slice = Slice {
                            service,
                            number,
                            is_v6,
                        };
                        cluster.put_slice(server, slice);
                    }
                }
            }
        }
        // A series of changes can ask for its times at its end.
        server.history(CHANGES);
        server.compact();
        cluster
    }

    /// How many Services there are, the big one (the last) included.
    pub const fn services(&self) -> usize {
        self.flipped.len()
    }

    /// Gives one endpoint of a Service's first IPv4 slice its other address; the version afterwards,
    /// none if there is no such Service.
    pub fn change(&mut self, server: &ApiServer, service: usize) -> Option<u64> {
        let flipped = self.flipped.get_mut(service)?;
        *flipped = !*flipped;
        let slice = Slice {
            service,
            number: 0,
            is_v6: false,
        };
        Some(self.put_slice(server, slice))
    }

    const fn is_big(&self, service: usize) -> bool {
        service == self.spec.services
    }

    const fn endpoints(&self, service: usize) -> usize {
        if self.is_big(service) {
            self.spec.big_service
        } else {
            self.spec.endpoints_per_service
        }
    }

    fn name(&self, service: usize) -> (String, String) {
        let name = if self.is_big(service) {
            "big".to_owned()
        } else {
            format!("web-{service:05}")
        };
        (format!("bench-{}", service % NAMESPACES), name)
    }

    fn put_node(&self, server: &ApiServer, number: usize) {
        let name = &self.nodes[number];
        let zone = ZONES[number % ZONES.len()];
        let uid = uid(1, number);
        let metadata = format!(
            r#","name":"{name}","uid":"{uid}","creationTimestamp":"{TIME}","labels":{{"kubernetes.io/hostname":"{name}","kubernetes.io/os":"linux","topology.kubernetes.io/zone":"{zone}"}}"#
        );
        let rest = format!(
            r#","spec":{{"podCIDR":"10.244.{number}.0/24","podCIDRs":["10.244.{number}.0/24"]}},"status":{{"addresses":[{{"type":"InternalIP","address":"192.168.50.1{number}"}},{{"type":"Hostname","address":"{name}"}}],"conditions":[{{"type":"Ready","status":"True","reason":"KubeletReady"}}]}}"#
        );
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        server.put_parts(Parts {
            resource: Resource::Node,
            namespace: "",
            name,
            uid,
            labels: vec![
                label("kubernetes.io/hostname", name),
                label("kubernetes.io/os", "linux"),
                label("topology.kubernetes.io/zone", zone),
            ],
            cluster_ip: String::new(),
            service_type: String::new(),
            metadata: &metadata,
            rest: &rest,
        });
    }

    fn put_service(&self, server: &ApiServer, service: usize) {
        let (namespace, name) = self.name(service);
        let uid = uid(2, service);
        let v4 = Ipv4Addr::from(SERVICE_ADDRESSES + low(service)).to_string();
        let (addresses, families, policy) = if self.spec.dual_stack {
            let v6 = address_v6(0x96, SERVICE_ADDRESSES + low(service));
            (
                format!(r#""{v4}","{v6}""#),
                r#""IPv4","IPv6""#,
                "RequireDualStack",
            )
        } else {
            (format!(r#""{v4}""#), r#""IPv4""#, "SingleStack")
        };
        let metadata = format!(
            r#","name":"{name}","namespace":"{namespace}","uid":"{uid}","creationTimestamp":"{TIME}","labels":{{"app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"{name}","helm.sh/chart":"web-1.4.2"}},"annotations":{{"meta.helm.sh/release-name":"{name}","meta.helm.sh/release-namespace":"{namespace}"}},"managedFields":[{{"manager":"helm","operation":"Update","apiVersion":"v1","time":"{TIME}","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:meta.helm.sh/release-name":{{}},"f:meta.helm.sh/release-namespace":{{}}}},"f:labels":{{".":{{}},"f:app.kubernetes.io/managed-by":{{}},"f:app.kubernetes.io/name":{{}},"f:helm.sh/chart":{{}}}}}},"f:spec":{{"f:internalTrafficPolicy":{{}},"f:ports":{{".":{{}},"k:{{\"port\":80,\"protocol\":\"TCP\"}}":{{".":{{}},"f:name":{{}},"f:port":{{}},"f:protocol":{{}},"f:targetPort":{{}}}}}},"f:selector":{{}},"f:sessionAffinity":{{}},"f:type":{{}}}}}}}}]"#
        );
        let rest = format!(
            r#","spec":{{"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080}}],"selector":{{"app.kubernetes.io/name":"{name}"}},"clusterIP":"{v4}","clusterIPs":[{addresses}],"type":"ClusterIP","sessionAffinity":"None","ipFamilies":[{families}],"ipFamilyPolicy":"{policy}","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}"#
        );
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        server.put_parts(Parts {
            resource: Resource::Service,
            namespace: &namespace,
            name: &name,
            uid,
            labels: vec![
                label("app.kubernetes.io/managed-by", "Helm"),
                label("app.kubernetes.io/name", &name),
                label("helm.sh/chart", "web-1.4.2"),
            ],
            cluster_ip: v4,
            service_type: "ClusterIP".to_owned(),
            metadata: &metadata,
            rest: &rest,
        });
    }

    fn put_slice(&self, server: &ApiServer, slice: Slice) -> u64 {
        let (namespace, service) = self.name(slice.service);
        let family = if slice.is_v6 { "6" } else { "4" };
        let name = format!("{service}-{:03}x{family}", slice.number);
        let uid = uid(
            3 + usize::from(slice.is_v6),
            slice.service + slice.number * 1_000_000,
        );
        let owner = self::uid(2, slice.service);
        let metadata = format!(
            r#","name":"{name}","generateName":"{service}-","namespace":"{namespace}","uid":"{uid}","generation":7,"creationTimestamp":"{TIME}","labels":{{"app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"{service}","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","helm.sh/chart":"web-1.4.2","kubernetes.io/service-name":"{service}"}},"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"{TIME}"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"{service}","uid":"{owner}","controller":true,"blockOwnerDeletion":true}}],"managedFields":[{{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"{TIME}","fieldsType":"FieldsV1","fieldsV1":{{"f:addressType":{{}},"f:endpoints":{{}},"f:metadata":{{"f:annotations":{{".":{{}},"f:endpoints.kubernetes.io/last-change-trigger-time":{{}}}},"f:generateName":{{}},"f:labels":{{".":{{}},"f:app.kubernetes.io/managed-by":{{}},"f:app.kubernetes.io/name":{{}},"f:endpointslice.kubernetes.io/managed-by":{{}},"f:helm.sh/chart":{{}},"f:kubernetes.io/service-name":{{}}}},"f:ownerReferences":{{".":{{}},"k:{{\"uid\":\"{owner}\"}}":{{}}}}}},"f:ports":{{}}}}}}]"#
        );
        let rest = format!(
            r#","addressType":"IPv{family}","endpoints":[{}],"ports":[{{"name":"http","protocol":"TCP","port":8080}}]"#,
            self.endpoint_texts(slice, &namespace, &service)
        );
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        server.put_parts(Parts {
            resource: Resource::EndpointSlice,
            namespace: &namespace,
            name: &name,
            uid,
            labels: vec![
                label("app.kubernetes.io/managed-by", "Helm"),
                label("app.kubernetes.io/name", &service),
                label(
                    "endpointslice.kubernetes.io/managed-by",
                    "endpointslice-controller.k8s.io",
                ),
                label("helm.sh/chart", "web-1.4.2"),
                label("kubernetes.io/service-name", &service),
            ],
            cluster_ip: String::new(),
            service_type: String::new(),
            metadata: &metadata,
            rest: &rest,
        })
    }

    fn endpoint_texts(&self, slice: Slice, namespace: &str, service: &str) -> String {
        let first = slice.number * SLICE;
        let end = self.endpoints(slice.service).min(first + SLICE);
        let before = slice.service * self.spec.endpoints_per_service;
        let mut text = String::with_capacity((end - first.min(end)) * 320);
        for endpoint in first..end {
            let number = before + endpoint;
            let is_other = endpoint == 0 && !slice.is_v6 && self.flipped[slice.service];
            let bits = if is_other {
                OTHER_ADDRESSES + low(slice.service)
            } else {
                POD_ADDRESSES + low(number)
            };
            let node = number % self.nodes.len();
            let comma = if endpoint == first { "" } else { "," };
            let address = if slice.is_v6 {
                address_v6(0x244, bits)
            } else {
                Ipv4Addr::from(bits).to_string()
            };
            let part = format!(
                r#"{comma}{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"{}","targetRef":{{"kind":"Pod","namespace":"{namespace}","name":"{service}-7d9c5b8f66-{endpoint:05}","uid":"{}"}},"zone":"{}"}}"#,
                self.nodes[node],
                uid(5, number),
                ZONES[node % ZONES.len()],
            );
            text.push_str(&part);
        }
        text
    }
}

fn uid(kind: usize, number: usize) -> String {
    format!("5e1f0000-0000-4000-8{kind:03x}-{number:012x}")
}

fn address_v6(subnet: u16, number: u32) -> String {
    let high = u128::from(subnet) << 80;
    let address = 0xfd00_0010_0000_0000_0000_0000_0000_0000 | high | u128::from(number);
    Ipv6Addr::from(address).to_string()
}

/// Numbers stay far below the addresses that there are.
fn low(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX >> 4)
}
