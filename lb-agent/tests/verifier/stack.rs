// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many bytes of stack a program can use, read from the object file.
//!
//! Per function, every pointer into its frame is followed through registers and stack slots on all
//! paths, and the deepest byte counts; frames are rounded as the verifier rounds them and added
//! along the deepest chain of calls.
//! **Invariant:** what cannot be followed is an error, never a smaller number.
//! Read next: `chain.rs` for calls.

use std::collections::BTreeMap;

/// Frames are counted in steps of this many bytes: the verifier's step without a JIT, the larger
/// of its two (16 with one).
const FRAME_STEP: u32 = 32;
/// Deeper than any frame the kernel takes (`MAX_BPF_STACK` is 512).
const HOPELESS: i64 = -4096;
/// The frame pointer.
const FRAME: usize = 10;

/// One instruction word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn {
    pub(crate) op: u8,
    pub(crate) dst: usize,
    pub(crate) src: usize,
    pub(crate) off: i16,
    pub(crate) imm: i32,
}

/// `call`.
pub(crate) const CALL: u8 = 0x85;
/// `exit`.
pub(crate) const EXIT: u8 = 0x95;
/// `lddw`, the one instruction of two words.
pub(crate) const LOAD_IMM64: u8 = 0x18;

impl Insn {
    /// Decodes little-endian instruction words.
    pub(crate) fn decode(bytes: &[u8]) -> Vec<Self> {
        bytes
            .chunks_exact(8)
            .map(|word| Self {
                op: word[0],
                dst: usize::from(word[1] & 0x0f),
                src: usize::from(word[1] >> 4),
                off: i16::from_le_bytes([word[2], word[3]]),
                imm: i32::from_le_bytes([word[4], word[5], word[6], word[7]]),
            })
            .collect()
    }

    fn class(self) -> u8 {
        self.op & 0x07
    }

    /// The positions that may run after this one.
    fn next(self, at: usize) -> Vec<usize> {
        // A jump to before the start leads outside as well, where the walk finds no instruction.
        let target = |distance: i32| {
            usize::try_from(distance).map_or_else(
                |_| (at + 1).checked_sub(distance.unsigned_abs() as usize),
                |forward| Some(at + 1 + forward),
            )
        };
        let target = |distance: i32| target(distance).unwrap_or(usize::MAX);
        match (self.op, self.class()) {
            (EXIT, _) => vec![],
            (0x05, _) => vec![target(self.off.into())],
            // The long jump.
            (0x06, _) => vec![target(self.imm)],
            (LOAD_IMM64, _) => vec![at + 2],
            (CALL, _) => vec![at + 1],
            (_, 0x05 | 0x06) => vec![at + 1, target(self.off.into())],
            _ => vec![at + 1],
        }
    }
}

/// For each register: when it may point into the frame, the lowest distance from the frame's end.
type Registers = [Option<i64>; 11];

/// Deepest byte of the frame of one function, not rounded. The error says what could not be
/// followed.
pub(crate) fn frame_depth(code: &[Insn]) -> Result<u32, String> {
    let mut frame = Frame::default();
    // What a slot holds is kept for the function as a whole, so all paths are walked again until
    // no slot changes any more.
    loop {
        let before = frame.slots.clone();
        frame.walk(code)?;
        if frame.slots == before {
            break;
        }
    }
    u32::try_from(-frame.lowest).map_err(|e| format!("depth {}: {e}", frame.lowest))
}

/// A frame's size as the verifier counts it.
pub(crate) fn rounded(depth: u32) -> u32 {
    depth.max(1).next_multiple_of(FRAME_STEP)
}

#[derive(Default)]
struct Frame {
    lowest: i64,
    /// Pointers into the frame that are themselves stored in the frame.
    slots: BTreeMap<i64, i64>,
}

impl Frame {
    fn walk(&mut self, code: &[Insn]) -> Result<(), String> {
        let mut entry: Registers = [None; 11];
        entry[FRAME] = Some(0);
        let mut seen: Vec<Option<Registers>> = vec![None; code.len()];
        let mut todo = vec![(0, entry)];
        while let Some((at, state)) = todo.pop() {
            let Some(&insn) = code.get(at) else {
                return Err(format!("instruction {at} is outside of the function"));
            };
            let joined = match seen[at] {
                Some(known) if join(known, state) == known => continue,
                Some(known) => join(known, state),
                None => state,
            };
            seen[at] = Some(joined);
            let mut after = joined;
            self.step(insn, &mut after)
                .map_err(|e| format!("instruction {at}: {e}"))?;
            todo.extend(insn.next(at).into_iter().map(|next| (next, after)));
        }
        Ok(())
    }

    fn step(&mut self, insn: Insn, registers: &mut Registers) -> Result<(), String> {
        match insn.class() {
            // ALU on 32 bits makes a number, and so does loading a constant.
            0x00 | 0x04 => registers[insn.dst] = None,
            0x01 => {
                let place = self.touch(registers[insn.src], insn.off)?;
                registers[insn.dst] = place.and_then(|place| self.slots.get(&place).copied());
            }
            0x02 => {
                self.touch(registers[insn.dst], insn.off)?;
            }
            0x03 => {
                let place = self.touch(registers[insn.dst], insn.off)?;
                if let (Some(place), Some(pointer)) = (place, registers[insn.src]) {
                    let slot = self.slots.entry(place).or_insert(pointer);
                    *slot = pointer.min(*slot);
                }
            }
            0x07 => self.alu64(insn, registers)?,
            _ if insn.op == CALL => registers[..6].fill(None),
            _ => {}
        }
        Ok(())
    }

    fn alu64(&mut self, insn: Insn, registers: &mut Registers) -> Result<(), String> {
        let by_register = insn.op & 0x08 != 0;
        let source = if by_register {
            registers[insn.src]
        } else {
            None
        };
        let result = match (insn.op >> 4, registers[insn.dst], by_register) {
            (0xb, _, _) => source,
            (0x0, Some(pointer), false) => Some(pointer + i64::from(insn.imm)),
            (0x1, Some(pointer), false) => Some(pointer - i64::from(insn.imm)),
            (0x0, None, true) if source.is_none() => None,
            // The distance of two places in the frame is a number.
            (0x1, Some(_), true) if source.is_some() => None,
            (0x0, _, true) | (0x1, Some(_), true) => {
                return Err("a pointer into the frame moves by a number not known here".to_owned());
            }
            _ => None,
        };
        self.touch(result, 0)?;
        registers[insn.dst] = result;
        Ok(())
    }

    /// Notes that a place may be used; gives the place back.
    fn touch(&mut self, pointer: Option<i64>, off: i16) -> Result<Option<i64>, String> {
        let place = pointer.map(|pointer| pointer + i64::from(off));
        self.lowest = self.lowest.min(place.unwrap_or(0));
        if self.lowest < HOPELESS {
            return Err("a pointer into the frame moves down without end".to_owned());
        }
        Ok(place)
    }
}

fn join(a: Registers, b: Registers) -> Registers {
    let mut joined = a;
    for (into, other) in joined.iter_mut().zip(b) {
        *into = match (*into, other) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
    }
    joined
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
