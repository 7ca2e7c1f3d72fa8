// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask image`: the agent's container image, as an archive of OCI's layout.
//!
//! A program that needs no library, alone in an image without a shell; built and packed without an
//! engine and without a network.
//! **Invariant:** everything that is made lies below target/image; a program that is not static, and
//! an image that holds more than it, are failures. Read next: toolchain.rs, program.rs, archive.rs.

mod archive;
mod program;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use self::archive::Archive;
use self::program::Program;
pub(crate) use self::toolchain::{Arch, Toolchain};
use crate::doctor::{self, Scope};
use crate::process::{self, cargo, command, first_line, run, target_dir};
use crate::table::render;

/// Builds the agent's container image: one static program, as an OCI archive.
///
/// Needs root, and no network once the crates are there; gets what the machine lacks first, as
/// `doctor --fix --for image` does. The archive goes to target/image; `skopeo copy oci-archive:FILE
/// docker://NAME` publishes it, `ctr -n k8s.io images import FILE` gives it to a node.
#[derive(clap::Args)]
pub(crate) struct Image {
    /// The processor to build for [default: this machine's]
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// The image's name in the archive
    #[arg(long, default_value = concat!("localhost/lb-agent:", env!("CARGO_PKG_VERSION")), value_name = "NAME:TAG")]
    tag: String,
    /// Pack this static program instead of building one
    #[arg(long, value_name = "FILE", conflicts_with = "program_only")]
    program: Option<PathBuf>,
    /// Also run the image's program in the lab, as the chart's container
    #[arg(long, conflicts_with = "program_only")]
    check: bool,
    /// Build and check the program only, as target/image/lb-agent; needs neither root nor buildah
    #[arg(long)]
    program_only: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Image {
    pub(crate) fn run(&self) -> Result<()> {
        let arch = self.arch.unwrap_or_else(Arch::own);
        if self.check && arch != Arch::own() {
            bail!(
                "--check runs the program, and this machine runs no {}",
                arch.name()
            );
        }
        if !self.program_only {
            doctor::require_privileges(
                "buildah makes the image as root, and its program is tried there",
            )?;
        }
        doctor::prepare(if self.program_only {
            Scope::Program
        } else {
            Scope::Image
        })?;
        let work = target_dir()?.join("image");
        let (program, compiler) = match &self.program {
            Some(path) => (program::look_at(path, arch)?, "unknown".to_owned()),
            None => Self::build(arch, &work)?,
        };
        let archive = if self.program_only {
            None
        } else {
            let folder = work.join(arch.name());
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            Some(archive::make(&program, arch, &self.tag, &folder)?)
        };
        let version = match &archive {
            Some(archive) if arch == Arch::own() => Some(say_version(&archive.rootfs)?),
            _ => None,
        };
        let facts = facts(&program, archive.as_ref(), version, &compiler);
        match self.output {
            Format::Table => print!("{}", render(&rows(&facts))),
            Format::Json => println!("{}", document(facts)),
        }
        match &archive {
            Some(archive) if self.check => check(&archive.rootfs.join("lb-agent")),
            _ => Ok(()),
        }
    }

    /// The program, and who compiled it.
    fn build(arch: Arch, work: &Path) -> Result<(Program, String)> {
        let toolchain = Toolchain::find(arch)?;
        if process::find_program(&arch.c_compiler()).is_none() {
            bail!(
                "a program for {} needs {}: install it",
                arch.name(),
                arch.c_compiler()
            );
        }
        let compiler = toolchain.describe();
        eprintln!("compiler: {compiler}");
        Ok((program::build(&toolchain, work)?, compiler))
    }
}

/// What the image's program says where there is nothing but itself.
fn say_version(rootfs: &Path) -> Result<String> {
    let said = first_line(
        command("chroot")
            .arg(rootfs)
            .args(["/lb-agent", "--version"]),
    );
    let said = said.context("run the image's program in its own root")?;
    if said != concat!("lb-agent ", env!("CARGO_PKG_VERSION")) {
        bail!("the image's program says that it is {said}");
    }
    Ok(said)
}

/// One thing about what was made, for a person and for a program.
struct Fact {
    label: &'static str,
    /// A line each.
    text: Vec<String>,
    key: &'static str,
    value: Value,
}

impl Fact {
    fn new(label: &'static str, key: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            label,
            value: json!(text),
            text: vec![text],
            key,
        }
    }

