// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values that cannot be, each with a part of what `helm template` must say.
//!
//! **Invariant:** one row for each `fail` of templates/validate.yaml, which is counted, and rows for
//! what the schema refuses: a wrong word, a wrong type, a key that nobody knows.
//! Read next: helm/lb-agent/templates/validate.yaml.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Chart, Checks};

/// What is wrong, as arguments of `--set`, and what must be said.
struct Case {
    set: &'static [&'static str],
    says: &'static str,
}

const fn case(set: &'static [&'static str], says: &'static str) -> Case {
    Case { set, says }
}

/// What validate.yaml refuses, in its order.
const SENTENCES: &[Case] = &[
    case(
        &["config.socketLb=all"],
        "config.socketLb=all needs hostPID=true",
    ),
    case(
        &["hostPID=true"],
        "hostPID=true is of use with config.socketLb=all only",
    ),
    case(
        &["k8sServiceHost=192.0.2.1"],
        "k8sServiceHost and k8sServicePort belong together; give both, or none",
    ),
    case(
        &[
            "k8sServiceHost=192.0.2.1",
            "k8sServicePort=6443",
            "config.apiServer=https://192.0.2.1",
        ],
        "config.apiServer and k8sServiceHost name the API server twice",
    ),
    case(
        &["config.node=a"],
        "config.node would be the same name on every node",
    ),
    case(
        &["config.manifests=/m"],
        "config.manifests is for an agent without a cluster",
    ),
    case(
        &["config.kubeconfig=/k"],
        "config.kubeconfig is for an agent outside of a pod",
    ),
    case(
        &[
            "config.clusterCidr={10.0.0.0/8}",
            "config.detectLocalMode=NodeCIDR",
        ],
        "config.clusterCidr means nothing with config.detectLocalMode=NodeCIDR",
    ),
    case(
        &["config.detectLocalMode=BridgeInterface"],
        "config.detectLocalMode=BridgeInterface needs config.podBridgeInterface",
    ),
    case(
        &["config.podBridgeInterface=cni0"],
        "config.podBridgeInterface means nothing without",
    ),
    case(
        &["config.detectLocalMode=InterfaceNamePrefix"],
        "config.detectLocalMode=InterfaceNamePrefix needs config.podInterfaceNamePrefix",
    ),
    case(
        &["config.podInterfaceNamePrefix=cali"],
        "config.podInterfaceNamePrefix means nothing without",
    ),
    case(
        &["config.bpffs=/sys/fs/bpf/lb"],
        "config.bpffs must lie below /run/lb-agent/bpf/",
    ),
    case(
        &["config.cgroup=/sys/fs/cgroup"],
        "config.cgroup must be /run/lb-agent/cgroup or a folder below",
    ),
    case(
        &["config.stateDir=/var/lib/other"],
        "config.stateDir is /var/lib/lb-agent, the only folder that is mounted for it",
    ),
    case(
        &["config.metricsBindAddress=0.0.0.0:10256"],
        "port 10256 is used twice",
    ),
    case(
        &["podMonitor.enabled=true", "config.metricsBindAddress=none"],
        "podMonitor.enabled=true needs metrics, and config.metricsBindAddress is none",
    ),
    case(
        &["podMonitor.enabled=true"],
        "127.0.0.1:10249 is on loopback",
    ),
    case(
        &["cleanup.drain=false", "cleanup.timeoutSeconds=60"],
        "cleanup.timeoutSeconds is how long a drain may take",
    ),
    case(
        &["serviceAccount.create=false"],
        "serviceAccount.create=false needs serviceAccount.name",
    ),
    case(
        &["securityContext.seccompProfile.type=Localhost"],
        "securityContext.seccompProfile: type Localhost and localhostProfile belong together",
    ),
];

/// What more must be refused: by the same sentences, or by the schema, whose words are helm's.
const FURTHER: &[Case] = &[
    case(
        &[
            "podMonitor.enabled=true",
            "config.metricsBindAddress=[::1]:9000",
        ],
        "is on loopback",
    ),
    case(
        &[
            "securityContext.appArmorProfile.type=Unconfined",
            "securityContext.appArmorProfile.localhostProfile=x",
        ],
        "securityContext.appArmorProfile: type Localhost and localhostProfile belong together",
    ),
    case(&["k8sServicePort=6443"], "belong together"),
    case(&["config.socketLB=host"], "socketLB"),
    case(&["socketLb=host"], "socketLb"),
    case(&["config.socketLb=some"], "socketLb"),
    case(&["config.connectionsMax=many"], "connectionsMax"),
    case(&["config.connectionsMax=1"], "connectionsMax"),
    case(&["config.masqueradeMarkBit=32"], "masqueradeMarkBit"),
    case(&["config.clusterCidr=10.0.0.0/8"], "clusterCidr"),
    case(&["config.metricsBindAddress=10249"], "metricsBindAddress"),
    case(&["config.snatPortRange={1024}"], "snatPortRange"),
    case(&["securityContext.privileged=true"], "privileged"),
    case(&["image.digest=latest"], "digest"),
    case(&["architectures={mips}"], "architectures"),
    case(&["maxUnavailable=0%"], "maxUnavailable"),
    case(&["hostPID=yes"], "hostPID"),
];

/// Each row must fail, and say so.
pub(super) fn refuse(chart: &Chart, checks: &mut Checks) -> Result<()> {
    let template = chart.file("templates/validate.yaml");
    let text = fs::read_to_string(&template).context("read templates/validate.yaml")?;
    let refusals = text.matches("{{- fail ").count();
    let rows = SENTENCES.len();
    checks.note((refusals != rows).then(|| {
        format!("templates/validate.yaml refuses {refusals} things, and {rows} cases try them")
    }));
    for case in SENTENCES.iter().chain(FURTHER) {
        let mut words = vec!["template", "lb-agent", "."];
        words.extend(case.set.iter().flat_map(|set| ["--set", *set]));
        let said = chart.helm(&words)?;
        let (set, says) = (case.set.join(" "), case.says);
        checks.note(if said.success {
            Some(format!("helm template --set {set} went through"))
        } else if said.error.contains(says) {
            None
        } else {
            let error = said.error.trim();
            Some(format!(
                "helm template --set {set}: expected `{says}`, was told `{error}`"
            ))
        });
    }
    Ok(())
}
