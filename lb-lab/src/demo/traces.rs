// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything of a lab that could stay on the machine, and how to look for it.
//!
//! **Invariant:** the same eyes look before and after: what was found while the lab lived is
//! what must be gone, so finding nothing means something. Read next: `crate::stale`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::ask;
use crate::error::LabError;
use crate::lab::Lab;
use crate::netns::{NETNS_DIR, NetNs};
use crate::run;

/// How long the kernel may take to free what nobody uses any more.
const GONE_MAX: Duration = Duration::from_secs(5);

/// What the kernel keeps by number: kind as bpftool names it, and id.
type Object = (&'static str, String);

/// A lab's traces.
pub(super) struct Traces {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    own_devices: BTreeSet<String>,
    namespaces: BTreeSet<PathBuf>,
    objects: Vec<Object>,
}

/// How many kinds of traces a lab with a running agent has: all that [`Traces::look`] knows.
pub(super) const KINDS: usize = 8;

/// What was found, by kind.
pub(super) type Found = BTreeMap<&'static str, Vec<String>>;

impl Traces {
    /// Notes what a living lab has; the agent should be running.
    pub(super) fn of(lab: &Lab) -> Result<Self, LabError> {
        let dir = lab.dir().to_owned();
        let cgroup = lab.router().cgroup();
        let mut traces = Self {
            id: lab.id().to_owned(),
            cgroup: cgroup.parent().unwrap_or(cgroup).to_owned(),
            own_devices: devices(&proc_net_dev()),
            namespaces: BTreeSet::new(),
            objects: Vec::new(),
            dir,
        };
        for name in traces.names() {
            let inode = NetNs::named(name).run(|| fs::read_link("/proc/thread-self/ns/net"))?;
            traces.namespaces.extend(inode);
        }
        for pin in traces.pins() {
            traces.objects.extend(object(&pin)?);
        }
        Ok(traces)
    }

    /// Looks for all of it.
    pub(super) fn look(&self) -> Result<Found, LabError> {
        let mut found = Found::new();
        let mut add = |kind, what: Vec<String>| {
            if !what.is_empty() {
                found.insert(kind, what);
            }
        };
        let mut namespaces = self.names();
        if namespaces.is_empty() {
            // Without a name one lives on while a thread is in it.
            namespaces = self.inhabited();
        }
        add("network namespaces", namespaces);
        add("network devices", self.devices());
        add("mounts", self.mounts());
        add("processes", self.processes());
        add("cgroups", below(&self.cgroup, true));
        add(
            "pins",
            self.pins()
                .iter()
                .map(|pin| pin.display().to_string())
                .collect(),
        );
        add("BPF maps, programs and links", self.objects_left()?);
        add("files", below(&self.dir, false));
        Ok(found)
    }

    /// Waits until nothing is left; what is left after all if something is.
    pub(super) fn wait_gone(&self) -> Result<Found, LabError> {
        let until = Instant::now() + GONE_MAX;
        loop {
            let found = self.look()?;
            if found.is_empty() || Instant::now() > until {
                return Ok(found);
            }
            run::pause(Duration::from_millis(50));
        }
    }

    /// The names of the lab's namespaces.
    fn names(&self) -> Vec<String> {
        let prefix = format!("lb-{}-", self.id);
        let mut names = entries(Path::new(NETNS_DIR));
        names.retain(|name| name.starts_with(&prefix));
        names
    }

    /// Threads of any process that are still in one of the namespaces.
    fn inhabited(&self) -> Vec<String> {
        let mut found = Vec::new();
        for tasks in processes().map(|process| process.join("task")) {
            for task in entries(&tasks).into_iter().map(|task| tasks.join(task)) {
                let inside = fs::read_link(task.join("ns/net"));
                if inside.is_ok_and(|netns| self.namespaces.contains(&netns)) {
                    found.push(format!("of {}", task.display()));
                }
            }
        }
        found
    }

    /// Devices in the lab's namespaces, and those that came out of them to ours.
    fn devices(&self) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.names() {
            if let Ok(table) = NetNs::named(name).run(proc_net_dev) {
                found.extend(devices(&table));
            }
        }
        let here = devices(&proc_net_dev()).into_iter();
        let new = here.filter(|device| !self.own_devices.contains(device));
        found.extend(new.filter(|device| is_of_a_lab(device)));
        found
    }

    fn mounts(&self) -> Vec<String> {
        let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = text.lines().filter_map(|line| line.split(' ').nth(1));
        let names = [format!("/lb-{}-", self.id), self.dir.display().to_string()];
        let ours = points.filter(|point| names.iter().any(|name| point.contains(name.as_str())));
        ours.map(str::to_owned).collect()
    }

    fn processes(&self) -> Vec<String> {
        let wanted = format!("/lb-lab.{}/", self.id);
        let ours = processes().filter(|process| {
            fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(&wanted))
        });
        ours.map(|process| process.display().to_string()).collect()
    }

    fn pins(&self) -> Vec<PathBuf> {
        let mut pins: Vec<_> = below(&self.dir.join("bpf"), false)
            .into_iter()
            .map(PathBuf::from)
            .collect();
        pins.retain(|path| !path.is_dir());
        pins
    }

    fn objects_left(&self) -> Result<Vec<String>, LabError> {
        let mut left = Vec::new();
        for (kind, id) in &self.objects {
            let shown = ask::output(Command::new("bpftool").args([kind, "show", "id", id]))?;
            if shown.status.success() {
                left.push(format!("{kind} {id}"));
            }
        }
        Ok(left)
    }
}

