// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flags of `run` about the kernel side: sizes of tables, masquerading.
//!
//! **Invariant:** what they mean is decided in `datapath`; here they are only named.

use clap::{Args, ValueEnum};
use lb_common::abi::limits;

use crate::datapath::{DatapathConfig, MasqueradeConfig, PodSource, PortRange};
use crate::plan::node::DetectLocal;

/// Who replaces the source of packets that are to be masqueraded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Masquerade {
    /// The programs of this agent, without netfilter.
    #[default]
    Bpf,
    /// A rule of someone else for packets with the mark, such as kube-proxy's KUBE-POSTROUTING;
    /// the programs only mark them.
    Mark,
}

/// How the kernel side is set up.
#[derive(Clone, Debug, Args)]
pub(super) struct KernelArgs {
    /// Entries of each connection table; a connection takes two, a masqueraded one four.
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS,
          value_parser = clap::value_parser!(u32).range(2..))]
    connections_max: u32,
    /// Entries of each table of connections that have only begun, of which the oldest give way to
    /// new ones; a connection takes two, a masqueraded one four.
    #[arg(long, value_name = "N", default_value_t = limits::HALF_OPEN,
          value_parser = clap::value_parser!(u32).range(2..))]
    half_open_max: u32,
    /// Clients of each family that keep their backend for Services with session affinity; those
    /// not seen for longest give way to new ones.
    #[arg(long, value_name = "N", default_value_t = limits::AFFINITIES,
          value_parser = clap::value_parser!(u32).range(1..))]
    affinity_max: u32,
    /// Who replaces the source of packets that must come back through this node.
    #[arg(long, value_enum, default_value_t)]
    masquerade: Masquerade,
    /// The bit of a packet's mark that says it is to be masqueraded, from 0 to 31: the one of
    /// kube-proxy and kubelet is 14, the mark 0x4000.
    #[arg(long, value_name = "BIT", default_value_t = 14, alias = "iptables-masquerade-bit",
          value_parser = clap::value_parser!(u8).range(0..=31))]
    masquerade_mark_bit: u8,
    /// Source ports of masqueraded connections, FIRST-LAST; several with commas. Ports that the
    /// kernel gives to sockets (net.ipv4.ip_local_port_range) and those of --service-node-port-range
    /// are taken away from them.
    #[arg(long, value_name = "RANGE", value_delimiter = ',',
          default_values_t = PortRange::SNAT_DEFAULT)]
    snat_port_range: Vec<PortRange>,
    /// Ports that node ports are chosen from, as the API server was told.
    #[arg(long, value_name = "RANGE", default_value_t = PortRange::NODE_PORTS)]
    service_node_port_range: PortRange,
}

impl KernelArgs {
    /// Puts what was chosen into `config`.
    pub(super) fn apply(&self, config: &mut DatapathConfig) {
        config.connections_max = self.connections_max;
        config.half_open_max = self.half_open_max;
        config.affinity_max = self.affinity_max;
        config.masquerade = MasqueradeConfig {
            mark_bit: self.masquerade_mark_bit,
            by_mark: self.masquerade == Masquerade::Mark,
            ports: self.snat_port_range.clone(),
            node_ports: self.service_node_port_range,
        };
    }
}

/// How the kernel side tells pods apart, by what planning was told.
pub(super) fn pod_source(detect: &DetectLocal) -> PodSource {
    match detect {
        DetectLocal::Device => PodSource::Role,
        DetectLocal::BridgeInterface(name) => PodSource::Device(name.clone()),
        DetectLocal::InterfaceNamePrefix(begin) => PodSource::NamePrefix(begin.clone()),
        DetectLocal::ClusterCidr(ranges) => PodSource::Ranges(Some(ranges.clone())),
        DetectLocal::NodeCidr => PodSource::Ranges(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    struct Flags {
        #[command(flatten)]
        kernel: KernelArgs,
    }

    fn config(flags: &[&str]) -> Result<DatapathConfig, String> {
        let flags = Flags::try_parse_from(flags).map_err(|e| e.to_string())?;
        let mut config = DatapathConfig::new("/nowhere");
        flags.kernel.apply(&mut config);
        Ok(config)
    }

    #[test]
    fn without_flags_masquerading_is_as_the_kernel_side_has_it() {
        let config = config(&[]).unwrap();
        let default = DatapathConfig::new("/nowhere");
        assert_eq!(config.masquerade, default.masquerade);
        assert_eq!(config.half_open_max, default.half_open_max);
        assert_eq!(config.affinity_max, default.affinity_max);
    }

    #[test]
    fn each_flag_reaches_the_kernel_side() {
        let flags = "--masquerade mark --iptables-masquerade-bit 3 --half-open-max 100 \
            --affinity-max 7 --snat-port-range 2000-3000,5000-6000 --snat-port-range 9000 \
            --service-node-port-range 40000-41000";
        let config = config(&flags.split_whitespace().collect::<Vec<_>>()).unwrap();
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert_eq!(
            config.masquerade,
            MasqueradeConfig {
                mark_bit: 3,
                by_mark: true,
                ports: vec![range("2000-3000"), range("5000-6000"), range("9000")],
                node_ports: range("40000-41000"),
            }
        );
        assert_eq!((config.half_open_max, config.affinity_max), (100, 7));
    }

    #[test]
    fn a_bit_that_no_mark_has_and_a_range_that_ends_before_it_begins_are_refused() {
        for flags in [
            ["--masquerade-mark-bit", "32"],
            ["--snat-port-range", "6000-5000"],
            ["--service-node-port-range", "0-5"],
            ["--affinity-max", "0"],
        ] {
            assert!(config(&flags).unwrap_err().contains(flags[0]), "{flags:?}");
        }
    }
}
