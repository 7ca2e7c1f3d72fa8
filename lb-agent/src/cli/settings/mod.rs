// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the settings of `run` come from: a flag, a variable of the environment, the file of
//! `--config`, the default, in this order.
//!
//! What the environment and the file say is turned into flags, which clap then reads with those that
//! were given: so one description counts for all of them.
//! **Invariant:** a wrong value is refused with the name of the place that it comes from. `check` takes
//! from the environment and the file what it shares with `run`; other verbs, where things are.

mod describe;
mod file;
mod schema;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use describe::{FILE, PREFIX, Setting, settings};
use file::VERY_ALIKE;

pub use schema::config_schema;

/// What `--help` says about all flags.
pub(super) const HELP: &str = "\
Environment and file:
  Each flag of `run` may be given by a variable, LB_ and its name (LB_SOCKET_LB for
  --socket-lb; several values with commas), or in the file of --config or LB_CONFIG: YAML with
  its name as a key (socketLb; several values as a list). A flag comes before its variable,
  that before the file. LB_LOG chooses what is logged (lb_agent=debug for more).";

/// What tells other verbs where to look, too.
const PLACES: [&str; 4] = ["bpffs", "cgroup", "state_dir", "node"];
/// Variables that are no settings and begin like them.
const OTHERS: [&str; 1] = ["LB_LOG"];

/// A command line that is not followed.
#[derive(Debug)]
pub enum Refused {
    /// A wrong flag, or a request for help.
    ByClap(clap::Error),
    /// A wrong value elsewhere, in a sentence.
    Sentence(String),
}

/// Where those settings come from that are not flags.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    /// Flags, and what a person would look for.
    places: Vec<(String, String)>,
    /// What a person should know.
    pub(super) notes: Vec<String>,
}

impl Origins {
    /// Adds to a sentence about flags where those come from that nobody gave as flags.
    pub(super) fn explain(&self, sentence: String) -> String {
        let names = |flag: &str| {
            sentence.match_indices(flag).any(|(at, _)| {
                let next = sentence[at + flag.len()..].chars().next();
                next.is_none_or(|next| next != '-' && !next.is_alphanumeric())
            })
        };
        let mentioned = self.places.iter().filter(|(flag, _)| names(flag));
        let places: Vec<_> = mentioned
            .map(|(flag, place)| format!("{flag} comes from {place}"))
            .collect();
        if places.is_empty() {
            return sentence;
        }
        format!("{sentence} ({})", places.join(", "))
    }
}

/// Something that is set by no flag.
struct Given<'a> {
    setting: &'a Setting,
    values: Vec<String>,
    place: String,
}

/// Reads everything that was set into `command`'s matches.
pub(super) fn read(
    command: &mut Command,
    mut arguments: Vec<OsString>,
    environment: &[(OsString, OsString)],
) -> Result<(ArgMatches, Origins), Refused> {
    let flags = command.try_get_matches_from_mut(&arguments);
    let flags = flags.map_err(Refused::ByClap)?;
    let all = settings();
    let (verb, flags, takes) = match flags.subcommand() {
        Some((verb, flags)) => (Some(verb), flags, command.find_subcommand(verb)),
        None => (None, &flags, Some(&*command)),
    };
    let known: Vec<&str> = takes
        .into_iter()
        .flat_map(Command::get_arguments)
        .map(|arg| arg.get_id().as_str())
        .collect();
    // `check` holds the maps against what `run` would do, so it is to know what `run` was told.
    let all_apply = verb.is_none_or(|verb| verb == "run" || verb == "check");
    let applies = |setting: &Setting| {
        known.contains(&setting.id.as_str()) && (all_apply || PLACES.contains(&&*setting.id))
    };
    let is_flag =
        |id: &str| known.contains(&id) && flags.value_source(id) == Some(ValueSource::CommandLine);
    let mut given = variables(&all, environment).map_err(Refused::Sentence)?;
    if let Some(path) = config_file(flags, is_flag(FILE), &given) {
        let entries = file::read(&path, &all).map_err(Refused::Sentence)?;
        for entry in entries {
            let setting = &all[entry.setting];
            if given.iter().all(|earlier| earlier.setting.id != setting.id) {
                let place = place(&path, entry.line, &setting.key);
                let values = entry.values;
                given.push(Given {
                    setting,
                    values,
                    place,
                });
            }
        }
    }
    given.retain(|given| applies(given.setting) && !is_flag(&given.setting.id));
    let mut origins = Origins {
        places: Vec::new(),
        notes: strangers(&all, environment),
    };
    let mut more = Vec::new();
    for given in given {
        let flag = format!("--{}", given.setting.flag);
        let values = given.values.iter();
        more.extend(values.map(|value| OsString::from(format!("{flag}={value}"))));
        origins.places.push((flag, given.place));
    }
    // A verb is the first argument: it conflicts with flags before it.
    let after = 1 + usize::from(verb.is_some());
    arguments.splice(after..after, more);
    match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => Ok((matches, origins)),
        Err(error) => {
            // The first line tells the whole error; those below are about flags.
            let said = error.to_string();
            let said = said.lines().next().unwrap_or_default();
            let said = said.strip_prefix("error: ").unwrap_or(said).to_owned();
            Err(Refused::Sentence(origins.explain(said)))
        }
    }
}

fn place(path: &Path, line: Option<usize>, key: &str) -> String {
    let path = path.display();
    match line {
        Some(line) => format!("{key} in {path}, line {line}"),
        None => format!("{key} in {path}"),
    }
}

/// The file that a flag names, or a variable.
fn config_file(flags: &ArgMatches, is_flag: bool, given: &[Given<'_>]) -> Option<PathBuf> {
    if is_flag {
        return flags.get_one::<PathBuf>(FILE).cloned();
    }
    let variable = given.iter().find(|given| given.setting.flag == FILE)?;
    variable.values.first().map(PathBuf::from)
}

/// What the environment sets. An empty variable sets nothing.
fn variables<'a>(
    settings: &'a [Setting],
    environment: &[(OsString, OsString)],
) -> Result<Vec<Given<'a>>, String> {
    let mut given = Vec::new();
    for setting in settings {
        let name = OsStr::new(&setting.variable);
        let Some((_, value)) = environment.iter().find(|(known, _)| known == name) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            return Err(format!("{} is no text in UTF-8", setting.variable));
        };
        if value.is_empty() {
            continue;
        }
        let values: Vec<String> = if setting.several {
            value.split(',').map(ToOwned::to_owned).collect()
        } else {
            vec![value.to_owned()]
        };
        for value in &values {
            if let Some(allowed) = setting.refuses(value) {
                let variable = &setting.variable;
                return Err(format!("{variable}: {value:?} cannot be used; {allowed}"));
            }
        }
        given.push(Given {
            setting,
            values,
            place: format!("the variable {}", setting.variable),
        });
    }
    Ok(given)
}

/// Variables that look like a setting and are none. Those that a cluster makes for a Service of the
/// name lb look like none.
fn strangers(settings: &[Setting], environment: &[(OsString, OsString)]) -> Vec<String> {
    let names = || settings.iter().map(|setting| setting.variable.as_str());
    let mut notes = Vec::new();
    for (name, _) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        if OTHERS.contains(&name) || names().any(|known| known == name) {
            continue;
        }
        let known = names().filter_map(|known| known.strip_prefix(PREFIX));
        let meant = file::nearest(&name[PREFIX.len()..], known, VERY_ALIKE);
        notes.extend(meant.map(|meant| {
            format!("the variable {name} sets nothing; do you mean {PREFIX}{meant}?")
        }));
    }
    notes
}

#[cfg(test)]
mod tests;
