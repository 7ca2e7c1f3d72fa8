// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file of the state: appended to, read back, and written anew when most of it is dead.
//!
//! A new file is written beside the old one, made safe, and renamed over it.
//! After a write that failed the caller begins a list, or writes nothing.
//! **Invariant:** a line counts when it and every line before it can be read; the spans that are
//! kept are those of the living lines of the file that is open.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Entry, Line, Scope, StateError};
use crate::model::snapshot::{Object, ObjectRef};

/// The name of the file in its folder.
const FILE: &str = "objects.jsonl";
/// What a new file is called until it is complete.
const ASIDE: &str = "objects.jsonl.new";
/// All files that are ever made.
pub(super) const FILES: [&str; 2] = [FILE, ASIDE];
/// The version of what is written; another one is not read.
const VERSION: u32 = 1;
/// A file below this size is not worth writing anew.
const SMALL: u64 = 64 * 1024;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    #[serde(rename = "lbAgentState")]
    version: u32,
}

/// Where a line is, without its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    at: u64,
    length: usize,
}

/// The file, and where its living lines are.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    file: File,
    /// Where the next line goes; there is nothing of ours behind it.
    end: u64,
    living: BTreeMap<ObjectRef, Span>,
    living_bytes: u64,
    /// A list that is not complete yet.
    list: Option<List>,
    /// A write failed: the file may end within a line, or within a list that will never be complete.
    torn: bool,
}

#[derive(Debug)]
struct List {
    scope: Scope,
    lines: BTreeMap<ObjectRef, Span>,
}

/// What a file says, line by line.
#[derive(Debug, Default)]
struct Reading {
    known: Known,
    list: Option<(Scope, Known)>,
}

/// Objects and where their lines are.
type Known = BTreeMap<ObjectRef, (Span, Object)>;

impl Reading {
    fn take(&mut self, line: Line, span: Span) {
        match line {
            Line::Apply(object) => {
                let into = match &mut self.list {
                    Some((_, lines)) => lines,
                    None => &mut self.known,
                };
                into.insert(object.reference(), (span, object));
            }
            Line::Delete(reference) => {
                self.known.remove(&reference);
            }
            Line::Begin(scope) => self.list = Some((scope, BTreeMap::new())),
            Line::End(stay) => {
                if let Some((scope, lines)) = self.list.take() {
                    self.known.retain(|reference, _| {
                        !scope.covers(reference) || stay.contains(reference)
                    });
                    self.known.extend(lines);
                }
            }
        }
    }
}

/// The objects of the file in `folder`.
pub(super) fn objects(folder: &Path) -> Result<Vec<Object>, StateError> {
    let path = folder.join(FILE);
    let reading = File::open(&path).and_then(|file| read(&file, &path));
    let (reading, _) = reading.map_err(|source| StateError::File { path, source })?;
    let living = reading.known.into_values();
    Ok(living.map(|(_, object)| object).collect())
}

