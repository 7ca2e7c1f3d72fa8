// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs helper programs (ip, bridge, nft, ethtool) with their input on standard input.
//!
//! **Invariant:** one process does a whole batch, so that a lab of ten hosts costs some
//! thirty processes and not three hundred; a failure carries the input that caused it.
//! Read next: `netns`, which says where the programs run.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::LabError;
use crate::netns::NetNs;

/// Runs a command with `input` and returns its standard output.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String, LabError> {
    let line = describe(command);
    let tool = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| not_started(&tool, &line, source))?;
    // The pipe is closed at the end of the statement, which is the batch's end.
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(LabError::io(format!("wait for `{line}`")))?;
    if !output.status.success() {
        return Err(LabError::Command {
            command: line,
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
            input: input.to_owned(),
        });
    }
    written.map_err(LabError::io(format!("write to `{line}`")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip -batch` with these lines inside a namespace.
pub(crate) fn ip(netns: &NetNs, lines: &str) -> Result<(), LabError> {
    feed(netns.command("ip")?.args(["-batch", "-"]), lines).map(drop)
}

/// Runs `ip -batch` for lines that only name namespaces (`netns add`, `netns del`).
pub(crate) fn ip_netns(lines: &str) -> Result<(), LabError> {
    feed(Command::new("ip").args(["-batch", "-"]), lines).map(drop)
}

/// Ends transmit checksum offload on a device of a namespace.
pub(crate) fn tx_offload_off(netns: &NetNs, device: &str) -> Result<(), LabError> {
    feed(
        netns.command("ethtool")?.args(["-K", device, "tx", "off"]),
        "",
    )
    .map(drop)
}

/// Why a command could not be started.
pub(crate) fn not_started(tool: &str, line: &str, source: io::Error) -> LabError {
    if source.kind() == io::ErrorKind::NotFound {
        return LabError::MissingTool {
            tool: tool.to_owned(),
        };
    }
    LabError::Io {
        doing: format!("start `{line}`"),
        source,
    }
}

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// A bound of the lab, so many times longer as `LB_SLOW` says: for machines that are emulated.
pub fn bound(time: Duration) -> Duration {
    let factor = std::env::var("LB_SLOW").ok();
    let factor = factor.and_then(|text| text.parse::<u32>().ok());
    time * factor.unwrap_or(1).max(1)
}

/// Waits without burning a core; every caller has its own event and its own bound.
pub(crate) fn pause(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}
