// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables for the tests of the verbs that look at them: planned from a few objects, as `run` does.
//!
//! **Invariant:** one Service is plain and of both families, the other has all that can be unusual. Next:
//! `services_tests.rs`, `differences_tests.rs`.

use std::net::IpAddr;

use super::names::Names;
use super::objects::Found;
use crate::model::snapshot::Update;
use crate::model::tables::TableContent;
use crate::plan::ids::IdLimits;
use crate::plan::node::PlanOptions;
use crate::reconcile::{Reconciler, Settings};
use crate::source::manifests;
use crate::tables::Memory;

const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 192.168.50.10}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  clusterIPs: [10.0.1.175, "fd00:10:0:1::175"]
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9376}]
endpoints:
- {addresses: [10.244.0.5], nodeName: node-b, targetRef: {kind: Pod, name: web-7d4b9c-xk2p9}}
- {addresses: [10.244.0.6], nodeName: node-b, targetRef: {kind: Pod, name: web-7d4b9c-9qq4w}}
- {addresses: [10.244.0.7], nodeName: node-b, targetRef: {kind: Node, name: no-pod}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 9376}]
endpoints:
- {addresses: ["fd00:10:244::5"], nodeName: node-b, targetRef: {kind: Pod, name: web-7d4b9c-xk2p9}}
---
apiVersion: v1
kind: Service
metadata:
  name: prometheus-main-prometheus-alertmanager
  namespace: monitoring
  annotations: {lb-agent/algorithm: maglev}
spec:
  type: LoadBalancer
  clusterIP: 10.0.44.201
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [10.0.0.0/8]
  ports: [{name: mesh, port: 9094, protocol: UDP, nodePort: 30094}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: alertmanager-1
  namespace: monitoring
  labels: {kubernetes.io/service-name: prometheus-main-prometheus-alertmanager}
addressType: IPv4
ports: [{name: mesh, port: 9094, protocol: UDP}]
endpoints:
- {addresses: [10.244.0.9], nodeName: node-a, targetRef: {kind: Pod, name: alertmanager-0}}
- {addresses: [10.244.1.9], nodeName: node-b, targetRef: {kind: Pod, name: alertmanager-1}}
- addresses: [10.244.1.10]
  nodeName: node-b
  conditions: {ready: false, serving: true, terminating: true}
  targetRef: {kind: Pod, name: alertmanager-2}
"#;

/// What was planned, and from what.
pub(super) struct Fixture {
    pub(super) content: TableContent,
    pub(super) found: Found,
}

impl Fixture {
    pub(super) fn names(&self) -> Names {
        Names::new(Some(&self.found), &self.content)
    }

    /// The backend id of an address.
    pub(super) fn backend(&self, address: &str) -> u32 {
        let address: IpAddr = address.parse().unwrap();
        let v4 = self.content.v4.backends.iter();
        let v4 = v4.map(|(id, b)| (*id, IpAddr::from(b.address)));
        let v6 = self.content.v6.backends.iter();
        let mut all = v4.chain(v6.map(|(id, b)| (*id, IpAddr::from(b.address))));
        all.find(|(_, known)| *known == address).unwrap().0
    }
}

/// Two Services on node-a, one of both families, one with all kinds of frontends.
pub(super) fn planned() -> Fixture {
    let (objects, problems) = manifests::parse("objects.yaml", OBJECTS);
    assert!(problems.is_empty(), "{problems:?}");
    let settings = Settings {
        node_name: "node-a".to_owned(),
        options: PlanOptions::default(),
        id_limits: IdLimits::default(),
    };
    let mut tables = Memory::default();
    let mut reconciler = Reconciler::restore(settings, tables.content(), 1);
    reconciler.receive(Update::reset(objects.clone()));
    reconciler.sync(&mut tables);
    Fixture {
        content: tables.content().clone(),
        found: Found {
            objects,
            problems: Vec::new(),
        },
    }
}
