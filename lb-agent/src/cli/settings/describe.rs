// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be set, taken from the flags of `run` themselves.
//!
//! The key of a file, the variable of the environment, the kind of value, its bounds and its default
//! all come from clap's own description.
//! **Invariant:** there is no second list, so a new flag has its key, its variable and its place in the
//! schema without a further line. Read next: `mod.rs`.

use std::any::TypeId;
use std::error::Error as _;
use std::fmt::Write as _;

use clap::builder::ValueParser;
use clap::{Arg, Args as _, Command};

use crate::cli::flags::RunArgs;

/// What begins the name of every variable.
pub(super) const PREFIX: &str = "LB_";
/// The flag that names the file, which cannot be in it.
pub(super) const FILE: &str = "config";

/// Every flag that takes numbers takes one of these.
const NUMBERS: [&str; 3] = ["0", "1", "2"];

/// What values look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A whole number that is not negative.
    Integer,
    /// One of these words.
    Word(Vec<String>),
    /// Anything that the flag can read.
    Text,
}

/// One thing that can be set.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// clap's name.
    pub(super) id: String,
    /// The long flag without its dashes.
    pub(super) flag: String,
    /// The key in a file.
    pub(super) key: String,
    /// The variable of the environment.
    pub(super) variable: String,
    pub(super) kind: Kind,
    /// Takes several values.
    pub(super) several: bool,
    /// What the value is for.
    pub(super) help: String,
    /// What holds where nothing is set.
    pub(super) default: Vec<String>,
    parser: ValueParser,
    ignore_case: bool,
}

/// Everything that `run` can be told, in the order of its flags.
pub(super) fn settings() -> Vec<Setting> {
    let run = RunArgs::augment_args(Command::new("run"));
    run.get_arguments().filter_map(Setting::of).collect()
}

impl Setting {
    fn of(arg: &Arg) -> Option<Self> {
        let flag = arg.get_long()?.to_owned();
        let parser = arg.get_value_parser().clone();
        let defaults = arg.get_default_values().iter();
        let mut setting = Self {
            id: arg.get_id().to_string(),
            key: camel_case(&flag),
            variable: PREFIX.to_owned() + &flag.replace('-', "_").to_uppercase(),
            flag,
            kind: kind(arg, &parser),
            several: arg.get_value_delimiter().is_some(),
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            default: defaults
                .map(|value| value.to_string_lossy().into_owned())
                .collect(),
            parser,
            ignore_case: arg.is_ignore_case_set(),
        };
        // A time is a number, too, and written with its unit.
        if setting.kind == Kind::Integer && !NUMBERS.iter().any(|text| setting.read(text).is_ok()) {
            setting.kind = Kind::Text;
        }
        Some(setting)
    }

    /// What is wrong with a single value, or nothing: what is allowed, as a request.
    pub(super) fn refuses(&self, value: &str) -> Option<String> {
        let error = self.read(value).err()?;
        if self.kind != Kind::Text {
            return Some(self.allowed());
        }
        let said = error.source().map(ToString::to_string);
        Some(said.unwrap_or_else(|| "give another value".to_owned()))
    }

    /// What is allowed, as a request.
    pub(super) fn allowed(&self) -> String {
        match &self.kind {
            Kind::Boolean => "give true or false".to_owned(),
            Kind::Integer => {
                let (least, most) = self.bounds();
                let mut text = format!("give a whole number from {least}");
                if let Some(most) = most {
                    // Writing to a String cannot fail.
                    write!(text, " to {most}").ok();
                }
                text
            }
            Kind::Word(words) => match words.split_last() {
                Some((last, [])) => format!("give {last}"),
                Some((last, others)) => format!("give {} or {last}", others.join(", ")),
                None => String::new(),
            },
            Kind::Text => "give text".to_owned(),
        }
    }

    /// The least and the greatest number, the latter if there is one below that of 64 bits.
    pub(super) fn bounds(&self) -> (u64, Option<u64>) {
        let accepts = |number: u64| self.read(&number.to_string()).is_ok();
        let least = (0..64).find(|number| accepts(*number)).unwrap_or(0);
        if accepts(u64::MAX) {
            return (least, None);
        }
        // What is accepted is one range: its end lies between these two.
        let (mut accepted, mut refused) = (least, u64::MAX);
        while refused - accepted > 1 {
            let middle = accepted + (refused - accepted) / 2;
            if accepts(middle) {
                accepted = middle;
            } else {
                refused = middle;
            }
        }
        (least, Some(accepted))
    }

    fn read(&self, value: &str) -> Result<(), clap::Error> {
        let arg = Arg::new("value")
            .long("value")
            .ignore_case(self.ignore_case)
            .value_parser(self.parser.clone());
        let command = Command::new("check").no_binary_name(true).arg(arg);
        let read = command.try_get_matches_from([format!("--value={value}")]);
        read.map(drop)
    }
}

fn kind(arg: &Arg, parser: &ValueParser) -> Kind {
    let is = |id: TypeId| parser.type_id() == id;
    if is(TypeId::of::<bool>()) {
        return Kind::Boolean;
    }
    let integers = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
    ];
    if integers.into_iter().any(is) {
        return Kind::Integer;
    }
    let words = arg.get_possible_values();
    if words.is_empty() {
        return Kind::Text;
    }
    let words = words.iter().map(|word| word.get_name().to_owned());
    Kind::Word(words.collect())
}

/// `--socket-lb` is `socketLb`.
fn camel_case(flag: &str) -> String {
    let mut words = flag.split('-');
    let mut key = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        key.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        key.push_str(letters.as_str());
    }
    key
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    #[test]
    fn every_flag_of_run_can_be_set_in_a_file() {
        let run = RunArgs::augment_args(Command::new("run"));
        for arg in run.get_arguments() {
            let id = arg.get_id();
            assert!(arg.get_long().is_some(), "{id} has no long name");
            let list = matches!(arg.get_action(), ArgAction::Append);
            assert!(
                list || matches!(arg.get_action(), ArgAction::Set),
                "{id} takes no value, so a flag could not overrule a file"
            );
            let several = arg.get_value_delimiter();
            assert_eq!(several, list.then_some(','), "{id} in a variable");
        }
    }

    #[test]
    fn names_kinds_and_bounds_come_from_the_flag() {
        let all = settings();
        let find = |key: &str| all.iter().find(|setting| setting.key == key).unwrap();
        let mode = find("socketLb");
        assert_eq!(
            (&*mode.flag, &*mode.variable),
            ("socket-lb", "LB_SOCKET_LB")
        );
        assert_eq!(
            mode.kind,
            Kind::Word(["off", "host", "all"].map(Into::into).into())
        );
        assert_eq!(mode.default, ["host"]);
        assert_eq!(mode.allowed(), "give off, host or all");
        assert_eq!(find("masqueradeAll").kind, Kind::Boolean);
        assert_eq!(find("masqueradeMarkBit").bounds(), (0, Some(31)));
        let most = Some(u64::from(u32::MAX));
        assert_eq!(find("affinityMax").bounds(), (1, most));
        assert_eq!(find("auditInterval").bounds(), (0, None));
        assert_eq!(find("conntrackUdpTimeout").kind, Kind::Text);
        assert_eq!(find("conntrackUdpTimeout").refuses("5m"), None);
        let refused = find("conntrackUdpTimeout").refuses("5").unwrap();
        assert!(refused.contains("such as 24h"), "{refused}");
        assert!(find("snatPortRange").several && !find("node").several);
        assert_eq!(find("node").refuses("a"), None);
    }
}
