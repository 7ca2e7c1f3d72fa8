// SPDX-License-Identifier: MIT OR Apache-2.0
//! The analysis itself, on hand-made instructions whose answer is known.

use std::collections::BTreeSet;

use super::*;
use crate::chain::{Function, program};

/// One instruction word as it lies in an object.
fn insn(op: u8, dst: u8, src: u8, off: i16, imm: i32) -> [u8; 8] {
    let [o0, o1] = off.to_le_bytes();
    let [i0, i1, i2, i3] = imm.to_le_bytes();
    [op, dst | src << 4, o0, o1, i0, i1, i2, i3]
}

fn mov(dst: u8, src: u8) -> [u8; 8] {
    insn(0xbf, dst, src, 0, 0)
}

fn add(dst: u8, imm: i32) -> [u8; 8] {
    insn(0x07, dst, 0, 0, imm)
}

/// `*(u64 *)(dst + off) = src`
fn store(dst: u8, off: i16, src: u8) -> [u8; 8] {
    insn(0x7b, dst, src, off, 0)
}

/// `dst = *(u64 *)(src + off)`
fn load(dst: u8, src: u8, off: i16) -> [u8; 8] {
    insn(0x79, dst, src, off, 0)
}

fn jump_if_zero(dst: u8, off: i16) -> [u8; 8] {
    insn(0x15, dst, 0, off, 0)
}

fn jump(off: i16) -> [u8; 8] {
    insn(0x05, 0, 0, off, 0)
}

fn exit() -> [u8; 8] {
    insn(EXIT, 0, 0, 0, 0)
}

fn depth(code: &[[u8; 8]]) -> Result<u32, String> {
    frame_depth(&Insn::decode(code.as_flattened()))
}

#[test]
fn function_without_stack_still_counts_one_step() {
    assert_eq!(depth(&[insn(0xb7, 0, 0, 0, 0), exit()]), Ok(0));
    assert_eq!([0, 1, 32, 33, 448].map(rounded), [32, 32, 32, 64, 448]);
}

#[test]
fn every_kind_of_access_to_the_frame_counts() {
    let byte_store_of_a_constant = insn(0x72, 10, 0, -40, 7);
    let word_store = insn(0x63, 10, 1, -44, 0);
    let atomic_add = insn(0xdb, 10, 1, -48, 0);
    let signed_load = insn(0x91, 1, 10, -52, 0);
    for (code, expected) in [
        (store(10, -8, 1), 8),
        (load(1, 10, -16), 16),
        (byte_store_of_a_constant, 40),
        (word_store, 44),
        (atomic_add, 48),
        (signed_load, 52),
    ] {
        assert_eq!(depth(&[code, exit()]), Ok(expected));
    }
}

#[test]
fn pointer_given_to_a_helper_counts_although_nothing_is_stored_through_it() {
    assert_eq!(
        depth(&[mov(2, 10), add(2, -104), insn(CALL, 0, 0, 0, 1), exit()]),
        Ok(104)
    );
    let subtract = insn(0x17, 2, 0, 0, 96);
    assert_eq!(depth(&[mov(2, 10), subtract, exit()]), Ok(96));
}

#[test]
fn pointer_is_followed_through_other_registers() {
    let code = [mov(6, 10), add(6, -64), mov(3, 6), store(3, -24, 1), exit()];
    assert_eq!(depth(&code), Ok(88));
}

#[test]
fn pointer_is_followed_through_the_stack_slot_it_is_spilled_to() {
    let code = [
        mov(6, 10),
        add(6, -64),
        store(10, -8, 6),
        insn(CALL, 0, 0, 0, 1),
        load(1, 10, -8),
        store(1, -56, 0),
        exit(),
    ];
    assert_eq!(depth(&code), Ok(120));
}

#[test]
fn slot_filled_behind_its_use_in_a_loop_is_seen() {
    let code = [
        load(1, 10, -8),
        store(1, -200, 0),
        mov(6, 10),
        add(6, -16),
        store(10, -8, 6),
        jump_if_zero(0, -6),
        exit(),
    ];
    assert_eq!(depth(&code), Ok(216));
}

#[test]
fn deeper_of_two_paths_counts_where_they_meet() {
    // r1 is frame - 32 on one way and frame - 96 on the other.
    let code = [
        mov(1, 10),
        jump_if_zero(2, 2),
        add(1, -32),
        jump(1),
        add(1, -96),
        store(1, -8, 3),
        exit(),
    ];
    assert_eq!(depth(&code), Ok(104));
}

#[test]
fn call_and_32_bit_arithmetic_end_a_pointer() {
    let after_call = [
        mov(1, 10),
        add(1, -8),
        insn(CALL, 0, 0, 0, 1),
        store(1, -400, 0),
        exit(),
    ];
    assert_eq!(depth(&after_call), Ok(8));
    let short_move = [
        mov(1, 10),
        insn(0xbc, 1, 1, 0, 0),
        store(1, -400, 0),
        exit(),
    ];
    assert_eq!(depth(&short_move), Ok(0));
}

#[test]
fn second_word_of_a_long_constant_is_no_instruction() {
    // Read as an instruction, the second word would store at -400.
    let code = [
        insn(LOAD_IMM64, 1, 0, 0, 0),
        store(10, -400, 0),
        store(10, -8, 1),
        exit(),
    ];
    assert_eq!(depth(&code), Ok(8));
}

#[test]
fn what_cannot_be_followed_is_an_error() {
    let by_register = insn(0x0f, 1, 2, 0, 0);
    assert!(depth(&[mov(1, 10), by_register, exit()]).is_err());
    let endless = [mov(1, 10), add(1, -8), jump(-2), exit()];
    assert!(depth(&endless).is_err());
    assert!(depth(&[jump(7), exit()]).is_err());
    assert!(depth(&[store(10, -8, 1)]).is_err());
}

fn function(instructions: usize, frame: u32, calls: &[usize]) -> Function {
    Function {
        instructions,
        frame,
        calls: calls.iter().copied().collect::<BTreeSet<_>>(),
    }
}

#[test]
fn deepest_chain_wins_over_the_longest_and_shared_callees_count_once_in_size() {
    let functions = [
        function(10, 64, &[1, 2]),
        function(20, 32, &[3]),
        function(30, 256, &[]),
        function(40, 32, &[]),
        function(50, 512, &[]),
    ];
    let measured = program(&functions, 0).unwrap();
    assert_eq!(measured.frames, [64, 256]);
    assert_eq!(measured.stack, 320);
    assert_eq!(measured.instructions, 100);
}

#[test]
fn recursion_is_an_error() {
    let functions = [function(1, 32, &[1]), function(1, 32, &[0])];
    assert!(program(&functions, 0).is_err());
}
