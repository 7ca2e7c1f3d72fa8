// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of what the workspace needs from a machine.
//!
//! One entry says what, for whom, how it is found and how it is got; nothing else knows of a tool.
//! **Invariant:** versions of what cargo installs are pinned here and built with `--locked`.
//! Read next: probe.rs and fix.rs.

use super::Scope::{self, Build, Demo, Fresh, Helm, Image, Lint, Program, Test, Vm};
use super::kernel;
use super::probe::{self, Found};

/// One thing a machine must have.
pub(crate) struct Need {
    /// What people call it; for programs, the name on the PATH.
    pub(crate) name: &'static str,
    /// What is impossible without it.
    pub(crate) purpose: &'static str,
    /// Who needs it.
    pub(crate) scopes: &'static [Scope],
    /// Looks for it.
    pub(crate) probe: fn(&Need) -> Found,
    /// The arguments that make a program tell its version.
    pub(crate) version: &'static [&'static str],
    /// How to get it.
    pub(crate) fix: Fix,
}

/// How a missing thing is got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Packages of Debian and its relatives.
    Apt(&'static [&'static str]),
    /// `cargo install` of a pinned version with these further arguments.
    Cargo {
        package: &'static str,
        version: &'static str,
        args: &'static [&'static str],
    },
    /// helm, from Python's package index.
    Chart,
    /// The validator of manifests, likewise.
    Validator,
    /// The distribution's compiler with BPF `core`, or else rustup's `rust-src`.
    BpfCore,
    /// The standard library for static programs, by rustup.
    StaticStd,
    /// Only a person can: the sentence says what.
    Person(&'static str),
}

impl Fix {
    /// Whether `--fix` can do it on some machine.
    pub(crate) fn is_automatic(self) -> bool {
        !matches!(self, Self::Person(_))
    }
}

impl Need {
    /// Whether somebody who wants `scope` needs this.
    pub(crate) fn serves(&self, scope: Scope) -> bool {
        scope == Scope::All || self.scopes.contains(&scope)
    }
}

/// A program of a Debian package.
const fn tool(
    name: &'static str,
    packages: &'static [&'static str],
    version: &'static [&'static str],
    scopes: &'static [Scope],
    purpose: &'static str,
) -> Need {
    Need {
        name,
        purpose,
        scopes,
        probe: probe::program,
        version,
        fix: Fix::Apt(packages),
    }
}

/// Something of the machine itself, which no package brings.
const fn machine(
    name: &'static str,
    probe: fn(&Need) -> Found,
    scopes: &'static [Scope],
    purpose: &'static str,
    sentence: &'static str,
) -> Need {
    Need {
        name,
        purpose,
        scopes,
        probe,
        version: &[],
        fix: Fix::Person(sentence),
    }
}

const EVERYONE: &[Scope] = &[Build, Demo, Test, Lint, Helm, Image, Program, Fresh, Vm];
const COMPILES: &[Scope] = &[Build, Demo, Test, Lint, Image, Program, Vm];
const RUNS: &[Scope] = &[Demo, Test];
const CHART: &[Scope] = &[Test, Helm];
/// What runs in virtual machines comes from this machine.
const RUNS_ANYWHERE: &[Scope] = &[Demo, Test, Vm];

