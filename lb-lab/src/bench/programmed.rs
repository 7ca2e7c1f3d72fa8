// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the maps hold what the agent says they hold: `bpftool` counts.
//!
//! **Invariant:** another count than that of the generated cluster is an error; where `bpftool` is not
//! installed nothing is counted, and the result says so.
//! Read next: `cluster`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Options;
use super::process::Process;
use crate::error::LabError;

/// How a dump begins each entry.
const ENTRY: &str = "\"key\":";

/// Counts the backends, and that there is a frontend for each Service.
pub(super) fn count(
    options: &Options,
    services: u32,
    pins: &Path,
) -> Result<Option<u64>, LabError> {
    let big = u64::from(options.big_service);
    let (services, endpoints) = (u64::from(services), u64::from(options.endpoints));
    let wanted = [
        ("FRONTENDS_V4", services + u64::from(big > 0)),
        ("BACKENDS_V4", services * endpoints + big),
    ];
    for (map, wanted) in wanted {
        let Some(found) = entries(&pins.join(map))? else {
            return Ok(None);
        };
        if found != wanted {
            return Err(LabError::Malformed {
                what: map.to_owned(),
                why: format!("it has {found} entries and should have {wanted}"),
            });
        }
    }
    Ok(Some(services * endpoints + big))
}

fn entries(map: &Path) -> Result<Option<u64>, LabError> {
    let mut command = Command::new("bpftool");
    command.args(["map", "dump", "pinned"]).arg(map);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = match Process::start(&mut command) {
        Err(LabError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        started => started?,
    };
    let Some(output) = process.child.stdout.take() else {
        return Ok(None);
    };
    let mut found = 0;
    for line in BufReader::new(output).lines() {
        let line = line.map_err(LabError::io("read what bpftool says"))?;
        found += u64::from(
            line.trim_start_matches([' ', '\t', '{', '['])
                .starts_with(ENTRY),
        );
    }
    Ok(Some(found))
}
