// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent says of a right that it lacks, on kernels that ask for it.

use lb_agent::datapath::{DatapathConfig, features};
use nix::sys::resource::{Resource, setrlimit};

use crate::capability::give_up;
use crate::support::{Agent, on_a_node};

/// Bit of linux/capability.h.
const SYS_RESOURCE: u32 = 24;
/// What a container is allowed to lock, as most are set up.
const LOCKED_MAX: u64 = 64 << 10;

#[test]
fn memory_that_may_not_be_locked_is_told_before_anything_is_made() {
    on_a_node(|bpffs| {
        setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED_MAX, LOCKED_MAX).unwrap();
        give_up(SYS_RESOURCE).unwrap();
        let mut found = features().into_iter();
        let memory = found.find(|found| found.feature == "memory by cgroup");
        let counts_otherwise = memory.unwrap().here;
        match Agent::try_start(DatapathConfig::new(bpffs)) {
            Ok(agent) => {
                assert!(counts_otherwise, "maps were made all the same");
                agent.stop();
            }
            Err(error) => {
                assert!(!counts_otherwise, "{error}");
                assert!(error.to_string().contains("raiseMemlock"), "{error}");
                assert!(!bpffs.exists(), "nothing is made");
            }
        }
    });
}
