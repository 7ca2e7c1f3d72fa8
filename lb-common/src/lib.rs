// SPDX-License-Identifier: MIT OR Apache-2.0
#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
mod family;
pub mod hash;
mod reason;

pub use family::{Address, Family, V4, V6, opaque};
pub use reason::{Class, Reason};
