// SPDX-License-Identifier: MIT OR Apache-2.0
//! A folder of manifests: what its files hold, and what has changed since the last look.
//!
//! A file is read again when its identity, size or times differ, and taken in when its text does.
//! While a file has an error, what it held and no longer holds stays: a file that is being saved
//! must not take Services down. A file that is gone takes its objects with it.
//! **Invariant:** of several definitions of one object the first by file name is in force, so the
//! result depends on the folder only and not on the order of its changes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::document::{self, Contents, Problem, Severity};
use crate::model::snapshot::{Change, Object, ObjectRef};

/// Files larger than this are refused; it is ten times the manifests of 10,000 Services.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// A file that changed this recently may change again without its times showing it, because
/// kernels keep them by the tick.
const UNSURE_FOR: Duration = Duration::from_millis(20);

/// The folder cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("read folder {}", path.display())]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// What a look at the folder brought.
#[derive(Debug, Default)]
pub struct Scan {
    /// Changes since the last look.
    pub changes: Vec<Change>,
    /// Problems in the files that were read anew.
    pub problems: Vec<Problem>,
    /// Files that had errors before and have none now.
    pub healed: Vec<String>,
    /// Some file changed so recently that another look is due soon.
    pub unsure: bool,
}

/// Identity, size and times of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    hash: Option<u64>,
    objects: BTreeMap<ObjectRef, Object>,
    has_errors: bool,
}

/// A folder and what was last read from it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<String, File>,
    /// The files that define an object, in the order of their names.
    definitions: BTreeMap<ObjectRef, BTreeSet<String>>,
    /// What was last handed out.
    in_force: BTreeMap<ObjectRef, Object>,
    /// The first look is over.
    looked: bool,
}

