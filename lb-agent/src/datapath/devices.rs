// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which devices are managed, decided from plain facts about them.
//!
//! Uplinks carry the default route or a node's address, overlay devices carry traffic between
//! nodes, pod devices lead into another network namespace.
//! **Invariant:** no netlink here. A bridge is never managed, because its ports are and a packet
//! must not meet the programs twice; nor is the loopback device.

use std::fmt;

use lb_common::abi::{Iface, IfaceFlags};

use crate::model::prefix::Prefix;

/// Why a device is managed. The first that applies in the order uplink, overlay, pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Leads out of the node.
    Uplink,
    /// Leads to other nodes through a tunnel.
    Overlay,
    /// Leads to a pod.
    Pod,
    /// Named by an include pattern and nothing of the above.
    Included,
}

impl Role {
    const ALL: [Self; 4] = [Self::Pod, Self::Uplink, Self::Overlay, Self::Included];

    /// The role in the singular, as shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Overlay => "overlay",
            Self::Pod => "pod",
            Self::Included => "included",
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Self::Uplink => "uplinks",
            Self::Overlay => "overlays",
            Self::Pod => "pods",
            Self::Included => "included",
        }
    }
}

/// What the kernel says of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What made it (`veth`, `bridge`, ...); empty for hardware.
    pub kind: String,
    /// Packets have an Ethernet header.
    pub ethernet: bool,
    /// It is `lo`.
    pub loopback: bool,
    /// Number of the device that it is a port of; 0: none.
    pub master: u32,
    /// Number of the device at its other end or below it; 0: none.
    pub peer: u32,
    /// It is up.
    pub up: bool,
    /// Id of the network namespace that `peer` is in, when it is another one.
    pub peer_netns: Option<u32>,
}

impl LinkFacts {
    /// True for both ends of a pair of devices that lead to each other.
    pub fn is_pair(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }

    fn is_overlay(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "vxlan"
                | "geneve"
                | "ipip"
                | "ip6tnl"
                | "sit"
                | "gre"
                | "gretap"
                | "ip6gre"
                | "ip6gretap"
                | "erspan"
                | "ip6erspan"
                | "wireguard"
                | "tun"
        )
    }

    fn is_pod(&self) -> bool {
        self.is_pair() && self.peer_netns.is_some()
    }

    /// Carries no traffic of its own, or only what its ports carry as well.
    fn is_never_managed(&self) -> bool {
        self.loopback
            || matches!(
                self.kind.as_str(),
                "bridge" | "vrf" | "dummy" | "ifb" | "nlmon"
            )
    }
}

/// What else the kernel knows of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carries {
    /// A default route leads out of it, or out of the bridge that it is a port of.
    pub default_route: bool,
    /// It has an address of more than local meaning.
    pub global_address: bool,
}

/// Patterns over device names that override what is found: `*` is any text, `?` any character.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Managed whatever they are, unless bridge or loopback.
    pub include: Vec<String>,
    /// Not managed whatever they are; wins over `include`.
    pub exclude: Vec<String>,
}

/// How it is told that packets come from pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodSource {
    /// They come in by a device whose role is that of a pod.
    #[default]
    Role,
    /// They come in by the device of this name, or by a port of the bridge of this name.
    Device(String),
    /// They come in by a device whose name begins so, or by a port of such a bridge.
    NamePrefix(String),
    /// Their source lies within these ranges; none for those that `ClusterFacts` tell.
    Ranges(Option<Vec<Prefix>>),
}

/// What the operator chose about devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) patterns: Patterns,
    pub(super) pods: PodSource,
}

/// The role of a device, or none when it is not managed.
pub fn classify(link: &LinkFacts, carries: Carries, patterns: &Patterns) -> Option<Role> {
    let named = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, &link.name));
    if named(&patterns.exclude) {
        return None;
    }
    if link.is_never_managed() {
        return None;
    }
    // In nested clusters the uplink is itself a veth, so the default route decides first. An
    // address alone does not: overlay devices and point-to-point pod devices have them as well.
    let uplink =
        carries.default_route || carries.global_address && !link.is_overlay() && !link.is_pod();
    if uplink {
        Some(Role::Uplink)
    } else if link.is_overlay() {
        Some(Role::Overlay)
    } else if link.is_pod() {
        Some(Role::Pod)
    } else {
        named(&patterns.include).then_some(Role::Included)
    }
}

