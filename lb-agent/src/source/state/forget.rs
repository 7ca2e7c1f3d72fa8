// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removes what is remembered, for good.
//!
//! **Invariant:** only files that `log.rs` makes, and their folder when nothing else is in it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::log::FILES;

/// Removes what is remembered in a folder; tells of each path whether it was there.
pub fn forget(folder: &Path) -> Vec<(PathBuf, io::Result<bool>)> {
    let files = FILES.map(|name| folder.join(name)).into_iter();
    let mut done: Vec<_> = files
        .map(|path| {
            let gone = std::fs::remove_file(&path);
            (path, was_there(gone))
        })
        .collect();
    let gone = was_there(std::fs::remove_dir(folder));
    done.push((folder.to_owned(), gone));
    done
}

fn was_there(removed: io::Result<()>) -> io::Result<bool> {
    // Of a folder: something of others is in it, or a file system is mounted there.
    let stays = [
        ErrorKind::NotFound,
        ErrorKind::DirectoryNotEmpty,
        ErrorKind::ResourceBusy,
    ];
    match removed {
        Err(error) if stays.contains(&error.kind()) => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_remembered_goes() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("state");
        std::fs::create_dir(&folder).unwrap();
        for name in ["objects.jsonl", "objects.jsonl.new", "notes.txt"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let gone = |folder: &Path| -> Vec<bool> {
            let done = forget(folder).into_iter();
            done.map(|(_, gone)| gone.unwrap()).collect()
        };
        assert_eq!(gone(&folder), [true, true, false]);
        assert!(folder.join("notes.txt").exists());
        std::fs::remove_file(folder.join("notes.txt")).unwrap();
        assert_eq!(gone(&folder), [false, false, true]);
        assert_eq!(gone(&folder), [false, false, false]);
    }
}
