// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs, made to fit this kernel.
//!
//! What differs between kernels is a constant of the programs, and the verifier leaves out what a constant
//! rules out. One thing it looks at all the same: an instruction that it does not know is refused wherever
//! it stands, so that one is replaced before.
//! **Invariant:** on a kernel that has everything the object is loaded as it was compiled.

use std::borrow::Cow;

use aya::EbpfLoader;
use object::{Object as _, ObjectSection as _, SectionKind};

use super::features::{Feature, has};

/// Length of an instruction, in bytes.
const INSTRUCTION: usize = 8;
/// `BPF_STX | BPF_ATOMIC | BPF_DW`: adds to 8 bytes of memory at once.
const ATOMIC_64: u8 = 0xdb;
/// `BPF_ADD | BPF_FETCH`: the constant that asks for the value before, too.
const ADD_AND_FETCH: [u8; 4] = [1, 0, 0, 0];
/// `BPF_ADD`.
const ADD: [u8; 4] = [0; 4];

/// Tells programs what kernel they are for, and gives the object to load.
pub fn fit<'a>(loader: &mut EbpfLoader<'_>, object: &'a [u8]) -> Cow<'a, [u8]> {
    /// The flag that tells `bpf_l4_csum_replace` of IPv6, which older kernels refuse.
    const BPF_F_IPV6: u32 = 1 << 7;
    let flag: &u32 = if has(Feature::ChecksumIpv6) {
        &BPF_F_IPV6
    } else {
        &0
    };
    loader.override_global("CSUM_IPV6", flag, true);
    let can_set_error: &u32 = if has(Feature::SetRetval) { &1 } else { &0 };
    loader.override_global("CAN_SET_ERROR", can_set_error, true);
    if has(Feature::AtomicFetch) {
        loader.override_global("HAS_FETCH", &1_u32, true);
        return Cow::Borrowed(object);
    }
    loader.override_global("HAS_FETCH", &0_u32, true);
    Cow::Owned(without_fetch(object))
}

/// The object with additions in the place of additions that tell the value before. What would use that
/// value is ruled out by `HAS_FETCH`.
fn without_fetch(object: &[u8]) -> Vec<u8> {
    let mut bytes = object.to_vec();
    for range in code(object) {
        let Some(code) = bytes.get_mut(range) else {
            continue;
        };
        for instruction in code.chunks_exact_mut(INSTRUCTION) {
            // The second half of a long constant has no operation, so it is none of these.
            if instruction[0] == ATOMIC_64 && instruction[4..] == ADD_AND_FETCH {
                instruction[4..].copy_from_slice(&ADD);
            }
        }
    }
    bytes
}

/// Where instructions lie in an object; nowhere in what is no object, which the loader refuses.
fn code(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let Ok(file) = object::File::parse(bytes) else {
        return Vec::new();
    };
    let sections = file.sections().filter(|s| s.kind() == SectionKind::Text);
    let ranges = sections.filter_map(|section| {
        let (start, length) = section.file_range()?;
        let start = usize::try_from(start).ok()?;
        Some(start..start.checked_add(usize::try_from(length).ok()?)?)
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::loader::OBJECT;
    use super::*;

    #[test]
    fn additions_take_the_place_of_additions_that_tell_the_value_before() {
        if OBJECT.is_empty() {
            return;
        }
        let fetches = |bytes: &[u8]| {
            let code = code(bytes);
            let instructions = code
                .into_iter()
                .flat_map(|range| bytes[range].chunks_exact(8));
            instructions
                .filter(|i| i[0] == ATOMIC_64 && i[4..] == ADD_AND_FETCH)
                .count()
        };
        assert!(fetches(OBJECT) > 0, "the programs have some");
        let fitted = without_fetch(OBJECT);
        assert_eq!(fetches(&fitted), 0);
        let changed = fitted.iter().zip(OBJECT).filter(|(a, b)| a != b).count();
        assert_eq!(changed, fetches(OBJECT), "one byte each, and nothing else");
    }

    #[test]
    fn what_is_no_object_stays_as_it_is() {
        assert_eq!(without_fetch(b"no object"), b"no object");
    }
}
