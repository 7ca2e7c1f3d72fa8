// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flags that all verbs share which look at the pinned maps.
//!
//! **Invariant:** nothing but looking: no verb that takes these flags writes anything.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::objects::{Found, NamesArgs};
use super::output::Output;
use crate::datapath::Look;
use crate::{config, error_chain};

/// The flags.
#[derive(Clone, Debug, Args)]
pub(super) struct LookArgs {
    /// Where the agent pins maps and programs.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    bpffs: PathBuf,
    #[command(flatten)]
    names: NamesArgs,
    /// How to write it; the JSON is described by lb-agent/inspect.schema.json.
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

impl LookArgs {
    /// The pinned maps.
    pub(super) fn open(&self) -> Result<Look, String> {
        Look::open(&self.bpffs).map_err(|e| error_chain(&e))
    }

    /// What names are taken from, if there is anything.
    pub(super) fn objects(&self) -> Result<Option<Found>, String> {
        self.names.load()
    }
}

/// An address alone, or with a port behind it (`[fd00::1]:80` for IPv6).
pub(super) fn parse_address(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(at) => Ok((at.ip(), Some(at.port()))),
        Err(_) => {
            Err("give an address such as 10.0.1.175 or fd00::1, or with a port 10.0.1.175:80 or [fd00::1]:80".to_owned())
        }
    }
}

/// Bytes as people read them.
pub(super) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scale = 0;
    let mut rest = bytes;
    while rest >= 10 * 1024 && scale + 1 < UNITS.len() {
        rest = (rest + 512) / 1024;
        scale += 1;
    }
    format!("{rest} {}", UNITS[scale])
}

/// A time as people read it: `45s`, `3m10s`, `2h5m`, `3d4h`.
pub(super) fn time_text(secs: u32) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86_400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", secs % 60),
        () => format!("{secs}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_a_port() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(parse_address("10.0.1.175"), Ok((ip("10.0.1.175"), None)));
        assert_eq!(
            parse_address("10.0.1.175:80"),
            Ok((ip("10.0.1.175"), Some(80)))
        );
        assert_eq!(parse_address("fd00::1"), Ok((ip("fd00::1"), None)));
        assert_eq!(parse_address("[fd00::1]:53"), Ok((ip("fd00::1"), Some(53))));
        assert!(parse_address("web").is_err());
    }

    #[test]
    fn numbers_are_short_enough_to_read() {
        let all = [0, 999, 10_239, 10_240, 1_500_000, 5 << 40].map(bytes_text);
        assert_eq!(
            all,
            ["0 B", "999 B", "10239 B", "10 KiB", "1465 KiB", "5120 GiB"]
        );
        let all = [0, 59, 61, 3_700, 100_000].map(time_text);
        assert_eq!(all, ["0s", "59s", "1m1s", "1h1m", "1d3h"]);
    }
}
