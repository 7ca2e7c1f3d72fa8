// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `lb-lab`: makes a lab to play in, enters it, lists and cleans up.
//!
//! **Invariant:** it only parses arguments and prints; what it does is in the library.
//! Read next: the library's front page.

fn main() {}