/// What the packet path must know of a device; `bridge` is the bridge that it is a port of.
pub(super) fn iface(
    link: &LinkFacts,
    bridge: Option<&LinkFacts>,
    role: Role,
    pods: &PodSource,
) -> Iface {
    // A packet from a port comes in by the bridge, as far as other tools can tell.
    let is_named = |fits: &dyn Fn(&str) -> bool| {
        fits(&link.name) || bridge.is_some_and(|bridge| fits(&bridge.name))
    };
    let pod = match pods {
        PodSource::Role if role == Role::Pod => IfaceFlags::POD,
        PodSource::Device(name) if is_named(&|is| is == name) => IfaceFlags::POD,
        PodSource::NamePrefix(begin) if is_named(&|is| is.starts_with(begin)) => IfaceFlags::POD,
        PodSource::Role | PodSource::Device(_) | PodSource::NamePrefix(_) => 0,
        PodSource::Ranges(_) => IfaceFlags::POD_BY_ADDRESS,
    };
    let peer = match link.peer_netns {
        Some(_) => IfaceFlags::PEER_NETNS,
        None => 0,
    };
    Iface {
        bridge: bridge.map_or(0, |bridge| bridge.index),
        peer_netns: link.peer_netns.unwrap_or(0),
        flags: peer | pod,
    }
}

/// True when `name` is one that `pattern` stands for.
fn matches(pattern: &str, name: &str) -> bool {
    let Some(first) = pattern.chars().next() else {
        return name.is_empty();
    };
    let rest = &pattern[first.len_utf8()..];
    if first == '*' {
        // Device names have at most 15 characters, so trying every split is cheap.
        return (0..=name.len())
            .filter(|&at| name.is_char_boundary(at))
            .any(|at| matches(rest, &name[at..]));
    }
    match name.chars().next() {
        Some(character) if first == '?' || first == character => {
            matches(rest, &name[character.len_utf8()..])
        }
        _ => false,
    }
}

/// How many devices of each role are managed; shows as `3 pods, 1 uplink`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    /// Name and role of each device, by its number.
    pub devices: std::collections::BTreeMap<u32, (String, Role)>,
    /// Names of devices that are to be managed and lack a program so far; tried again.
    pub lacking: std::collections::BTreeSet<String>,
    /// The node's own addresses of more than local meaning.
    pub addresses: std::collections::BTreeSet<std::net::IpAddr>,
    /// What the programs know of the node's own processes, once the cluster's objects have told it.
    pub node: Option<crate::model::cluster::NodeFacts>,
    /// How sockets are served.
    pub sockets: super::sockets::SocketState,
    /// What was found in the packet filter last.
    pub filter: FilterFindings,
}

/// How many rules of others there are that people should know of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterFindings {
    /// Tables with rules of kube-proxy that masquerade.
    pub kube_proxy: usize,
    /// Chains at forward whose policy is to drop.
    pub forward_drop: usize,
}

