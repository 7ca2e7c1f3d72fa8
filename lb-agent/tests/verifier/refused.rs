// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program that is broken on purpose: whoever loads it has to see what the verifier says.
//!
//! **Invariant:** the kernel itself refuses it; no error is made up here.

use aya::programs::{ProgramError, SchedClassifier};
use lb_agent::datapath::DatapathError;
use lb_agent::error_chain;
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::load::Loader;
use crate::support::can_run;
use crate::{fitted, open};

/// The program that is broken: it calls a helper and returns what that says.
const BROKEN: &str = "lb_clock";
/// `r2 = r1`, which leaves r0 without a value.
const NOT_THE_CALL: [u8; 8] = [0xbf, 0x12, 0, 0, 0, 0, 0, 0];
/// What the verifier says of a program that returns a register without a value.
const WORDS: &str = "R0 !read_ok";

#[test]
fn a_refused_program_is_reported_in_the_words_of_the_verifier() {
    if !can_run() {
        return;
    }
    let object = broken();
    let refused = Loader::new(&object, open(&object)).load(BROKEN);
    let report = refused.err().expect("the kernel refuses it").to_string();
    assert!(stands_alone(&report), "{report}");
    assert!(report.starts_with("lb_clock is refused: "), "{report}");
}

#[test]
fn the_agent_tells_what_the_verifier_says() {
    if !can_run() {
        return;
    }
    let error = load_by_aya(&broken()).expect_err("the kernel refuses it");
    let told = error_chain(&DatapathError::refused(BROKEN, error));
    assert!(stands_alone(&told), "{told}");
    assert!(told.starts_with("load program lb_clock: "), "{told}");
    assert!(told.lines().count() <= 41, "{told}");
}

/// True if the verifier's words are a line, rather than somewhere in an escaped one.
fn stands_alone(report: &str) -> bool {
    report.lines().any(|line| line.trim() == WORDS)
}

fn load_by_aya(object: &[u8]) -> Result<(), ProgramError> {
    let mut ebpf = open(object);
    let program = ebpf.program_mut(BROKEN).expect("the object has it");
    let program: &mut SchedClassifier = program.try_into()?;
    program.load()
}

/// The object with the first instruction of one program replaced.
fn broken() -> Vec<u8> {
    let mut object = fitted();
    let file = ElfFile64::<Endianness>::parse(&*object).expect("the object is one");
    let symbol = file.symbol_by_name(BROKEN).expect("the object has it");
    let section = symbol.section_index().expect("the program is in a section");
    let section = file.section_by_index(section).expect("which is there");
    let (start, _) = section.file_range().expect("and has bytes");
    let at = usize::try_from(start + symbol.address()).expect("addresses have 64 bits");
    object[at..at + NOT_THE_CALL.len()].copy_from_slice(&NOT_THE_CALL);
    object
}
