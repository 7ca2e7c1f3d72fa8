// SPDX-License-Identifier: GPL-2.0-only OR MIT
#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod checksum;
pub mod crc32c;
pub mod extension;
pub mod icmp;
pub mod limit;
pub mod packet;
pub mod path;
pub mod reset;
pub mod tables;
pub mod unreachable;