impl fmt::Display for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for role in Role::ALL {
            let count = self.devices.values().filter(|(_, r)| *r == role).count();
            if count > 0 {
                let noun = if count == 1 {
                    role.name()
                } else {
                    role.plural()
                };
                write!(f, "{separator}{count} {noun}")?;
                separator = ", ";
            }
        }
        if separator.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Carries = Carries {
        default_route: false,
        global_address: false,
    };
    const ADDRESS: Carries = Carries {
        default_route: false,
        global_address: true,
    };
    const ROUTE: Carries = Carries {
        default_route: true,
        global_address: true,
    };

    fn link(name: &str, kind: &str, peer_netns: Option<u32>) -> LinkFacts {
        LinkFacts {
            index: 7,
            name: name.to_owned(),
            kind: kind.to_owned(),
            ethernet: true,
            peer_netns,
            ..LinkFacts::default()
        }
    }

    #[test]
    fn each_kind_of_device_gets_its_role() {
        let (uplink, overlay, pod) = (Some(Role::Uplink), Some(Role::Overlay), Some(Role::Pod));
        for (name, kind, peer_netns, carries, role) in [
            ("eth0", "", None, ROUTE, uplink),
            ("eth1", "", None, ADDRESS, uplink),
            ("idle", "", None, NOTHING, None),
            ("eth0.5", "vlan", None, ADDRESS, uplink),
            ("bond0", "bond", None, ROUTE, uplink),
            ("nested", "veth", Some(0), ROUTE, uplink),
            ("bridged", "veth", Some(0), NOTHING, pod),
            ("cali1", "veth", Some(3), ADDRESS, pod),
            ("lxc1", "netkit", Some(3), NOTHING, pod),
            ("local", "veth", None, NOTHING, None),
            ("flannel.1", "vxlan", None, ADDRESS, overlay),
            ("tunl0", "ipip", None, ADDRESS, overlay),
            ("wg0", "wireguard", None, NOTHING, overlay),
            ("genev_sys", "geneve", None, NOTHING, overlay),
            ("gre1", "gre", None, NOTHING, overlay),
            ("tun0", "tun", None, NOTHING, overlay),
            ("vpn0", "wireguard", None, ROUTE, uplink),
            ("cni0", "bridge", None, ADDRESS, None),
            ("br0", "bridge", None, ROUTE, None),
            ("kube-ipvs0", "dummy", None, ADDRESS, None),
        ] {
            let link = link(name, kind, peer_netns);
            assert_eq!(
                classify(&link, carries, &Patterns::default()),
                role,
                "{name}"
            );
        }
    }

    #[test]
    fn loopback_and_bridges_are_not_managed_even_when_included() {
        let patterns = Patterns {
            include: vec!["*".to_owned()],
            exclude: vec![],
        };
        let mut lo = link("lo", "", None);
        lo.loopback = true;
        assert_eq!(classify(&lo, ADDRESS, &patterns), None);
        assert_eq!(
            classify(&link("cni0", "bridge", None), ROUTE, &patterns),
            None
        );
    }

    #[test]
    fn patterns_override_what_is_found_and_exclude_wins() {
        let patterns = Patterns {
            include: vec!["ens?".to_owned()],
            exclude: vec!["docker*".to_owned(), "ens9".to_owned()],
        };
        let role = |name: &str, kind: &str| classify(&link(name, kind, None), NOTHING, &patterns);
        assert_eq!(role("ens4", ""), Some(Role::Included));
        assert_eq!(role("ens44", ""), None);
        assert_eq!(role("ens9", ""), None);
        assert_eq!(role("docker_tun", "tun"), None);
        assert_eq!(role("ens4", "vxlan"), Some(Role::Overlay));
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, fits) in [
            ("veth*", "veth0a1b", true),
            ("veth*", "myveth0", false),
            ("*eth*", "myveth0", true),
            ("e?h0", "eth0", true),
            ("e?h0", "eh0", false),
            ("*", "", true),
            ("", "", true),
            ("", "eth0", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} on {name}");
        }
    }

    #[test]
    fn the_summary_reads_like_a_sentence() {
        let mut managed = Managed::default();
        assert_eq!(managed.to_string(), "none");
        for (index, role) in [Role::Pod, Role::Pod, Role::Uplink].into_iter().enumerate() {
            let index = u32::try_from(index).unwrap();
            managed.devices.insert(index, (format!("d{index}"), role));
        }
        assert_eq!(managed.to_string(), "2 pods, 1 uplink");
    }

    #[test]
    fn the_packet_path_learns_bridge_and_peer_namespace() {
        let pod = link("veth1", "veth", Some(0));
        let bridge = LinkFacts {
            index: 4,
            ..link("cni0", "bridge", None)
        };
        let entry = iface(&pod, Some(&bridge), Role::Pod, &PodSource::Role);
        assert_eq!(entry.bridge, 4);
        assert_eq!(entry.peer_netns, 0);
        assert_eq!(entry.flags, IfaceFlags::PEER_NETNS | IfaceFlags::POD);
        let uplink = link("eth0", "", None);
        let entry = iface(&uplink, None, Role::Uplink, &PodSource::Role);
        assert_eq!(entry, Iface::default());
    }

    #[test]
    fn pods_are_told_as_the_operator_chose() {
        let (pod, by_address) = (IfaceFlags::POD, IfaceFlags::POD_BY_ADDRESS);
        let bridge = link("cni0", "bridge", None);
        let device = PodSource::Device("cni0".to_owned());
        let prefix = PodSource::NamePrefix("cali".to_owned());
        let ranges = PodSource::Ranges(None);
        for (name, role, bridge, pods, flags) in [
            ("veth1", Role::Pod, None, &PodSource::Role, pod),
            ("eth0", Role::Uplink, None, &PodSource::Role, 0),
            ("flannel.1", Role::Overlay, None, &PodSource::Role, 0),
            ("veth1", Role::Pod, Some(&bridge), &device, pod),
            ("veth1", Role::Pod, None, &device, 0),
            ("eth0", Role::Uplink, Some(&bridge), &device, pod),
            ("cni0", Role::Included, None, &device, pod),
            ("cni01", Role::Included, None, &device, 0),
            ("cali1", Role::Pod, None, &prefix, pod),
            ("veth1", Role::Pod, None, &prefix, 0),
            (
                "veth1",
                Role::Pod,
                Some(&link("cali0", "bridge", None)),
                &prefix,
                pod,
            ),
            ("eth0", Role::Uplink, None, &ranges, by_address),
            ("veth1", Role::Pod, Some(&bridge), &ranges, by_address),
        ] {
            let entry = iface(&link(name, "veth", None), bridge, role, pods);
            assert_eq!(entry.flags, flags, "{name} {role:?} {pods:?}");
        }
    }
}
