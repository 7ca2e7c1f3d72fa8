// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes as a file of manifests in YAML: documents, objects, plan, tables.
//!
//! The first byte chooses flags, the rest is the text; what is no UTF-8 is no manifest.
//! **Invariant:** everything that must hold is said in `check.rs`.
#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((choice, text)) = data.split_first()
        && let Ok(text) = std::str::from_utf8(text)
    {
        check::check("manifests.yaml", text, *choice);
    }
});
