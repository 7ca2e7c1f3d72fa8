// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong while a lab is made or used.
//!
//! **Invariant:** every error says what was being done; a failed helper program brings the
//! text it wrote. Read next: `run`, where most of them arise.

use std::io;
use std::path::PathBuf;

/// An error of the lab; the message says what was being done, the source why it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The caller is not root: run as root, in a container with full privileges at least.
    #[error("make network namespaces: needs root (effective user id 0)")]
    NotRoot,
    /// A program is not installed: install it (`cargo xtask doctor --fix` does).
    #[error("run {tool}: the program is not installed")]
    MissingTool {
        /// The program's name.
        tool: String,
    },
    /// A helper program answered with a failure.
    #[error("run `{command}`: {status}\n{stderr}\ninput was:\n{input}")]
    Command {
        /// The command line.
        command: String,
        /// The exit status as text.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
        /// What it was given on standard input.
        input: String,
    },
    /// An operation on a file, socket or process failed.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A name cannot be used: choose another.
    #[error("name {name:?}: {why}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No cgroup v2 hierarchy is mounted: mount one (`mount -t cgroup2 none DIR`).
    #[error("find a cgroup v2 mount in /proc/mounts: there is none")]
    NoCgroup2,
    /// Bridged packets are to pass netfilter, and the kernel has nothing for it at the moment:
    /// load the module, or choose a topology without it.
    #[error(
        "let bridged packets pass netfilter: br_netfilter is not loaded: modprobe br_netfilter"
    )]
    NoBrNetfilter,
    /// The lab has been removed (dropped, or a signal arrived): make a new one.
    #[error("use lab {id}: it has been removed")]
    Closed {
        /// The lab's id.
        id: String,
    },
    /// Something did not happen within its bound; `log` is the end of what it wrote.
    #[error("wait for {what}: not within {millis} ms\n{log}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The bound in milliseconds.
        millis: u128,
        /// The end of the process's log, empty if it has none.
        log: String,
    },
    /// A process ended while it was still needed.
    #[error("{what} ended early: {status}\n{log}")]
    Ended {
        /// The process.
        what: String,
        /// Its exit status as text.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// A capture file or a server's answer does not follow its format.
    #[error("read {what}: {why}")]
    Malformed {
        /// What was being read.
        what: String,
        /// What is wrong.
        why: String,
    },
}

impl LabError {
    /// An adapter for `map_err` that keeps what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// As [`LabError::io`], for the error type of system calls.
    pub(crate) fn sys(doing: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let doing = doing.into();
        move |errno| Self::Io {
            doing,
            source: errno.into(),
        }
    }

    /// A file could not be written or read.
    pub(crate) fn file(verb: &str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path: PathBuf = path.into();
        Self::io(format!("{verb} {}", path.display()))
    }
}
