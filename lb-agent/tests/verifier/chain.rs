// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which functions an object holds, who calls whom, and the deepest chain from each program.
//!
//! A function whose address is taken counts as called: it is a callback that runs on the same
//! stack.
//! **Invariant:** a call that leads nowhere known is an error. Read next: `stack.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use object::read::elf::ElfFile64;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SymbolKind,
};

use crate::stack::{CALL, Insn, LOAD_IMM64, frame_depth, rounded};

/// The verifier's `MAX_CALL_FRAMES`.
const FRAMES_MAX: usize = 8;

/// What one program takes of the object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Instruction words of the program and all it calls.
    pub(crate) instructions: usize,
    /// Bytes of stack along the deepest chain of calls.
    pub(crate) stack: u32,
    /// Rounded frames of that chain, outermost first.
    pub(crate) frames: Vec<u32>,
}

/// One function: its own frame, and whom it calls.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) instructions: usize,
    pub(crate) frame: u32,
    pub(crate) calls: BTreeSet<usize>,
}

/// A function's place: section and offset in it.
type Place = (SectionIndex, u64);

/// The programs of an object by name: its global functions outside of `.text`.
pub(crate) fn programs(bytes: &[u8]) -> Result<BTreeMap<String, Program>, String> {
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(|e| format!("no ELF object: {e}"))?;
    let mut names = Vec::new();
    let mut places: HashMap<Place, usize> = HashMap::new();
    let mut codes = Vec::new();
    for symbol in file.symbols() {
        let (SymbolKind::Text, Some(section)) = (symbol.kind(), symbol.section_index()) else {
            continue;
        };
        let section = file.section_by_index(section).map_err(|e| e.to_string())?;
        let code = section
            .data_range(symbol.address(), symbol.size())
            .map_err(|e| e.to_string())?
            .ok_or_else(|| format!("{:?} is cut off", symbol.name()))?;
        let name = symbol.name().map_err(|e| e.to_string())?.to_owned();
        let is_program = symbol.is_global() && section.name() != Ok(".text");
        places.insert((section.index(), symbol.address()), codes.len());
        names.push((name, is_program));
        codes.push(((section.index(), symbol.address()), Insn::decode(code)));
    }
    let mut functions = Vec::new();
    for ((name, _), (place, code)) in names.iter().zip(&codes) {
        let targets = relocations(&file, place.0)?;
        functions.push(Function {
            instructions: code.len(),
            frame: rounded(frame_depth(code).map_err(|e| format!("{name}: {e}"))?),
            calls: calls(*place, code, &targets, &places).map_err(|e| format!("{name}: {e}"))?,
        });
    }
    let mut programs = BTreeMap::new();
    for (index, (name, is_program)) in names.into_iter().enumerate() {
        if is_program {
            let program = program(&functions, index).map_err(|e| format!("{name}: {e}"))?;
            programs.insert(name, program);
        }
    }
    Ok(programs)
}

/// Where the relocations of a section lead, by offset: a function's section and address, and
/// whether it is one at all.
fn relocations(
    file: &ElfFile64<'_, Endianness>,
    section: SectionIndex,
) -> Result<HashMap<u64, Option<Place>>, String> {
    let section = file.section_by_index(section).map_err(|e| e.to_string())?;
    let mut targets = HashMap::new();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        let symbol = file.symbol_by_index(index).map_err(|e| e.to_string())?;
        let in_code = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
            .is_some_and(|section| section.kind() == object::SectionKind::Text);
        let is_code = in_code && matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Section);
        let place = symbol.section_index().filter(|_| is_code);
        targets.insert(offset, place.map(|section| (section, symbol.address())));
    }
    Ok(targets)
}

/// The functions that a piece of code calls or takes the address of.
fn calls(
    (section, start): Place,
    code: &[Insn],
    targets: &HashMap<u64, Option<Place>>,
    places: &HashMap<Place, usize>,
) -> Result<BTreeSet<usize>, String> {
    const BETWEEN_FUNCTIONS: usize = 1;
    const FUNCTION_ADDRESS: usize = 4;
    let mut called = BTreeSet::new();
    for (index, insn) in code.iter().enumerate() {
        let offset = start + 8 * index as u64;
        let target = targets.get(&offset);
        let distance = 8 * (i64::from(insn.imm) + 1);
        let place = match (insn.op, insn.src, target) {
            (CALL, BETWEEN_FUNCTIONS, Some(Some(place))) => {
                (place.0, place.1.wrapping_add_signed(distance))
            }
            (CALL, BETWEEN_FUNCTIONS, None) => (section, offset.wrapping_add_signed(distance)),
            (LOAD_IMM64, _, Some(Some(place))) => {
                (place.0, place.1.wrapping_add_signed(insn.imm.into()))
            }
            (CALL, BETWEEN_FUNCTIONS, Some(None)) | (LOAD_IMM64, FUNCTION_ADDRESS, _) => {
                return Err(format!("instruction {index} calls what is no function"));
            }
            _ => continue,
        };
        let function = places
            .get(&place)
            .ok_or_else(|| format!("instruction {index} calls {place:?}, where nothing starts"))?;
        called.insert(*function);
    }
    Ok(called)
}

/// What the function at `root` takes together with all it calls.
pub(crate) fn program(functions: &[Function], root: usize) -> Result<Program, String> {
    let mut reached = BTreeSet::new();
    let frames = deepest(functions, root, &mut Vec::new(), &mut reached)?;
    Ok(Program {
        instructions: reached.iter().map(|&f| functions[f].instructions).sum(),
        stack: frames.iter().sum(),
        frames,
    })
}

fn deepest(
    functions: &[Function],
    at: usize,
    path: &mut Vec<usize>,
    reached: &mut BTreeSet<usize>,
) -> Result<Vec<u32>, String> {
    if path.contains(&at) {
        return Err("functions call each other in a circle".to_owned());
    }
    path.push(at);
    if path.len() > FRAMES_MAX {
        return Err(format!("more than {FRAMES_MAX} frames in a chain"));
    }
    reached.insert(at);
    let mut below = Vec::new();
    for &callee in &functions[at].calls {
        let frames = deepest(functions, callee, path, reached)?;
        if frames.iter().sum::<u32>() > below.iter().sum::<u32>() {
            below = frames;
        }
    }
    path.pop();
    below.insert(0, functions[at].frame);
    Ok(below)
}
