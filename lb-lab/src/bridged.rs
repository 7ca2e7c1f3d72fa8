// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether bridged packets pass netfilter: the settings that `br_netfilter` gives a namespace.
//!
//! On many systems it is a module, and nothing loads it by itself.
//! **Invariant:** it is loaded only for a lab that asks for it; without it, bridged packets do
//! not pass netfilter, which is all that the other labs want. Read next: `node`, `underlay`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::LabError;
use crate::netns::NetNs;

/// Its settings, seen from the namespace of the reader; missing as long as it is not loaded.
const DIR: &str = "/proc/sys/net/bridge";

/// Loads the module if it is one and is not there yet.
pub(crate) fn load() -> Result<(), LabError> {
    let dir = Path::new(DIR);
    if !dir.exists() {
        // Whether it helped is seen by the directory, so the answer does not matter.
        drop(
            Command::new("modprobe")
                .args(["-q", "br_netfilter"])
                .status(),
        );
    }
    if dir.exists() {
        Ok(())
    } else {
        Err(LabError::NoBrNetfilter)
    }
}

/// Lets IPv4 and IPv6 packets on bridges of a namespace pass netfilter, or not.
pub(crate) fn pass_netfilter(netns: &NetNs, on: bool) -> Result<(), LabError> {
    netns.run(|| write(Path::new(DIR), on))?
}

fn write(dir: &Path, on: bool) -> Result<(), LabError> {
    if !dir.exists() {
        return if on {
            Err(LabError::NoBrNetfilter)
        } else {
            Ok(())
        };
    }
    let value = if on { "1" } else { "0" };
    for (name, value) in [
        ("bridge-nf-call-iptables", value),
        ("bridge-nf-call-ip6tables", value),
        ("bridge-nf-call-arptables", "0"),
    ] {
        let path = dir.join(name);
        fs::write(&path, value).map_err(LabError::file("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_module_only_a_lab_that_asks_for_it_fails_and_says_how_to_load_it() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("bridge");
        write(&missing, false).unwrap();
        let error = write(&missing, true).unwrap_err();
        assert!(error.to_string().contains("modprobe br_netfilter"));
    }

    #[test]
    fn with_the_module_every_switch_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for (on, values) in [(true, ["1", "1", "0"]), (false, ["0", "0", "0"])] {
            write(dir.path(), on).unwrap();
            let names = ["iptables", "ip6tables", "arptables"];
            let read = |name| fs::read_to_string(dir.path().join(format!("bridge-nf-call-{name}")));
            assert_eq!(names.map(|name| read(name).unwrap()), values);
        }
    }
}