impl Log {
    /// Opens the file in `folder`, or begins one, and gives the objects that are in it.
    pub(super) fn open(folder: &Path) -> Result<(Self, Vec<Object>), StateError> {
        let path = folder.join(FILE);
        let wrap = |source| StateError::File {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(wrap)?;
        let (reading, end) = read(&file, &path).map_err(wrap)?;
        let mut log = Self {
            folder: folder.to_owned(),
            file,
            end,
            living: BTreeMap::new(),
            living_bytes: 0,
            list: None,
            torn: false,
        };
        let mut objects = Vec::with_capacity(reading.known.len());
        for (reference, (span, object)) in reading.known {
            log.insert(reference, span);
            objects.push(object);
        }
        // What could not be read must not stand before what is written from now on.
        log.file.set_len(end).map_err(wrap)?;
        if end == 0 || reading.list.is_some() {
            log.rewrite()?;
        }
        Ok((log, objects))
    }

    /// Appends lines.
    pub(super) fn write(&mut self, entries: Vec<Entry>) -> Result<(), StateError> {
        self.mend()?;
        let mut bytes = Vec::new();
        let mut spans = Vec::with_capacity(entries.len());
        for entry in entries {
            let at = self.end + bytes.len() as u64;
            let (reference, line) = match entry {
                Entry::Apply(reference, line) => (reference, Some(line)),
                Entry::Delete(reference) => (reference, None),
            };
            if let Some(line) = line {
                let length = line.len();
                bytes.extend(line);
                bytes.push(b'\n');
                spans.push((reference, Some(Span { at, length })));
            } else {
                bytes.extend(text(&Line::Delete(reference.clone())));
                spans.push((reference, None));
            }
        }
        self.append(&bytes)?;
        for (reference, span) in spans {
            match (&mut self.list, span) {
                (Some(list), Some(span)) => {
                    list.lines.insert(reference, span);
                }
                (None, Some(span)) => self.insert(reference, span),
                (_, None) => self.remove(&reference),
            }
        }
        if self.list.is_none() {
            self.rewrite_if_mostly_dead()?;
        }
        Ok(())
    }

    /// A list begins that replaces what is in `scope`. One that has begun and not ended is void.
    pub(super) fn begin(&mut self, scope: Scope) -> Result<(), StateError> {
        self.list = None;
        self.mend()?;
        self.append(&text(&Line::Begin(scope)))?;
        self.list = Some(List {
            scope,
            lines: BTreeMap::new(),
        });
        Ok(())
    }

    /// The list is complete; what it lacks stays if it is named here.
    pub(super) fn end(&mut self, stay: &[ObjectRef]) -> Result<(), StateError> {
        let Some(list) = self.list.take() else {
            return Ok(());
        };
        self.append(&text(&Line::End(stay.to_vec())))?;
        let gone: Vec<ObjectRef> = self
            .living
            .keys()
            .filter(|reference| list.scope.covers(reference) && !stay.contains(reference))
            .cloned()
            .collect();
        for reference in gone {
            self.remove(&reference);
        }
        for (reference, span) in list.lines {
            self.insert(reference, span);
        }
        self.rewrite_if_mostly_dead()?;
        self.sync()
    }

    /// Gets rid of what a write left that failed.
    fn mend(&mut self) -> Result<(), StateError> {
        if self.torn { self.rewrite() } else { Ok(()) }
    }

    /// Makes what is written safe against a loss of power.
    pub(super) fn sync(&mut self) -> Result<(), StateError> {
        self.file.sync_data().map_err(|e| self.error(e))
    }

    /// Makes every write to the file as it is fail.
    #[cfg(test)]
    pub(super) fn break_file(&mut self) {
        self.file = File::open(self.folder.join(FILE)).unwrap();
    }

    fn insert(&mut self, reference: ObjectRef, span: Span) {
        self.living_bytes += span.length as u64 + 1;
        if let Some(before) = self.living.insert(reference, span) {
            self.living_bytes -= before.length as u64 + 1;
        }
    }

    fn remove(&mut self, reference: &ObjectRef) {
        if let Some(before) = self.living.remove(reference) {
            self.living_bytes -= before.length as u64 + 1;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        match self.file.write_all_at(bytes, self.end) {
            Ok(()) => {
                self.end += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line would hide everything behind it.
                self.torn = true;
                Err(self.error(error))
            }
        }
    }

    fn rewrite_if_mostly_dead(&mut self) -> Result<(), StateError> {
        if self.end < SMALL || self.end <= self.living_bytes * 2 {
            return Ok(());
        }
        self.rewrite()
    }

    /// Writes the living lines to a new file and puts it in place of the old one.
    fn rewrite(&mut self) -> Result<(), StateError> {
        let (file, living, end) = self.copy().map_err(|e| self.error(e))?;
        self.file = file;
        self.living = living;
        self.end = end;
        self.torn = false;
        Ok(())
    }

    fn copy(&self) -> std::io::Result<(File, BTreeMap<ObjectRef, Span>, u64)> {
        let aside = self.folder.join(ASIDE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&aside)?;
        let mut writer = BufWriter::new(&file);
        let mut header = serde_json::to_vec(&Header { version: VERSION })?;
        header.push(b'\n');
        writer.write_all(&header)?;
        let mut end = header.len() as u64;
        let mut living = BTreeMap::new();
        let mut line = Vec::new();
        for (reference, span) in &self.living {
            line.resize(span.length, 0);
            self.file.read_exact_at(&mut line, span.at)?;
            writer.write_all(&line)?;
            writer.write_all(b"\n")?;
            let length = span.length;
            living.insert(reference.clone(), Span { at: end, length });
            end += length as u64 + 1;
        }
        writer.flush()?;
        drop(writer);
        file.sync_data()?;
        std::fs::rename(&aside, self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_all()?;
        Ok((file, living, end))
    }

    fn error(&self, source: std::io::Error) -> StateError {
        StateError::File {
            path: self.folder.join(FILE),
            source,
        }
    }
}

/// A line with its newline. Marks and references always have a text.
fn text(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Reads a file as far as it makes sense. Gives what it says and where the sense ends.
fn read(file: &File, path: &Path) -> std::io::Result<(Reading, u64)> {
    let mut reading = Reading::default();
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok((reading, 0));
    }
    let header = serde_json::from_slice::<Header>(&line);
    if !header.is_ok_and(|header| header.version == VERSION) {
        warn!("{} is not of this version and is not used", path.display());
        return Ok((reading, 0));
    }
    let mut at = line.len() as u64;
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        let whole = line.strip_suffix(b"\n");
        let Some(read) = whole.and_then(|whole| serde_json::from_slice::<Line>(whole).ok()) else {
            let mut rest = Vec::new();
            let lost = line.len() as u64 + reader.read_to_end(&mut rest)? as u64;
            let path = path.display();
            warn!("{path}: the last {lost} bytes cannot be read; what is before them is used");
            break;
        };
        let length = line.len() - 1;
        reading.take(read, Span { at, length });
        at += line.len() as u64;
    }
    if reading.list.is_some() {
        info!(
            "{}: its last list is not complete; the one before it is used",
            path.display()
        );
    }
    Ok((reading, at))
}
