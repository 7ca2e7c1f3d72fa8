// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flags of `run` about the kernel side: sizes of tables, masquerading.
//!
//! **Invariant:** what they mean is decided in `datapath`; here they are only named.

use clap::{Args, ValueEnum};
use lb_common::abi::limits;

use crate::datapath::{DatapathConfig, MasqueradeConfig, PodSource, PortRange, Timeouts};
use crate::plan::node::DetectLocal;

/// Longer times cannot be told from short ones: entries have 32 bits for when they were used.
const LONGEST_TIMEOUT_SECS: u32 = 480 * 3600;

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
    /// For how long a TCP connection may be idle before it is forgotten; such as 24h, 1h30m, 45s.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_seconds)]
    conntrack_tcp_timeout_established: u32,
    /// The same after one side has ended.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_seconds)]
    conntrack_tcp_timeout_close_wait: u32,
    /// For how long UDP that was sent one way only may be idle; 0 for 30s, as Linux has it.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_seconds)]
    conntrack_udp_timeout: u32,
    /// For how long UDP that went both ways may be idle; 0 for 3m, as Linux has it. At most 2h
    /// count where the source was replaced.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_seconds)]
    conntrack_udp_timeout_stream: u32,
    /// Who replaces the source of packets that must come back through this node.
    #[arg(long, value_enum, default_value_t)]
    masquerade: Masquerade,
    /// The bit of a packet's mark that says it is to be masqueraded, from 0 to 31: the one of
    /// kube-proxy and kubelet is 14, the mark 0x4000.
    #[arg(long, value_name = "BIT", default_value_t = 14, alias = "iptables-masquerade-bit",
          value_parser = clap::value_parser!(u8).range(0..=31))]
    masquerade_mark_bit: u8,
    /// Source ports of masqueraded connections, FIRST-LAST; several with commas. Ports that the
    /// kernel gives to sockets (`net.ipv4.ip_local_port_range`) and those of --service-node-port-range
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
        let or = |seconds: u32, default: u32| if seconds == 0 { default } else { seconds };
        let default = Timeouts::default();
        config.timeouts = Timeouts {
            tcp_established: or(
                self.conntrack_tcp_timeout_established,
                default.tcp_established,
            ),
            tcp_close_wait: or(
                self.conntrack_tcp_timeout_close_wait,
                default.tcp_close_wait,
            ),
            udp: or(self.conntrack_udp_timeout, default.udp),
            udp_stream: or(self.conntrack_udp_timeout_stream, default.udp_stream),
        };
        config.masquerade = MasqueradeConfig {
            mark_bit: self.masquerade_mark_bit,
            by_mark: self.masquerade == Masquerade::Mark,
            ports: self.snat_port_range.clone(),
            node_ports: self.service_node_port_range,
        };
    }
}

/// Seconds in a time as kube-proxy's flags have it: numbers with h, m or s behind them.
fn parse_seconds(text: &str) -> Result<u32, String> {
    let wrong = || "give a time such as 24h, 1h30m or 45s".to_owned();
    let mut rest = text;
    let mut total = 0_u32;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..end].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes().get(end) {
            Some(b'h') => 3600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(unit).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[end + 1..];
    }
    // The kernel's clock tells ages up to 2^31 ticks, 24 days where it ticks fastest.
    if text.is_empty() || total > LONGEST_TIMEOUT_SECS {
        return Err(wrong() + ", of at most 480h");
    }
    Ok(total)
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
        assert_eq!(config.timeouts, default.timeouts);
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
    fn times_are_written_as_kube_proxy_has_them() {
        for (text, seconds) in [("24h0m0s", 86_400), ("1h30m", 5400), ("45s", 45), ("0s", 0)] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "5",
            "5d",
            "h",
            "-5s",
            "1.5h",
            "481h",
            "99999999999s",
            "2000000h",
        ] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
        let flags = [
            "--conntrack-tcp-timeout-established=2h",
            "--conntrack-tcp-timeout-close-wait=3m",
            "--conntrack-udp-timeout=4s",
            "--conntrack-udp-timeout-stream=0s",
        ];
        let timeouts = Timeouts {
            tcp_established: 7200,
            tcp_close_wait: 180,
            udp: 4,
            udp_stream: 180,
        };
        assert_eq!(config(&flags).unwrap().timeouts, timeouts);
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
