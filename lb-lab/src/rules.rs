// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packet filter rules of a node: FORWARD policy and the CNI's masquerade.
//!
//! **Invariant:** both writers make the same decisions in the same order: INVALID, then
//! related,established, then the pod ranges, then the policy. Read next: `node`.

use std::fmt::Write as _;

use crate::error::LabError;
use crate::node::Node;
use crate::run;
use crate::topology::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, NodeSettings, RuleTool};
use crate::underlay::line;

/// Puts the rules in place that the lab's settings ask for.
pub(crate) fn install(node: &Node) -> Result<(), LabError> {
    install_these(node, &node.lab.settings)
}

/// Puts the rules in place that these settings ask for; none at all where they ask for nothing, so
/// that no hook of netfilter is taken.
pub(crate) fn install_these(node: &Node, settings: &NodeSettings) -> Result<(), LabError> {
    if !(settings.masquerade || settings.forward_drop || settings.invalid_drop) {
        return Ok(());
    }
    let (v4, v6) = (node.pod_cidr_v4(), node.pod_cidr_v6());
    match settings.rules {
        RuleTool::Nftables => {
            let text = nftables(settings, &v4, &v6);
            run::feed(node.netns().command("nft")?.args(["-f", "-"]), &text)?;
        }
        RuleTool::Iptables => {
            let families = [
                ("iptables-restore", v4, CLUSTER_CIDR_V4, "224.0.0.0/4"),
                ("ip6tables-restore", v6, CLUSTER_CIDR_V6, "ff00::/8"),
            ];
            for (tool, pods, cluster, multicast) in families {
                let text = iptables(settings, &pods, cluster, multicast);
                run::feed(&mut node.netns().command(tool)?, &text)?;
            }
        }
    }
    Ok(())
}

fn nftables(settings: &NodeSettings, pods_v4: &str, pods_v6: &str) -> String {
    let mut forward = String::new();
    if settings.invalid_drop {
        forward += "    ct state invalid drop\n";
    }
    if settings.forward_drop {
        forward += "    ct state related,established accept\n";
        for (family, cidr) in [("ip", CLUSTER_CIDR_V4), ("ip6", CLUSTER_CIDR_V6)] {
            line!(forward, "    {family} saddr {cidr} accept");
            line!(forward, "    {family} daddr {cidr} accept");
        }
    }
    let policy = if settings.forward_drop {
        "drop"
    } else {
        "accept"
    };
    let mut postrouting = String::new();
    if settings.masquerade {
        line!(
            postrouting,
            "    ip saddr {pods_v4} ip daddr != {{ {CLUSTER_CIDR_V4}, 224.0.0.0/4 }} masquerade\n    \
             ip6 saddr {pods_v6} ip6 daddr != {{ {CLUSTER_CIDR_V6}, ff00::/8 }} masquerade"
        );
    }
    format!(
        "table inet node {{\n  chain forward {{\n    type filter hook forward priority 0; \
         policy {policy};\n{forward}  }}\n  chain postrouting {{\n    type nat hook postrouting \
         priority 100; policy accept;\n{postrouting}  }}\n}}\n"
    )
}

fn iptables(settings: &NodeSettings, pods: &str, cluster: &str, multicast: &str) -> String {
    let policy = if settings.forward_drop {
        "DROP"
    } else {
        "ACCEPT"
    };
    let mut text = format!("*filter\n:INPUT ACCEPT\n:FORWARD {policy}\n:OUTPUT ACCEPT\n");
    if settings.invalid_drop {
        text += "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    }
    if settings.forward_drop {
        text += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        line!(
            text,
            "-A FORWARD -s {cluster} -j ACCEPT\n-A FORWARD -d {cluster} -j ACCEPT"
        );
    }
    text +=
        "COMMIT\n*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n";
    if settings.masquerade {
        line!(text, "-A POSTROUTING -s {pods} -d {cluster} -j RETURN");
        line!(
            text,
            "-A POSTROUTING -s {pods} ! -d {multicast} -j MASQUERADE"
        );
    }
    text + "COMMIT\n"
}
