// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the running kernel has what the lab's networks are made of.
//!
//! A feature is built in, or a module that is loaded, or one that can be: the kernel loads most by
//! itself when they are asked for, and the lab loads `br_netfilter` where a test needs it.
//! **Invariant:** looking loads nothing.
//! Read next: needs.rs.

use std::path::Path;

use super::needs::Need;
use super::probe::Found;
use crate::process::{command, first_line};

/// A module, and a symbol that tells of it where it is built in and has no parameters to show.
const FEATURES: [(&str, &str); 8] = [
    ("veth", "veth_newlink"),
    ("bridge", "br_handle_frame"),
    ("br_netfilter", "br_nf_pre_routing"),
    ("vxlan", "vxlan_setup"),
    ("nf_tables", "nf_tables_newtable"),
    ("nf_conntrack", "nf_conntrack_in"),
    ("sch_ingress", "clsact_init"),
    ("cls_bpf", "cls_bpf_classify"),
];

pub(crate) fn features(_: &Need) -> Found {
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let absent: Vec<_> = FEATURES
        .iter()
        .filter(|(module, symbol)| {
            !Path::new("/sys/module").join(module).exists() && !has_symbol(&symbols, symbol)
        })
        .map(|(module, _)| *module)
        .collect();
    let (loadable, missing): (Vec<_>, Vec<_>) =
        absent.into_iter().partition(|module| is_loadable(module));
    if !missing.is_empty() {
        return Found::No(format!("no {}", missing.join(", ")));
    }
    let loadable = if loadable.is_empty() {
        String::new()
    } else {
        format!(" ({} can be loaded)", loadable.join(", "))
    };
    Found::Yes(format!("all {}{loadable}", FEATURES.len()))
}

/// Whether a line `ADDRESS TYPE NAME [MODULE]` names the symbol, perhaps with a compiler's suffix.
fn has_symbol(symbols: &str, symbol: &str) -> bool {
    symbols.lines().any(|line| {
        let name = line.split_whitespace().nth(2).unwrap_or_default();
        name.strip_prefix(symbol)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

fn is_loadable(module: &str) -> bool {
    let mut modprobe = command("modprobe");
    first_line(modprobe.args(["--dry-run", "--verbose", module])).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_found_by_its_whole_name_or_with_a_suffix_of_the_compiler() {
        let symbols = "0000000000000000 t veth_newlink\n\
                       0000000000000000 t clsact_init.llvm.1234\t[sch_ingress]\n\
                       0000000000000000 T vxlan_setup_more\n";
        assert!(has_symbol(symbols, "veth_newlink"));
        assert!(has_symbol(symbols, "clsact_init"));
        assert!(!has_symbol(symbols, "vxlan_setup"));
        assert!(!has_symbol(symbols, "newlink"));
    }
}
