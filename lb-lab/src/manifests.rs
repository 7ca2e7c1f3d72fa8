// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes Kubernetes YAML into a directory, as a person or `kubectl` would have it there.
//!
//! **Invariant:** a file appears, changes and goes in one step (write aside, then rename),
//! and everything about one Service's endpoints is in one file. Read next: `agent`.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::endpoint::Endpoint;
use crate::error::LabError;
use crate::node::Node;
use crate::pod::Pod;
use crate::underlay::line;

/// A directory of manifests.
#[derive(Debug, Clone)]
pub struct Manifests {
    dir: PathBuf,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServicePort {
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

/// A Service of type `ClusterIP`, unless told otherwise.
#[derive(Debug, Clone)]
#[must_use]
pub struct Service {
    name: String,
    namespace: String,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<ServicePort>,
    labels: Vec<(String, String)>,
    /// Labels of its slices.
    slice_labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    kind: &'static str,
    /// Further lines below `spec`.
    spec: Vec<String>,
    /// Addresses of its load balancer.
    ingress: Vec<IpAddr>,
}

impl Service {
    /// A Service in namespace `default` with one or two cluster addresses.
    pub fn new(name: &str, cluster_ips: &[IpAddr]) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            cluster_ips: cluster_ips.to_vec(),
            ports: Vec::new(),
            labels: Vec::new(),
            slice_labels: Vec::new(),
            annotations: Vec::new(),
            kind: "ClusterIP",
            spec: Vec::new(),
            ingress: Vec::new(),
        }
    }

    /// Puts it in a namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Adds a TCP port; endpoints listen on `target`.
    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target)
    }

    fn port(mut self, protocol: &'static str, port: u16, target: u16) -> Self {
        self.ports.push(ServicePort {
            protocol,
            port,
            target,
            node_port: None,
        });
        self
    }

    /// Adds a UDP port; endpoints listen on `target`.
    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target)
    }

    /// Adds an SCTP port; endpoints listen on `target`.
    pub fn sctp(self, port: u16, target: u16) -> Self {
        self.port("SCTP", port, target)
    }

    /// Serves every port on every node too, at `node_port`; the type is `NodePort` from now on.
    pub fn node_port(mut self, node_port: u16) -> Self {
        self.kind = "NodePort";
        for port in &mut self.ports {
            port.node_port = Some(node_port);
        }
        self
    }

    /// Serves these addresses of a load balancer too; the type is `LoadBalancer` from now on.
    pub fn load_balancer(mut self, addresses: &[IpAddr]) -> Self {
        self.kind = "LoadBalancer";
        self.ingress = addresses.to_vec();
        self
    }

    /// Adds a line below `spec`, such as `externalTrafficPolicy: Local`.
    pub fn spec(mut self, line: &str) -> Self {
        self.spec.push(line.to_owned());
        self
    }

    /// Adds a label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a label to its EndpointSlices only.
    pub fn slice_label(mut self, name: &str, value: &str) -> Self {
        self.slice_labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The Service's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Service as YAML.
    pub fn to_yaml(&self) -> String {
        let mut text = String::from("apiVersion: v1\nkind: Service\nmetadata:\n");
        line!(
            text,
            "  name: {}\n  namespace: {}",
            self.name,
            self.namespace
        );
        for (heading, entries) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !entries.is_empty() {
                line!(text, "  {heading}:");
            }
            for (name, value) in entries {
                line!(text, "    {name}: {value:?}");
            }
        }
        line!(
            text,
            "spec:\n  type: {}\n  selector:\n    app: {}",
            self.kind,
            self.name
        );
        for line in &self.spec {
            line!(text, "  {line}");
        }
        if let Some(first) = self.cluster_ips.first() {
            line!(text, "  clusterIP: {:?}\n  clusterIPs:", first.to_string());
            for address in &self.cluster_ips {
                line!(text, "  - {:?}", address.to_string());
            }
            line!(text, "  ipFamilies:");
            for address in &self.cluster_ips {
                line!(text, "  - {}", family(*address));
            }
        }
        line!(text, "  ports:");
        for port in &self.ports {
            line!(
                text,
                "  - name: {}\n    protocol: {}",
                port.name(),
                port.protocol
            );
            line!(
                text,
                "    port: {}\n    targetPort: {}",
                port.port,
                port.target
            );
            if let Some(node_port) = port.node_port {
                line!(text, "    nodePort: {node_port}");
            }
        }
        if !self.ingress.is_empty() {
            line!(text, "status:\n  loadBalancer:\n    ingress:");
            for address in &self.ingress {
                line!(text, "    - ip: {:?}", address.to_string());
            }
        }
        text
    }

    /// One EndpointSlice for each family of the Service's addresses, as YAML documents.
    pub fn endpoints_to_yaml(&self, endpoints: &[Endpoint]) -> String {
        let mut text = String::new();
        let mut families: Vec<_> = self
            .cluster_ips
            .iter()
            .map(|address| family(*address))
            .collect();
        families.dedup();
        for (number, family) in families.into_iter().enumerate() {
            let separator = if number == 0 { "" } else { "---\n" };
            line!(
                text,
                "{separator}apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:"
            );
            let suffix = family.to_ascii_lowercase();
            line!(
                text,
                "  name: {}-{suffix}\n  namespace: {}",
                self.name,
                self.namespace
            );
            line!(
                text,
                "  labels:\n    kubernetes.io/service-name: {}",
                self.name
            );
            for (name, value) in &self.slice_labels {
                line!(text, "    {name}: {value:?}");
            }
            line!(text, "addressType: {family}\nports:");
            for port in &self.ports {
                line!(
                    text,
                    "- name: {}\n  protocol: {}",
                    port.name(),
                    port.protocol
                );
                line!(text, "  port: {}", port.target);
            }
            if endpoints.is_empty() {
                line!(text, "endpoints: []");
            } else {
                line!(text, "endpoints:");
                for endpoint in endpoints {
                    text.push_str(&endpoint.to_yaml(family));
                }
            }
        }
        text
    }
}