/// The counts of what was found, as a table.
pub(super) fn table(found: &Found) -> String {
    let rows = found.iter();
    let rows: Vec<_> = rows
        .map(|(kind, what)| format!("{kind:<28} {:>3}", what.len()))
        .collect();
    rows.join("\n")
}

/// What was found, item by item.
pub(super) fn list(found: &Found) -> String {
    let rows = found.iter();
    let rows: Vec<_> = rows
        .map(|(kind, what)| format!("{kind}: {}", what.join(", ")))
        .collect();
    rows.join("\n")
}

/// What a pin holds.
fn object(pin: &Path) -> Result<Option<Object>, LabError> {
    for kind in ["map", "link", "prog"] {
        let mut command = Command::new("bpftool");
        let shown = ask::output(command.args([kind, "show", "pinned"]).arg(pin))?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        if let Some((id, _)) = text.split_once(':').filter(|_| shown.status.success()) {
            return Ok(Some((kind, id.trim().to_owned())));
        }
    }
    Ok(None)
}

/// The names that labs give to devices, apart from those that every machine has.
fn is_of_a_lab(device: &str) -> bool {
    device.starts_with("v-") || ["cni0", "flannel.1", "lan", "wan"].contains(&device)
}

fn proc_net_dev() -> String {
    fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default()
}

/// The devices in a text of the form of /proc/net/dev, without the loopback.
fn devices(table: &str) -> BTreeSet<String> {
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    let names = names.map(|(name, _)| name.trim().to_owned());
    names.filter(|name| name != "lo").collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let names = entries(Path::new("/proc")).into_iter();
    let numbers = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    numbers.map(|number| Path::new("/proc").join(number))
}

/// A directory that exists with all that is in it; its directories only, if asked for.
fn below(root: &Path, dirs_only: bool) -> Vec<String> {
    let mut found: Vec<_> = root.exists().then(|| root.to_owned()).into_iter().collect();
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let children = entries(&dir).into_iter().map(|name| dir.join(name));
        found.extend(children.filter(|path| !dirs_only || path.is_dir()));
    }
    found
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_without_the_loopback() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n v-a-0uton: 3 4\n  cni0: 5 6\n";
        let names: Vec<_> = devices(table).into_iter().collect();
        assert_eq!(names, ["cni0", "v-a-0uton"]);
        assert!(names.iter().all(|name| is_of_a_lab(name)) && !is_of_a_lab("eth0"));
    }

    #[test]
    fn a_table_of_what_was_found_has_one_line_per_kind() {
        let found = Found::from([("mounts", vec!["a".to_owned(), "b".to_owned()])]);
        assert_eq!(table(&found), "mounts                         2");
        assert_eq!(list(&found), "mounts: a, b");
    }

    #[test]
    fn a_directory_that_is_not_there_has_nothing_below_it() {
        assert!(below(Path::new("/does/not/exist"), false).is_empty());
    }
}