impl Folder {
    /// The folder at `path`, nothing read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            files: BTreeMap::new(),
            definitions: BTreeMap::new(),
            in_force: BTreeMap::new(),
            looked: false,
        }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All objects in force.
    pub fn objects(&self) -> Vec<Object> {
        self.in_force.values().cloned().collect()
    }

    /// The files with errors: some of what they are meant to hold may not be in force.
    pub fn unreadable(&self) -> Vec<String> {
        let broken = self.files.iter().filter(|(_, file)| file.has_errors);
        broken.map(|(name, _)| name.clone()).collect()
    }

    /// Looks at every file and says what has changed.
    pub fn scan(&mut self) -> Result<Scan, FolderError> {
        let mut scan = Scan::default();
        let mut touched = BTreeSet::new();
        let present = self.list()?;
        let known: BTreeSet<String> = self.files.keys().cloned().collect();
        for name in known.difference(&present) {
            self.forget(name, &mut touched);
        }
        for name in &present {
            self.look_at(name, &mut scan, &mut touched);
        }
        scan.changes = touched
            .into_iter()
            .filter_map(|reference| self.settle(reference))
            .collect();
        self.looked = true;
        Ok(scan)
    }

    fn list(&self) -> Result<BTreeSet<String>, FolderError> {
        let wrap = |source| FolderError {
            path: self.path.clone(),
            source,
        };
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path).map_err(wrap)? {
            let name = entry.map_err(wrap)?.file_name();
            // A leading dot is an editor's own file, or the data directory of a ConfigMap mount.
            let manifest = name.to_str().filter(|name| {
                let ending = name.rsplit_once('.').map(|(_, ending)| ending);
                !name.starts_with('.') && matches!(ending, Some("yaml" | "yml" | "json"))
            });
            names.extend(manifest.map(str::to_owned));
        }
        Ok(names)
    }

    fn look_at(&mut self, name: &str, scan: &mut Scan, touched: &mut BTreeSet<ObjectRef>) {
        let path = self.path.join(name);
        let stamp = match std::fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => return,
            Ok(meta) => Stamp::of(&meta),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.forget(name, touched);
                return;
            }
            Err(error) => {
                self.refuse(name, &error.to_string(), scan);
                return;
            }
        };
        let file = self.files.entry(name.to_owned()).or_default();
        if file.stamp == Some(stamp) {
            return;
        }
        let unsure = stamp.is_recent();
        scan.unsure |= unsure;
        file.stamp = (!unsure).then_some(stamp);
        if stamp.size > FILE_BYTES_MAX {
            let message = format!("{} bytes are more than {FILE_BYTES_MAX}", stamp.size);
            self.refuse(name, &message, scan);
            return;
        }
        let text = match std::fs::read(&path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => {
                self.refuse(name, "not a text in UTF-8", scan);
                return;
            }
            Err(error) => {
                self.refuse(name, &error.to_string(), scan);
                return;
            }
        };
        self.take_in(name, &text, scan, touched);
    }

    /// Reports a file that cannot be read, once, and leaves what it held in force.
    fn refuse(&mut self, name: &str, message: &str, scan: &mut Scan) {
        let hash = Some(hash_of(message));
        let file = self.files.entry(name.to_owned()).or_default();
        if file.hash == hash {
            return;
        }
        file.hash = hash;
        file.has_errors = true;
        let kept = file.objects.len();
        scan.problems.push(Problem {
            message: format!("{message}{}", kept_note(kept)),
            ..whole_file(name)
        });
    }

    fn take_in(
        &mut self,
        name: &str,
        text: &str,
        scan: &mut Scan,
        touched: &mut BTreeSet<ObjectRef>,
    ) {
        let file = self.files.entry(name.to_owned()).or_default();
        let hash = Some(hash_of(text));
        if file.hash == hash {
            return;
        }
        file.hash = hash;
        if text.is_empty() {
            // Many editors empty a file before they write it; who means it deletes the file. At the
            // first look it may have held anything.
            if !file.objects.is_empty() || !self.looked {
                file.has_errors = true;
                let kept = kept_note(file.objects.len());
                scan.problems.push(Problem {
                    message: format!("the file is empty{kept}; delete it if that is meant"),
                    ..whole_file(name)
                });
            }
            return;
        }
        let Contents { objects, problems } = document::read(name, text);
        scan.problems.extend(problems.iter().cloned());
        let had_errors = file.has_errors;
        file.has_errors = problems.iter().any(|p| p.severity == Severity::Error);
        let before = std::mem::take(&mut file.objects);
        let mut concerned: BTreeSet<ObjectRef> = before.keys().cloned().collect();
        for found in objects {
            let reference = found.object.reference();
            if file.objects.contains_key(&reference) {
                scan.problems.push(Problem {
                    document: Some(found.document),
                    line: Some(found.line),
                    object: Some(reference.to_string()),
                    message: "is in this file already; the first definition is in force".to_owned(),
                    ..whole_file(name)
                });
                continue;
            }
            concerned.insert(reference.clone());
            file.objects.insert(reference, found.object);
        }
        if file.has_errors {
            for (reference, object) in before {
                if let std::collections::btree_map::Entry::Vacant(gap) =
                    file.objects.entry(reference)
                {
                    scan.problems.push(Problem {
                        object: Some(gap.key().to_string()),
                        message: "kept as it was until the file has no error".to_owned(),
                        ..whole_file(name)
                    });
                    gap.insert(object);
                }
            }
        } else if had_errors {
            scan.healed.push(name.to_owned());
        }
        self.define(name, &concerned, scan);
        touched.extend(concerned);
    }

    /// Brings `definitions` up to date for objects that the file `name` holds or held.
    fn define(&mut self, name: &str, concerned: &BTreeSet<ObjectRef>, scan: &mut Scan) {
        for reference in concerned {
            let held = self
                .files
                .get(name)
                .is_some_and(|f| f.objects.contains_key(reference));
            let files = self.definitions.entry(reference.clone()).or_default();
            if held {
                files.insert(name.to_owned());
            } else {
                files.remove(name);
            }
            if held
                && files.len() > 1
                && let Some(first) = files.first()
            {
                scan.problems.push(Problem {
                    object: Some(reference.to_string()),
                    message: format!("is defined in several files; the one in {first} is in force"),
                    ..whole_file(name)
                });
            }
            if files.is_empty() {
                self.definitions.remove(reference);
            }
        }
    }

    fn forget(&mut self, name: &str, touched: &mut BTreeSet<ObjectRef>) {
        let Some(file) = self.files.remove(name) else {
            return;
        };
        for reference in file.objects.into_keys() {
            if let Some(files) = self.definitions.get_mut(&reference) {
                files.remove(name);
                if files.is_empty() {
                    self.definitions.remove(&reference);
                }
            }
            touched.insert(reference);
        }
    }

    /// The change of one object, if what is in force is not what should be.
    fn settle(&mut self, reference: ObjectRef) -> Option<Change> {
        let wanted = self
            .definitions
            .get(&reference)
            .and_then(|files| files.first())
            .and_then(|file| self.files.get(file)?.objects.get(&reference));
        match (wanted, self.in_force.get(&reference)) {
            (Some(wanted), before) if Some(wanted) != before => {
                let wanted = wanted.clone();
                self.in_force.insert(reference, wanted.clone());
                Some(Change::Apply(wanted))
            }
            (None, Some(_)) => {
                self.in_force.remove(&reference);
                Some(Change::Delete(reference))
            }
            _ => None,
        }
    }
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_recent(&self) -> bool {
        let (secs, nanos) = self.changed;
        let since_epoch = Duration::new(
            u64::try_from(secs).unwrap_or_default(),
            u32::try_from(nanos).unwrap_or_default(),
        );
        let changed = SystemTime::UNIX_EPOCH + since_epoch;
        SystemTime::now()
            .duration_since(changed)
            .is_ok_and(|age| age < UNSURE_FOR)
    }
}

fn whole_file(name: &str) -> Problem {
    Problem {
        file: name.to_owned(),
        document: None,
        line: None,
        object: None,
        field: None,
        message: String::new(),
        severity: Severity::Error,
    }
}

fn kept_note(objects: usize) -> String {
    match objects {
        0 => String::new(),
        n => format!("; its {n} objects are kept as they were"),
    }
}

fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