impl ServicePort {
    fn name(&self) -> String {
        format!("{}-{}", self.protocol.to_ascii_lowercase(), self.port)
    }
}

pub(crate) const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl Manifests {
    /// Uses a directory, which is made if it is missing.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self, LabError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(LabError::file("make", &dir))?;
        Ok(Self { dir })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a Service.
    pub fn service(&self, service: &Service) -> Result<(), LabError> {
        let name = format!("service-{}-{}.yaml", service.namespace, service.name);
        self.write(&name, &service.to_yaml())
    }

    /// Writes a Service's endpoints: these pods, all ready.
    pub fn endpoints(&self, service: &Service, pods: &[&Pod]) -> Result<(), LabError> {
        let endpoints: Vec<_> = pods.iter().map(|pod| Endpoint::from(*pod)).collect();
        self.endpoints_with(service, &endpoints)
    }

    /// Writes a Service's endpoints with their conditions.
    pub fn endpoints_with(
        &self,
        service: &Service,
        endpoints: &[Endpoint],
    ) -> Result<(), LabError> {
        let name = format!("endpoints-{}-{}.yaml", service.namespace, service.name);
        self.write(&name, &service.endpoints_to_yaml(endpoints))
    }

    /// Removes a Service and its endpoints.
    pub fn delete(&self, service: &Service) -> Result<(), LabError> {
        for kind in ["service", "endpoints"] {
            let name = format!("{kind}-{}-{}.yaml", service.namespace, service.name);
            match self.remove(&name) {
                Err(LabError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Writes a Node with its addresses and pod ranges.
    pub fn node(&self, node: &Node) -> Result<(), LabError> {
        self.node_labelled(node, "")
    }

    /// The same, with a zone.
    pub fn node_in_zone(&self, node: &Node, zone: &str) -> Result<(), LabError> {
        let label = format!("\n    topology.kubernetes.io/zone: {zone}");
        self.node_labelled(node, &label)
    }

    fn node_labelled(&self, node: &Node, label: &str) -> Result<(), LabError> {
        let (name, v4, v6) = (node.name(), node.v4(), node.v6());
        let (pods_v4, pods_v6) = (node.pod_cidr_v4(), node.pod_cidr_v6());
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    \
             kubernetes.io/hostname: {name}{label}\nspec:\n  podCIDR: {pods_v4}\n  podCIDRs:\n  \
             - {pods_v4}\n  - \"{pods_v6}\"\nstatus:\n  addresses:\n  - type: InternalIP\n    \
             address: {v4}\n  - type: InternalIP\n    address: \"{v6}\"\n  - type: Hostname\n    \
             address: {name}\n"
        );
        self.write(&format!("node-{name}.yaml"), &text)
    }

    /// Writes any file in one step.
    pub fn write(&self, name: &str, text: &str) -> Result<(), LabError> {
        let aside = self.dir.join(format!(".{name}.new"));
        let path = self.dir.join(name);
        fs::write(&aside, text).map_err(LabError::file("write", &aside))?;
        fs::rename(&aside, &path).map_err(LabError::file("rename to", path))
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> Result<(), LabError> {
        let path = self.dir.join(name);
        fs::remove_file(&path).map_err(LabError::file("remove", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_service_gets_one_slice_per_family() {
        let addresses = ["10.0.1.175", "fd00:10:0:1::175"].map(|text| text.parse().unwrap());
        let service = Service::new("hostnames", &addresses)
            .tcp(80, 9376)
            .annotation("a/b", "c");
        assert!(
            service
                .to_yaml()
                .contains("  annotations:\n    a/b: \"c\"\nspec:")
        );
        let endpoint = Endpoint {
            addresses: ["10.244.0.5", "fd00:10:244::5"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            pod: None,
            node: Some("node-0".to_owned()),
            zone: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
            ready: true,
            serving: true,
            terminating: false,
        };
        let text = service.endpoints_to_yaml(&[endpoint]);
        let documents: Vec<_> = text.split("---\n").collect();
        assert_eq!(documents.len(), 2);
        assert!(documents[0].contains("addressType: IPv4") && documents[0].contains("10.244.0.5"));
        assert!(documents[1].contains("addressType: IPv6") && !documents[1].contains("10.244"));
    }
}
