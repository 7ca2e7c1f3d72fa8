// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every test that loads the programs needs: the object, the privileges, a namespace.
//!
//! A machine that may not load BPF gets a printed reason and no result; with `LB_REQUIRE_BPF=1`
//! that is a failure.
//! **Invariant:** nothing of the machine's own network namespace is used or changed.

use std::env;
use std::io;

use aya::include_bytes_aligned;
use nix::sched::{CloneFlags, unshare};

/// The programs, as the build script compiled them.
pub(crate) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// Takes this thread into a network namespace of its own. False, with the reason printed, when
/// the machine does not let the test run.
pub(crate) fn can_run() -> bool {
    match prepare() {
        Ok(()) => true,
        Err(why) => {
            assert!(
                env::var_os("LB_REQUIRE_BPF").is_none_or(|value| value != "1"),
                "{why}, and LB_REQUIRE_BPF=1"
            );
            say(&format!("not run: {why}"));
            false
        }
    }
}

fn prepare() -> Result<(), String> {
    if OBJECT.is_empty() {
        return Err("the programs were not compiled (LB_SKIP_BPF)".to_owned());
    }
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| format!("a network namespace cannot be made here ({errno})"))?;
    aya::sys::is_program_supported(aya::programs::ProgramType::SchedClassifier)
        .map_err(|error| format!("BPF programs cannot be loaded here ({error})"))
        .and_then(|supported| {
            if supported {
                Ok(())
            } else {
                Err("BPF programs cannot be loaded here (no CAP_BPF and CAP_NET_ADMIN?)".to_owned())
            }
        })
}

/// Writes a line for the person who runs the tests.
pub(crate) fn say(line: &str) {
    use io::Write as _;
    writeln!(io::stdout().lock(), "{line}").expect("stdout is open");
}
