// SPDX-License-Identifier: MIT OR Apache-2.0
//! The weights of endpoints, from annotations of the object that lists them.
//!
//! `lb-agent/weight: "3"` is for all endpoints of the object, `lb-agent/weights:
//! "10.1.0.5=3,10.1.0.6=0"` for those named, and goes before the other.
//! **Invariant:** what cannot be read is told and changes nothing but its own endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::endpoint::{WEIGHT_DEFAULT, WEIGHT_MAX};

/// The annotation with the weight of all endpoints.
const ANNOTATION_WEIGHT: &str = "lb-agent/weight";
/// The annotation with weights by address.
const ANNOTATION_WEIGHTS: &str = "lb-agent/weights";

/// The weights of one object's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Weights {
    all: u8,
    by_address: BTreeMap<IpAddr, u8>,
}

impl Weights {
    /// Reads `annotations`; what cannot be used is added to `ignored`.
    pub(super) fn read(
        annotations: Option<&BTreeMap<String, String>>,
        ignored: &mut Vec<String>,
    ) -> Self {
        let mut ignore = |annotation: &str, what: String| {
            let field = format!("metadata.annotations[{annotation}]");
            ignored.push(format!("{field}: {what}"));
        };
        let value = |annotation| annotations.and_then(|all| all.get(annotation));
        let mut weights = Self {
            all: WEIGHT_DEFAULT,
            by_address: BTreeMap::new(),
        };
        if let Some(text) = value(ANNOTATION_WEIGHT) {
            weights.all = weight(text).unwrap_or_else(|| {
                ignore(ANNOTATION_WEIGHT, not_a_weight(text));
                WEIGHT_DEFAULT
            });
        }
        let named = value(ANNOTATION_WEIGHTS).into_iter();
        let named = named.flat_map(|text| text.split(',')).map(str::trim);
        for pair in named.filter(|pair| !pair.is_empty()) {
            let parts = pair.split_once('=');
            let parts = parts.and_then(|(a, w)| Some((a.trim().parse::<IpAddr>().ok()?, w)));
            let Some((address, text)) = parts else {
                let what = format!("{pair:?} is not an address, = and a weight, ignored");
                ignore(ANNOTATION_WEIGHTS, what);
                continue;
            };
            let weight = weight(text).unwrap_or_else(|| {
                let what = format!("{address}: {}", not_a_weight(text));
                ignore(ANNOTATION_WEIGHTS, what);
                WEIGHT_DEFAULT
            });
            weights.by_address.insert(address, weight);
        }
        weights
    }

    /// The weight of the endpoint at `address`.
    pub(super) fn of(&self, address: &IpAddr) -> u8 {
        self.by_address.get(address).copied().unwrap_or(self.all)
    }
}

fn weight(text: &str) -> Option<u8> {
    let weight = text.trim().parse().ok();
    weight.filter(|weight| *weight <= WEIGHT_MAX)
}

fn not_a_weight(text: &str) -> String {
    format!("{text:?} is not a weight (0 to {WEIGHT_MAX}), {WEIGHT_DEFAULT} is used")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights of 10.1.0.5, 10.1.0.6 and `fd00::1`, and what is ignored.
    fn read(annotations: &[(&str, &str)]) -> ([u8; 3], Vec<String>) {
        let annotations = annotations.iter();
        let annotations = annotations.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut ignored = Vec::new();
        let weights = Weights::read(Some(&annotations.collect()), &mut ignored);
        let addresses = ["10.1.0.5", "10.1.0.6", "fd00::1"];
        let of = addresses.map(|address| weights.of(&address.parse().unwrap()));
        (of, ignored)
    }

    #[test]
    fn a_weight_is_for_all_and_weights_are_for_those_named() {
        assert_eq!(read(&[]), ([1, 1, 1], Vec::new()));
        assert_eq!(read(&[("lb-agent/weight", "3")]), ([3, 3, 3], Vec::new()));
        let named = ("lb-agent/weights", "10.1.0.5=7, fd00:0::1 = 0,");
        assert_eq!(read(&[named]), ([7, 1, 0], Vec::new()));
        assert_eq!(
            read(&[("lb-agent/weight", "100"), named]),
            ([7, 100, 0], Vec::new())
        );
    }

    #[test]
    fn what_is_no_weight_is_told_and_the_rest_counts() {
        for text in ["", "101", "-1", "3.5", "heavy"] {
            let (weights, ignored) = read(&[("lb-agent/weight", text)]);
            assert_eq!((weights, ignored.len()), ([1, 1, 1], 1), "{text:?}");
        }
        let (weights, ignored) = read(&[
            ("lb-agent/weight", "5"),
            ("lb-agent/weights", "10.1.0.5=many,web-1=3,7,10.1.0.6=2"),
        ]);
        assert_eq!(weights, [1, 2, 5]);
        assert_eq!(
            ignored,
            [
                "metadata.annotations[lb-agent/weights]: 10.1.0.5: \"many\" is not a weight \
                 (0 to 100), 1 is used",
                "metadata.annotations[lb-agent/weights]: \"web-1=3\" is not an address, = and a \
                 weight, ignored",
                "metadata.annotations[lb-agent/weights]: \"7\" is not an address, = and a weight, \
                 ignored",
            ]
        );
    }
}
