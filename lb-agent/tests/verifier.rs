// SPDX-License-Identifier: MIT OR Apache-2.0
//! The verifier gate: every program loads on this kernel and stays within its budget.
//!
//! Prints a table per program: instructions in the object, instructions the verifier walked,
//! translated and compiled size, bytes of stack along the deepest chain of calls.
//! `lb-ebpf/verifier-budget.txt` holds the blessed numbers per kernel release; `LB_BLESS=1`
//! rewrites those of this kernel.
//! Read next: `verifier/stack.rs`, `verifier/budget.rs`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

#[path = "verifier/budget.rs"]
mod budget;
#[path = "verifier/chain.rs"]
mod chain;
#[path = "verifier/stack.rs"]
mod stack;
#[path = "support/mod.rs"]
mod support;

use std::env;
use std::fs;

use aya::programs::{Program, ProgramInfo};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::names;

use budget::{Budget, Row};
use support::{OBJECT, can_run, say};

/// Bytes of stack for a chain of calls: the kernel's 512 for all frames together, less room for
/// one more small frame, which another compiler's inlining may add.
const STACK_MAX: u32 = 448;
/// Instructions the verifier may walk: half of the kernel's `BPF_COMPLEXITY_LIMIT_INSNS`,
/// because other kernels walk other paths.
const VERIFIED_MAX: u32 = 1_000_000 / 2;
/// Entries of every map here; the verifier does not care how many there are.
const ENTRIES: u32 = 8;

/// A program as the kernel has it.
struct Loaded {
    name: String,
    info: ProgramInfo,
}

#[test]
fn every_program_loads_and_stays_within_its_budget() {
    if !can_run() {
        return;
    }
    let measured = chain::programs(OBJECT).expect("the object's stack can be followed");
    for (name, program) in &measured {
        say(&format!("{name}: frames {:?}", program.frames));
    }
    let mut ebpf = open();
    let loaded = load(&mut ebpf);
    let names: Vec<_> = loaded.iter().map(|program| &program.name).collect();
    assert_eq!(
        names,
        measured.keys().collect::<Vec<_>>(),
        "programs loaded and measured"
    );

    say(&format!(
        "{:<20} {:>8} {:>9} {:>10} {:>8} {:>6}  frames",
        "program", "insns", "verified", "translated", "jited", "stack"
    ));
    let mut rows = Vec::new();
    for Loaded { name, info } in loaded {
        let chain = &measured[&name];
        let verified = info.verified_instruction_count();
        say(&format!(
            "{name:<20} {:>8} {:>9} {:>10} {:>8} {:>6}  {:?}",
            chain.instructions,
            verified.map_or("?".to_owned(), |count| count.to_string()),
            info.size_translated().unwrap_or(0),
            info.size_jitted(),
            chain.stack,
            chain.frames,
        ));
        rows.push(Row {
            verified: verified.unwrap_or(0),
            stack: chain.stack,
            program: name,
        });
    }
    check(&rows);
}

/// Compares with the limits and with the blessed numbers, or blesses these.
fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    for row in rows {
        if row.stack > STACK_MAX {
            wrong.push(format!(
                "{}: {} bytes of stack, limit {STACK_MAX}",
                row.program, row.stack
            ));
        }
        if row.verified > VERIFIED_MAX {
            let Row {
                program, verified, ..
            } = row;
            wrong.push(format!(
                "{program}: {verified} verified instructions, limit {VERIFIED_MAX}"
            ));
        }
    }
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../lb-ebpf/verifier-budget.txt"
    );
    if cfg!(feature = "layout-next") {
        say("the numbers are those of the build without `layout-next`: only the hard limits apply");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        return;
    }
    let kernel = kernel();
    let mut budget = Budget::parse(&fs::read_to_string(path).unwrap_or_default());
    if env::var_os("LB_BLESS").is_some_and(|value| value == "1") {
        assert!(wrong.is_empty(), "not blessed:\n{}", wrong.join("\n"));
        budget.bless(&kernel, rows);
        fs::write(path, budget.to_string()).expect("the budget can be written");
        say(&format!("blessed for kernel {kernel}"));
    } else if budget.knows(&kernel) {
        wrong.extend(budget.compare(&kernel, rows));
    } else {
        say(&format!(
            "kernel {kernel} has no rows in the budget: only the hard limits apply \
             (LB_BLESS=1 adds it)"
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The object with small maps, its programs not loaded yet.
fn open() -> Ebpf {
    let mut loader = EbpfLoader::new();
    for name in names::ALL
        .iter()
        .filter(|name| ![names::REASONS, names::RECENT, names::FRONTEND_PORTS].contains(*name))
    {
        loader.map_max_entries(name, ENTRIES);
    }
    // As on a kernel that has the helper: what is left out elsewhere is less, not more.
    loader.override_global("CAN_SET_ERROR", &1_u32, true);
    loader.override_global("SOCKETS_OF_PODS", &1_u32, true);
    // As while flows move from an older layout, which is the most that such a build has to do.
    #[cfg(feature = "layout-next")]
    loader.override_global("BRIDGING", &1_u32, true);
    loader.load(OBJECT).expect("the maps can be made")
}

/// Loads every program of the object, in order of their names.
fn load(ebpf: &mut Ebpf) -> Vec<Loaded> {
    let mut loaded: Vec<_> = ebpf
        .programs_mut()
        .map(|(name, program)| {
            // The verifier's log is in the error.
            let verdict = if let Program::SchedClassifier(program) = program {
                program.load()
            } else if let Program::CgroupSockAddr(program) = program {
                program.load()
            } else {
                panic!(
                    "teach this test to load {name}, a {:?}",
                    program.prog_type()
                )
            };
            verdict.expect("the program loads");
            Loaded {
                name: name.to_owned(),
                info: program.info().expect("a loaded program has information"),
            }
        })
        .collect();
    loaded.sort_by(|a, b| a.name.cmp(&b.name));
    loaded
}

/// `major.minor` of the running kernel.
fn kernel() -> String {
    let uname = nix::sys::utsname::uname().expect("the kernel tells its release");
    let release = uname.release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']);
    format!(
        "{}.{}",
        parts.next().unwrap_or("?"),
        parts.next().unwrap_or("?")
    )
}
