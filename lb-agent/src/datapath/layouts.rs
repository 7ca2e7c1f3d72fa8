// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is pinned so that a later build can change the layouts under traffic, and what such a change
//! leaves behind.
//!
//! `<bpffs>/programs/NAME` is the program that was attached last, `<bpffs>/upgrade-N/` holds what a
//! change to layout N needs until the last attach point has a program of it.
//! **Invariant:** a program is pinned before it is attached, so whatever is attached can be found
//! there. Next: `upgrade/`, in builds that have a way from an older layout.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::SchedClassifier;

use super::error::DatapathError;
use super::pins::{self, Pins, UPGRADE_PREFIX};

/// The layout that this build can start from beside its own.
const WAY_FROM: Option<u32> = if cfg!(feature = "layout-next") {
    Some(3)
} else {
    None
};

/// True when flows and tables of this layout can be taken over.
pub(super) fn has_way_from(found: Option<&str>) -> bool {
    WAY_FROM.is_some_and(|older| found == Some(&older.to_string()))
}

impl Pins {
    /// Path of the program `name` as it was attached last.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Directory of the programs that were attached last.
    pub(super) fn programs(&self) -> PathBuf {
        self.map("programs")
    }

    /// Directory of what a change to the layout of this number needs.
    #[cfg(feature = "layout-next")]
    pub(super) fn upgrade(&self, layout: u32) -> PathBuf {
        self.map(&format!("{UPGRADE_PREFIX}{layout}"))
    }

    /// Puts a program in the place of the one that was attached before.
    pub(super) fn pin_program(
        &self,
        program: &mut SchedClassifier,
        name: &str,
    ) -> Result<(), DatapathError> {
        let failed = |what, path: &Path, source| DatapathError::Directory {
            what,
            path: path.to_owned(),
            source,
        };
        let directory = self.programs();
        std::fs::create_dir_all(&directory)
            .map_err(|source| failed("create directory", &directory, source))?;
        let fresh = directory.join(format!("{name}-new"));
        remove_file(&fresh)?;
        program
            .pin(&fresh)
            .map_err(|source| failed("pin program", &fresh, io::Error::other(source)))?;
        // ORDER: one rename replaces the pin, so there is one at every moment.
        let path = self.program(name);
        std::fs::rename(&fresh, &path).map_err(|source| failed("replace program", &path, source))
    }

    /// Removes what programs that are attached no more needed: all programs but these, and what
    /// changes of layouts have left.
    pub(super) fn forget_earlier(
        &self,
        programs: &BTreeSet<&'static str>,
    ) -> Result<(), DatapathError> {
        for name in pins::list(&self.programs())? {
            if !programs.contains(name.as_str()) {
                remove_file(&self.program(&name))?;
            }
        }
        let all = pins::list(&self.map(""))?;
        for name in all.iter().filter(|name| name.starts_with(UPGRADE_PREFIX)) {
            let directory = self.map(name);
            for name in pins::list(&directory)? {
                remove_file(&directory.join(name))?;
            }
            std::fs::remove_dir(&directory).map_err(|source| DatapathError::Directory {
                what: "remove directory",
                path: directory,
                source,
            })?;
        }
        Ok(())
    }
}

/// Removes a pin; none is no error.
pub(super) fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::Directory {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
