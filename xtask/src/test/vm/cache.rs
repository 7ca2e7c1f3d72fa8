// SPDX-License-Identifier: MIT OR Apache-2.0
//! Folders of kernels in the user's cache, which several processes may use at once.
//!
//! **Invariant:** a folder is made under a name that has its process in it, and takes its place whole.
//! Read next: kernel.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// No kernel takes so long to fetch.
const ABANDONED: Duration = Duration::from_hours(6);

/// Where this process alone keeps a folder for a while.
pub(super) fn beside(dir: &Path, what: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!("{name}.{what}.{}", std::process::id()))
}

/// Removes what processes have left behind that are gone.
pub(super) fn sweep(cache: &Path) -> Result<()> {
    let entries = fs::read_dir(cache).with_context(|| format!("read {}", cache.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of_process = |what: &str| Some(name.rsplit_once(&format!(".{what}."))?.1);
        let id = of_process("part").or_else(|| of_process("old"));
        let gone = id.is_some_and(|id| !Path::new("/proc").join(id).exists());
        // A process that we do not see may share the folder: of that, it is new.
        let modified = entry.metadata().and_then(|of| of.modified()).ok();
        let age = modified.and_then(|modified| modified.elapsed().ok());
        if name.starts_with("kernel-") && gone && age.is_some_and(|age| age > ABANDONED) {
            // Whoever looks at the same time removes it, too; what is still there is no harm.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    Ok(())
}

/// Puts a whole folder in its place. One that another process has put there meanwhile is as good,
/// unless there is to be a new one.
pub(super) fn swap(part: &Path, dir: &Path, anew: bool) -> Result<()> {
    let remove =
        |dir: &Path| fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()));
    if anew && dir.exists() {
        let old = beside(dir, "old");
        fs::rename(dir, &old).with_context(|| format!("move {} away", dir.display()))?;
        if let Err(error) = fs::rename(part, dir) {
            // Whatever is there now, ours or another process's, works.
            drop(fs::rename(&old, dir));
            return Err(error).with_context(|| format!("keep {}", dir.display()));
        }
        return remove(&old);
    }
    match fs::rename(part, dir) {
        Err(_) if dir.is_dir() => remove(part),
        kept => kept.with_context(|| format!("keep {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_whole_kernel_takes_the_place_of_an_old_one_or_gives_way() {
        let cache = std::env::temp_dir().join(format!("lb-xtask-kernels-{}", std::process::id()));
        let (dir, part) = (cache.join("kernel-1"), cache.join("kernel-1.part.1"));
        let fill = |dir: &Path, words: &str| {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("vmlinux"), words).unwrap();
        };
        let now = || fs::read_to_string(dir.join("vmlinux")).unwrap();
        for (words, anew, expected) in [
            ("first", false, "first"),
            ("beside another", false, "first"),
            ("anew", true, "anew"),
        ] {
            fill(&part, words);
            swap(&part, &dir, anew).unwrap();
            assert_eq!(now(), expected);
            assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "nothing is left");
        }
        let (nobodys, new) = (
            cache.join("kernel-2.part.nobody"),
            cache.join("kernel-2.old.nobody"),
        );
        let ours = beside(&dir, "old");
        for dir in [&nobodys, &new, &ours] {
            fill(dir, "");
        }
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        for dir in [&nobodys, &ours, &dir] {
            let dir = fs::File::open(dir).unwrap();
            dir.set_modified(long_ago).unwrap();
        }
        sweep(&cache).unwrap();
        assert!(!nobodys.exists());
        assert!(new.exists() && ours.exists() && dir.exists());
        fs::remove_dir_all(&cache).unwrap();
    }
}