/// Everything, in the order of `doctor`'s table.
pub(crate) const NEEDS: &[Need] = &[
    machine(
        "rust",
        probe::rust,
        EVERYONE,
        "compiling anything",
        "install Rust with rustup (rustup.rs), version 1.95 or later",
    ),
    tool(
        "cc",
        &["gcc", "libc6-dev"],
        &["--version"],
        COMPILES,
        "linking programs",
    ),
    Need {
        name: "BPF core",
        purpose: "compiling the BPF programs",
        scopes: COMPILES,
        probe: probe::bpf_core,
        version: &[],
        fix: Fix::BpfCore,
    },
    Need {
        name: "bpf-linker",
        purpose: "linking the BPF programs",
        scopes: COMPILES,
        probe: probe::bpf_linker,
        version: &["--version"],
        fix: Fix::Cargo {
            package: "bpf-linker",
            version: "0.10.3",
            args: &[],
        },
    },
    Need {
        name: "BPF clippy",
        purpose: "linting the BPF programs",
        scopes: &[Lint],
        probe: probe::bpf_clippy,
        version: &[],
        fix: Fix::Apt(&["rust-web-clippy"]),
    },
    Need {
        name: "cargo-nextest",
        // Minutes to compile: welcome, but `test` does without where it is missing.
        purpose: "running tests in a process each (optional)",
        scopes: &[],
        probe: probe::program,
        version: &["--version"],
        fix: Fix::Cargo {
            package: "cargo-nextest",
            version: "0.9.143",
            // Without its self-update, which is half of what it would compile.
            args: &["--no-default-features", "--features", "default-no-update"],
        },
    },
    Need {
        name: "cargo-deny",
        purpose: "checking licences and sources of dependencies",
        scopes: &[Lint],
        probe: probe::program,
        version: &["--version"],
        fix: Fix::Cargo {
            package: "cargo-deny",
            version: "0.20.2",
            args: &[],
        },
    },
    tool(
        "musl-gcc",
        &["musl-tools"],
        &["--version"],
        &[Image, Program],
        "C and assembly of static programs",
    ),
    Need {
        name: "static std",
        purpose: "compiling the image's program",
        scopes: &[Image, Program],
        probe: probe::static_std,
        version: &[],
        fix: Fix::StaticStd,
    },
    tool(
        "buildah",
        &["buildah"],
        &["--version"],
        &[Image],
        "making images without an engine",
    ),
    tool(
        "git",
        &["git"],
        &["--version"],
        &[Fresh],
        "cloning the committed state",
    ),
    tool(
        "ip",
        &["iproute2"],
        &["-V"],
        RUNS_ANYWHERE,
        "making nodes and pods",
    ),
    tool(
        "tc",
        &["iproute2"],
        &["-V"],
        &[Test, Vm],
        "filters at devices beside the agent's",
    ),
    tool(
        "nft",
        &["nftables"],
        &["--version"],
        RUNS_ANYWHERE,
        "what real nodes have in netfilter",
    ),
    tool(
        "iptables",
        &["iptables"],
        &["--version"],
        RUNS,
        "what real nodes have in netfilter",
    ),
    tool(
        "ethtool",
        &["ethtool"],
        &["--version"],
        RUNS_ANYWHERE,
        "checksum offload on and off",
    ),
    tool(
        "tcpdump",
        &["tcpdump"],
        &["--version"],
        RUNS_ANYWHERE,
        "captures: checksums, retransmissions",
    ),
    tool(
        "conntrack",
        &["conntrack"],
        &["--version"],
        RUNS,
        "reading netfilter's connections",
    ),
    tool(
        "bpftool",
        &["bpftool"],
        &["version"],
        RUNS_ANYWHERE,
        "showing the maps to a person",
    ),
    tool(
        "knotd",
        &["knot"],
        &["--version"],
        &[Test],
        "the DNS server behind the cluster's DNS address",
    ),
    tool(
        "kdig",
        &["knot-dnsutils"],
        &["--version"],
        &[Test],
        "asking it",
    ),
    Need {
        name: "python3",
        purpose: "getting and running what looks at the chart",
        scopes: CHART,
        probe: probe::python,
        version: &["--version"],
        fix: Fix::Apt(&["python3", "python3-venv"]),
    },
    Need {
        name: "helm",
        purpose: "rendering the chart",
        scopes: CHART,
        probe: probe::helm,
        version: &["version", "--short"],
        fix: Fix::Chart,
    },
    Need {
        name: "kubernetes-validate",
        purpose: "checking what it renders by the schemas of Kubernetes",
        scopes: CHART,
        probe: probe::validator,
        version: &[],
        fix: Fix::Validator,
    },
    tool(
        "promtool",
        &["prometheus"],
        &["--version"],
        &[Test],
        "checking the metrics",
    ),
    tool("curl", &["curl"], &["--version"], RUNS, "the demo's client"),
    tool(
        "debootstrap",
        &["debootstrap"],
        &["--version"],
        &[Fresh],
        "making a bare machine",
    ),
    tool(
        "unshare",
        &["util-linux"],
        &["--version"],
        &[Fresh, Vm],
        "mounts and networks of its own",
    ),
    tool(
        "qemu-system-x86_64",
        &["qemu-system-x86"],
        &["--version"],
        &[Vm],
        "virtual machines",
    ),
    tool(
        "busybox",
        &["busybox-static"],
        &["--help"],
        &[Vm],
        "their tools",
    ),
    tool(
        "cpio",
        &["cpio"],
        &["--version"],
        &[Vm],
        "their file system",
    ),
    tool(
        "modprobe",
        &["kmod"],
        &["--version"],
        &[Vm],
        "which modules they need",
    ),
    tool(
        "xz",
        &["xz-utils"],
        &["--version"],
        &[Vm],
        "unpacking kernels and modules",
    ),
    tool(
        "zstd",
        &["zstd"],
        &["--version"],
        &[Vm],
        "unpacking kernels and modules",
    ),
    tool("lz4", &["lz4"], &["--version"], &[Vm], "unpacking kernels"),
    tool(
        "strip",
        &["binutils"],
        &["--version"],
        &[Vm],
        "programs that are small enough",
    ),
    machine(
        "kernel BTF",
        probe::kernel_btf,
        RUNS,
        "typed maps, finding kernel types",
        "use a kernel with CONFIG_DEBUG_INFO_BTF (every current distribution's has it)",
    ),
    machine(
        "kernel features",
        kernel::features,
        RUNS,
        "the networks of nodes and pods",
        "load them (modprobe NAME), or first install all modules of the running kernel \
         (on Ubuntu the package linux-modules-extra-$(uname -r))",
    ),
    machine(
        "privileges",
        probe::privileges,
        RUNS,
        "loading programs, making namespaces",
        "run this as root (sudo -E env PATH=\"$PATH\" cargo xtask ...), in a container with --privileged",
    ),
    machine(
        "bpffs",
        probe::bpffs,
        RUNS,
        "pinning maps and programs",
        "use a kernel with CONFIG_BPF_SYSCALL",
    ),
    machine(
        "cgroup v2",
        probe::cgroup2,
        RUNS,
        "a control group for each node",
        "mount it: mount -t cgroup2 none /sys/fs/cgroup",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_listed_once() {
        let mut names: Vec<_> = NEEDS.iter().map(|need| need.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NEEDS.len());
    }

    #[test]
    fn what_compiles_the_agent_is_needed_by_demo_and_test() {
        for need in NEEDS.iter().filter(|need| need.serves(Build)) {
            assert!(need.serves(Demo) && need.serves(Test), "{}", need.name);
        }
    }

    #[test]
    fn a_sentence_for_a_person_is_one_line() {
        for need in NEEDS {
            if let Fix::Person(sentence) = need.fix {
                assert!(
                    !sentence.is_empty() && !sentence.contains('\n'),
                    "{}",
                    need.name
                );
            }
        }
    }
}
