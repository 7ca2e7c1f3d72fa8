// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same tests on the machine's own kernel, without a machine.
//!
//! **Invariant:** what this kernel has not got is found out by trying, and named; everything else runs.
//! Read next: run.sh.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::stage::{Content, text};
use super::suites::{Chosen, Test};
use crate::process::command;

/// The suite whose tests need modules.
const NEEDS_MODULES: &str = "vm";
/// The number of the protocol, as IANA has it.
const SCTP: i32 = 132;
/// What a kernel says of a protocol, or a kind of socket, that it does not know.
const EPROTONOSUPPORT: i32 = 93;
const ESOCKTNOSUPPORT: i32 = 94;

/// Runs the tests in the folder that is its name; what a machine says last is said here, too.
const SCRIPT: &str =
    r#"cat "$0/lacks"; sh "$0/run.sh" && echo "VM-END $(cut -d ' ' -f 1 /proc/uptime)""#;

/// A test that cannot run here, and what the kernel has not got.
pub(super) type Lacking<'a> = (&'a Test, &'static str);

/// Tests whose subject this kernel does not know.
pub(super) fn lacking(chosen: &Chosen) -> Result<Vec<Lacking<'_>>> {
    if chosen.suite.name != NEEDS_MODULES {
        return Ok(Vec::new());
    }
    let (sctp, vlan) = (has_sctp()?, has_vlan()?);
    let lacks = |test: &&Test| match test.name.split("::").next() {
        Some("sctp") if !sctp => Some("SCTP"),
        Some("vlan") if !vlan => Some("VLAN"),
        _ => None,
    };
    let tests = chosen.tests.iter();
    Ok(tests
        .filter_map(|test| Some((test, lacks(&test)?)))
        .collect())
}

/// Tries to open a socket, for which the kernel loads the module that it may have.
fn has_sctp() -> Result<bool> {
    match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(SCTP))) {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(EPROTONOSUPPORT | ESOCKTNOSUPPORT)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).context("find out whether this kernel has SCTP: open a socket"),
    }
}

/// Tries to make a device, in a network namespace that is gone afterwards.
fn has_vlan() -> Result<bool> {
    let mut add = command("unshare");
    // Both ends of the pair can carry one; loopback cannot, on any kernel.
    let script = "ip link add lb-parent type veth peer name lb-other 2> /dev/null \
                  || { echo 'no pair of devices can be made' >&2; exit 1; }
                  exec ip link add link lb-parent name lb-vlan type vlan id 5";
    add.args(["--net", "sh", "-c", script]).env("LC_ALL", "C");
    let output = add.output();
    let output = output.context("find out whether this kernel has VLAN: start unshare")?;
    vlan_is_there(
        output.status.success(),
        &String::from_utf8_lossy(&output.stderr),
    )
}

/// What `ip` said when it was to make a VLAN device: only a kernel that does not know the kind lacks it.
fn vlan_is_there(made: bool, said: &str) -> Result<bool> {
    if made {
        return Ok(true);
    }
    if ["Unknown device type", "not supported"]
        .iter()
        .any(|words| said.contains(words))
    {
        return Ok(false);
    }
    bail!(
        "cannot find out whether this kernel has VLAN: run this as root, with the right to make network \
         namespaces; a trial with `unshare --net` said: {}",
        said.trim()
    )
}

/// The command that runs the tests, from a folder that is made anew.
pub(super) fn script(
    content: &Content<'_>,
    lacking: &[Lacking<'_>],
    dir: &Path,
) -> Result<Command> {
    let tests: PathBuf = dir.join("tests");
    if tests.exists() {
        fs::remove_dir_all(&tests).with_context(|| format!("remove {}", tests.display()))?;
    }
    fs::create_dir_all(&tests).with_context(|| format!("make {}", tests.display()))?;
    let left_out: Vec<&Test> = lacking.iter().map(|(test, _)| *test).collect();
    content.write(&tests, &left_out)?;
    // Said where all else is said, so that the log has it, too.
    let said = lacking
        .iter()
        .map(|(test, what)| format!("VM-LACKS {} {what}\n", test.full_name()));
    text(&tests, "lacks", &said.collect::<String>())?;
    let mut run = command("sh");
    run.args(["-c", SCRIPT]).arg(&tests);
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_own_word_is_a_lack() {
        assert!(vlan_is_there(true, "").unwrap());
        for said in [
            "Error: Unknown device type.",
            "RTNETLINK answers: Operation not supported",
        ] {
            assert!(!vlan_is_there(false, said).unwrap(), "{said}");
        }
        for said in [
            "unshare: unshare failed: Operation not permitted",
            "sh: 1: ip: not found",
            "",
        ] {
            assert!(vlan_is_there(false, said).is_err(), "{said}");
        }
    }
}
