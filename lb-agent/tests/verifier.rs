// SPDX-License-Identifier: MIT OR Apache-2.0
//! The verifier gate: every program loads on this kernel and stays within its budget.
//!
//! Prints a table per program: instructions in the object, instructions the verifier walked, states
//! it kept, rewritten and compiled size, bytes of stack along the deepest chain of calls; and the
//! row of the budget on a line of its own.
//! `lb-ebpf/verifier-budget.txt` holds the blessed numbers per kernel release. `LB_BLESS=1` writes
//! those of this kernel; what has grown takes `LB_BLESS_REASON="..."`, too. `LB_BLESS=print` leaves
//! the rows to whoever reads the output: for machines without these sources. With
//! `LB_REQUIRE_BUDGET=1` a kernel without rows is a failure.
//! **Invariant:** the budget to compare with is compiled in; only blessing touches a file.
//! Read next: `verifier/load.rs`, `verifier/stack.rs`, `verifier/budget.rs`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

#[path = "verifier/budget.rs"]
mod budget;
#[path = "verifier/chain.rs"]
mod chain;
#[path = "verifier/features.rs"]
mod features;
#[path = "verifier/load.rs"]
mod load;
#[path = "verifier/refused.rs"]
mod refused;
#[path = "verifier/stack.rs"]
mod stack;
#[path = "verifier/statistics.rs"]
mod statistics;
#[path = "support/mod.rs"]
mod support;
#[path = "support/syscall.rs"]
mod syscall;

use std::env;
use std::fs;

use aya::{Ebpf, EbpfLoader};
use lb_agent::datapath::fit;
use lb_common::abi::names;

use budget::{Budget, Row};
use load::Loader;
use statistics::Statistics;
use support::{OBJECT, can_run, say};

/// The blessed numbers, and where they lie in the sources.
const BUDGET: &str = include_str!("../../lb-ebpf/verifier-budget.txt");
const BUDGET_PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../lb-ebpf/verifier-budget.txt"
);
/// Bytes of stack for a chain of calls: the kernel's 512 for all frames together, less room for
/// one more small frame, which another compiler's inlining may add.
const STACK_MAX: u32 = 448;
/// Instructions the verifier may walk: three quarters of the kernel's `BPF_COMPLEXITY_LIMIT_INSNS`.
/// Kernels walk other paths, from 162,000 to 298,000 instructions of the same program; the rest is for
/// those that nobody has tried, and for other compilers.
const VERIFIED_MAX: u32 = 1_000_000 / 4 * 3;
/// Entries of every map here; the verifier does not care how many there are.
const ENTRIES: u32 = 8;

/// Ranges of masquerade ports in every place for one: the most that a node may have.
const MOST_PORTS: [u16; 8] = [1024, 29_999, 32_768, 40_000, 50_000, 59_999, 61_000, 65_535];

#[test]
fn every_program_loads_and_stays_within_its_budget() {
    if !can_run() {
        return;
    }
    let measured = chain::programs(OBJECT).expect("the object's stack can be followed");
    let object = fitted();
    let loader = Loader::new(&object, open(&object));
    assert_eq!(
        loader.programs(),
        measured.keys().cloned().collect::<Vec<_>>(),
        "programs loaded and measured"
    );

    let mut table = Vec::new();
    let mut rows = Vec::new();
    for (program, chain) in measured {
        let loaded = loader.load(&program);
        let loaded = loaded.unwrap_or_else(|refused| panic!("{refused}"));
        let Statistics {
            verified,
            states,
            stacks,
        } = loaded.statistics;
        say(&format!("{program}: stack of each function: {stacks}"));
        table.push(format!(
            "{program:<20} {:>8} {verified:>9} {states:>7} {:>10} {:>8} {:>6}  {:?}",
            chain.instructions, loaded.rewritten, loaded.jited, chain.stack, chain.frames,
        ));
        rows.push(Row {
            program,
            verified,
            states,
            stack: chain.stack,
        });
    }
    say(&format!(
        "{:<20} {:>8} {:>9} {:>7} {:>10} {:>8} {:>6}  frames",
        "program", "insns", "verified", "states", "rewritten", "jited", "stack"
    ));
    say(&table.join("\n"));
    let kernel = kernel();
    let next = cfg!(feature = "layout-next");
    if !next {
        say(&print(&kernel, &rows));
    }
    let beyond = beyond_limits(&rows);
    assert!(beyond.is_empty(), "{}", beyond.join("\n"));
    if next {
        say("the numbers are those of the build without `layout-next`: only the hard limits apply");
    } else {
        check(&kernel, &rows);
    }
}