    fn size(label: &'static str, key: &'static str, bytes: u64) -> Self {
        Self {
            label,
            text: vec![mebibytes(bytes)],
            key,
            value: json!(bytes),
        }
    }

    fn layers(layers: &[(String, u64)]) -> Self {
        let text = layers
            .iter()
            .map(|(digest, bytes)| format!("{digest}, {}", mebibytes(*bytes)));
        let values = layers
            .iter()
            .map(|(digest, bytes)| json!({"digest": digest, "bytes": bytes}));
        Self {
            label: "layers",
            text: text.collect(),
            key: "layers",
            value: values.collect(),
        }
    }
}

fn facts(
    program: &Program,
    archive: Option<&Archive>,
    version: Option<String>,
    compiler: &str,
) -> Vec<Fact> {
    let mut facts = Vec::new();
    if let Some(archive) = archive {
        let path = archive.path.display().to_string();
        facts.push(Fact::new("archive", "archive", path));
        facts.push(Fact::new("name", "name", archive.reference.as_str()));
        facts.push(Fact::size("size", "bytes", archive.bytes));
        facts.push(Fact::new("digest", "digest", archive.digest.as_str()));
        facts.push(Fact::layers(&archive.layers));
    }
    let path = program.path.display().to_string();
    facts.push(Fact::new("program", "program", path));
    facts.push(Fact::size("program size", "programBytes", program.bytes));
    let movable = if program.movable {
        "static, loaded at any address"
    } else {
        "static, loaded at a fixed address"
    };
    facts.push(Fact::new("program kind", "programKind", movable));
    facts.push(Fact::new("compiler", "compiler", compiler));
    if let Some(version) = version {
        facts.push(Fact::new("alone in a root", "version", version));
    }
    facts
}

fn rows(facts: &[Fact]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for fact in facts {
        for (number, line) in fact.text.iter().enumerate() {
            let label = if number == 0 { fact.label } else { "" };
            rows.push(vec![label.to_owned(), line.clone()]);
        }
    }
    rows
}

fn document(facts: Vec<Fact>) -> Value {
    let fields = facts
        .into_iter()
        .map(|fact| (fact.key.to_owned(), fact.value));
    Value::Object(fields.collect())
}

/// `12.3 MiB`.
fn mebibytes(bytes: u64) -> String {
    let tenths = (bytes * 10 + (1 << 19)) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// Runs the program in the lab with the rights that the chart gives it.
fn check(program: &Path) -> Result<()> {
    let program: PathBuf = program.to_path_buf();
    doctor::prepare(Scope::Test)?;
    let mut test = cargo("test");
    test.args([
        "--locked",
        "--package",
        "lb-lab",
        "--test",
        "e2e",
        "contained::",
    ]);
    run(test.env("LB_AGENT", program).env("LB_REQUIRE_BPF", "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_digit_behind_the_point() {
        assert_eq!(mebibytes(0), "0.0 MiB");
        assert_eq!(mebibytes(1_572_864), "1.5 MiB");
        assert_eq!(mebibytes((20 << 20) - 1), "20.0 MiB");
    }

    #[test]
    fn the_table_has_a_line_for_each_layer() {
        let layers = Fact::layers(&[("a".into(), 0), ("b".into(), 1 << 20)]);
        let facts = vec![layers, Fact::size("size", "bytes", 1 << 20)];
        let table = "layers  a, 0.0 MiB\n        b, 1.0 MiB\nsize    1.0 MiB\n";
        assert_eq!(render(&rows(&facts)), table);
        let layers = json!([{"digest": "a", "bytes": 0}, {"digest": "b", "bytes": 1 << 20}]);
        assert_eq!(document(facts), json!({"layers": layers, "bytes": 1 << 20}));
    }
}
