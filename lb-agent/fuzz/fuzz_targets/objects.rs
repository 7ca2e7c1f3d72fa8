// SPDX-License-Identifier: MIT OR Apache-2.0
//! JSON as an API server would send it, one object or a list: objects, plan, tables.
//!
//! The first byte chooses flags, the rest is the text.
//! **Invariant:** everything that must hold is said in `check.rs`.
#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((choice, text)) = data.split_first()
        && let Ok(text) = std::str::from_utf8(text)
    {
        check::check("objects.json", text, *choice);
    }
});