/// The rows as they are found in the output of a virtual machine, whatever else this run does.
fn print(kernel: &str, rows: &[Row]) -> String {
    let lines: Vec<_> = rows.iter().map(|row| row.printed(kernel)).collect();
    lines.join("\n")
}

/// What no blessing allows.
fn beyond_limits(rows: &[Row]) -> Vec<String> {
    let mut beyond = Vec::new();
    for row in rows {
        let Row {
            program,
            verified,
            stack,
            ..
        } = row;
        if *stack > STACK_MAX {
            beyond.push(format!(
                "{program}: {stack} bytes of stack, limit {STACK_MAX}"
            ));
        }
        if *verified > VERIFIED_MAX {
            beyond.push(format!(
                "{program}: {verified} verified instructions, limit {VERIFIED_MAX}"
            ));
        }
    }
    beyond
}

/// Compares with the blessed numbers, or blesses these.
fn check(kernel: &str, rows: &[Row]) {
    match env::var("LB_BLESS").as_deref() {
        Ok("print") => say("printed, not compared: LB_BLESS=print"),
        Ok("1") => {
            bless(kernel, rows).unwrap_or_else(|sentence| panic!("{sentence}"));
            say(&format!("blessed for kernel {kernel}"));
        }
        _ => compare(kernel, rows),
    }
}

fn bless(kernel: &str, rows: &[Row]) -> Result<(), String> {
    let failed = |what, error| format!("{what} {BUDGET_PATH}: {error}");
    let text = fs::read_to_string(BUDGET_PATH).map_err(|error| failed("read", error))?;
    let mut budget = Budget::parse(&text)?;
    budget.bless(kernel, rows, env::var("LB_BLESS_REASON").ok().as_deref())?;
    fs::write(BUDGET_PATH, budget.to_string()).map_err(|error| failed("write", error))
}

fn compare(kernel: &str, rows: &[Row]) {
    let budget = Budget::parse(BUDGET).unwrap_or_else(|sentence| panic!("{sentence}"));
    if budget.knows(kernel) {
        let wrong = budget.compare(kernel, rows);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        return;
    }
    let missing = format!(
        "kernel {kernel} has no rows in the budget (`cargo xtask bless verifier` there adds them)"
    );
    assert!(
        env::var_os("LB_REQUIRE_BUDGET").is_none_or(|value| value != "1"),
        "{missing}, and LB_REQUIRE_BUDGET=1"
    );
    say(&format!("{missing}: only the hard limits apply"));
    // For whoever shows the result: a pass with nothing to compare with is less than a pass.
    say(&format!("VM-NOTE no budget for {kernel} yet"));
}

/// An object with small maps, its programs not loaded yet.
fn open(object: &[u8]) -> Ebpf {
    let mut loader = EbpfLoader::new();
    for name in names::ALL
        .iter()
        .filter(|name| ![names::REASONS, names::RECENT, names::FRONTEND_PORTS].contains(*name))
    {
        loader.map_max_entries(name, ENTRIES);
    }
    loader.override_global("SOCKETS_OF_PODS", &1_u32, true);
    loader.override_global("SNAT_PORTS", &MOST_PORTS, true);
    // As while flows move from an older layout, which is the most that such a build has to do.
    #[cfg(feature = "layout-next")]
    loader.override_global("BRIDGING", &1_u32, true);
    let object = fit(&mut loader, object);
    loader.load(&object).expect("the maps can be made")
}

/// The object as this kernel takes it.
fn fitted() -> Vec<u8> {
    fit(&mut EbpfLoader::new(), OBJECT).into_owned()
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
