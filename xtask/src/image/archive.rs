// SPDX-License-Identifier: MIT OR Apache-2.0
//! The archive: buildah makes it by the Dockerfile's last stage, and it is read again.
//!
//! Nothing is pulled and nothing runs in a container. Times in the image are the commit's, so the same
//! sources give the same digest.
//! **Invariant:** what is reported was read from the archive itself. Read next: lb-agent/Dockerfile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::program::Program;
use super::toolchain::Arch;
use crate::process::{command, first_line, quietly, root};

const DOCKERFILE: &str = "lb-agent/Dockerfile";
/// Where the last stage gets the program from, and where the archive's build has it.
const FROM_BUILD: &str = "--from=build /lb/target/image/lb-agent";
const FROM_FOLDER: &str = "lb-agent";

/// An archive and what was read from it.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// The manifest's.
    pub(crate) digest: String,
    /// Digest and size of each layer.
    pub(crate) layers: Vec<(String, u64)>,
    pub(crate) reference: String,
    /// All layers, unpacked.
    pub(crate) rootfs: PathBuf,
}

/// Makes the archive of a program below `work`.
pub(crate) fn make(program: &Program, arch: Arch, reference: &str, work: &Path) -> Result<Archive> {
    let folder = fresh(&work.join("context"))?;
    let copied = folder.join(FROM_FOLDER);
    fs::copy(&program.path, &copied).context("copy the program")?;
    let text = fs::read_to_string(root().join(DOCKERFILE)).context("read the Dockerfile")?;
    write(&work.join("Containerfile"), &last_stage(&text)?)?;
    let trust = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    write(&work.join("policy.json"), trust)?;
    let store = fresh(&work.join("store"))?;
    let path = work.join(format!(
        "lb-agent-{}-{}.tar",
        env!("CARGO_PKG_VERSION"),
        arch.name()
    ));
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    let buildah = |verb: &str| {
        let mut buildah = command("buildah");
        buildah
            .env("STORAGE_DRIVER", "vfs")
            .arg("--root")
            .arg(store.join("root"));
        buildah.arg("--runroot").arg(store.join("run"));
        buildah
            .arg(verb)
            .arg("--signature-policy")
            .arg(work.join("policy.json"));
        buildah
    };
    let mut build = buildah("build");
    build.args([
        "--isolation",
        "chroot",
        "--format",
        "oci",
        "--identity-label=false",
    ]);
    build.args(["--platform", &format!("linux/{}", arch.name())]);
    build.args(["--timestamp", &time(), "--tag", reference]);
    build
        .arg("--build-arg")
        .arg(concat!("VERSION=", env!("CARGO_PKG_VERSION")));
    build
        .arg("--build-arg")
        .arg(format!("REVISION={}", revision()));
    build
        .arg("--file")
        .arg(work.join("Containerfile"))
        .arg(&folder);
    quietly("buildah build", &mut build)?;
    let mut push = buildah("push");
    push.arg(reference);
    push.arg(format!("oci-archive:{}:{reference}", path.display()));
    quietly("buildah push", &mut push)?;
    fs::remove_dir_all(&store).context("remove buildah's store")?;
    read(&path, reference, arch, work)
}

/// The Dockerfile from its last `FROM` on, with the program out of a folder.
fn last_stage(text: &str) -> Result<String> {
    let begin = text.rfind("\nFROM scratch\n");
    let begin = begin.context("find `FROM scratch` in the Dockerfile")?;
    let stage = &text[begin + 1..];
    if stage.matches(FROM_BUILD).count() != 1 {
        bail!("the Dockerfile's last stage must copy `{FROM_BUILD}` once");
    }
    Ok(stage.replace(FROM_BUILD, FROM_FOLDER))
}

/// Reads an archive again, with everything that is in it.
fn read(path: &Path, reference: &str, arch: Arch, work: &Path) -> Result<Archive> {
    let layout = fresh(&work.join("layout"))?;
    untar(path, &layout)?;
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let index = json(&layout.join("index.json"))?;
    let digest = text(&index, "/manifests/0/digest")?;
    let manifest = json(&blob(&digest))?;
    let config = json(&blob(&text(&manifest, "/config/digest")?))?;
    for (field, expected) in [
        ("/architecture", arch.name()),
        ("/os", "linux"),
        ("/config/User", "0"),
        ("/config/Entrypoint/0", "/lb-agent"),
        (
            "/config/Labels/org.opencontainers.image.version",
            env!("CARGO_PKG_VERSION"),
        ),
    ] {
        let found = text(&config, field)?;
        if found != expected {
            bail!("the image has {field} {found}, not {expected}: mend {DOCKERFILE}");
        }
    }
    let rootfs = fresh(&work.join("rootfs"))?;
    let mut layers = Vec::new();
    let described = manifest.pointer("/layers").and_then(Value::as_array);
    for layer in described.context("read the image's layers")? {
        let digest = text(layer, "/digest")?;
        let size = layer.get("size").and_then(Value::as_u64);
        untar(&blob(&digest), &rootfs)?;
        layers.push((digest, size.context("read a layer's size")?));
    }
    let files = fs::read_dir(&rootfs)?.collect::<Result<Vec<_>, _>>()?;
    if files.len() != 1 || files[0].file_name() != "lb-agent" {
        bail!("the image holds more than the program: mend {DOCKERFILE}");
    }
    let bytes = fs::metadata(path)?.len();
    Ok(Archive {
        path: path.to_path_buf(),
        bytes,
        digest,
        layers,
        reference: reference.to_owned(),
        rootfs,
    })
}

/// The time that files of the image have: `SOURCE_DATE_EPOCH`, else the commit's.
fn time() -> String {
    let named = std::env::var("SOURCE_DATE_EPOCH").ok();
    named
        .or_else(|| git(&["log", "-1", "--format=%ct"]))
        .unwrap_or_else(|| "0".to_owned())
}

/// The commit, and whether there is more than that.
fn revision() -> String {
    git(&[
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty",
        "--exclude=*",
    ])
    .unwrap_or_else(|| "unknown".to_owned())
}

fn git(words: &[&str]) -> Option<String> {
    first_line(command("git").args(words))
}

fn untar(archive: &Path, to: &Path) -> Result<()> {
    let mut tar: Command = command("tar");
    let done = tar.arg("-xf").arg(archive).arg("-C").arg(to).output();
    let done = done.context("start tar")?;
    if !done.status.success() {
        bail!(
            "unpack {}: {}",
            archive.display(),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(())
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let words = value.pointer(pointer).and_then(Value::as_str);
    Ok(words
        .with_context(|| format!("find {pointer} in the image"))?
        .to_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// An empty folder.
fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_of_the_dockerfile_takes_the_program_out_of_a_folder() {
        let text = fs::read_to_string(root().join(DOCKERFILE)).unwrap();
        let stage = last_stage(&text).unwrap();
        assert!(stage.starts_with("FROM scratch\n"), "{stage}");
        assert!(stage.contains("\nCOPY lb-agent /lb-agent\n"), "{stage}");
        assert!(!stage.contains("RUN"), "{stage}");
    }
}
