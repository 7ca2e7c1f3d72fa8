// SPDX-License-Identifier: MIT OR Apache-2.0
//! What manifests may say: which crate of ours depends on which, and that versions live at the top.
//!
//! **Invariant:** reads manifests by lines, in the layout that they have here (a section header, then
//! one dependency per line).
//! Read next: rooms.rs, the same between modules.

use super::Violation;

/// Which crates of ours each may depend on. For building and testing too, where [`BUILD_ONLY`]
/// says more.
const MAY: &[(&str, &[&str])] = &[
    ("xtask", &[]),
    ("lb-common", &[]),
    ("lb-ebpf", &["lb-common"]),
    ("lb-agent", &["lb-common"]),
    ("lb-lab", &["lb-common"]),
];
/// Only so that a build script is run again, and so that tests run the packet path on the host and
/// follow the lab's API server.
const BUILD_ONLY: [(&str, &str); 2] = [("lb-agent", "lb-ebpf"), ("lb-agent", "lb-lab")];
/// No member of the workspace, so it can inherit nothing.
const OUTSIDE: &str = "lb-agent/fuzz/Cargo.toml";

/// Every line of a member's manifest that breaks a rule.
pub(super) fn check(path: &str, content: &str) -> Vec<Violation> {
    // The root manifest is where versions live.
    let Some((package, _)) = path.split_once('/').filter(|_| path != OUTSIDE) else {
        return Vec::new();
    };
    let Some((_, allowed)) = MAY.iter().find(|(name, _)| *name == package) else {
        return Vec::new();
    };
    let mut violations = Vec::new();
    let mut section = "";
    for (index, line) in content.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        if !section.contains("dependencies") {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let name = name.trim().trim_end_matches(".workspace");
        let ours = name.starts_with("lb-") || name == "xtask";
        let aside = section.contains("build-dependencies") || section.contains("dev-dependencies");
        let build_only = aside && BUILD_ONLY.contains(&(package, name));
        let mut say = |sentence: String| {
            violations.push(Violation {
                path: path.to_owned(),
                line: index + 1,
                sentence,
            });
        };
        if ours && !allowed.contains(&name) && !build_only {
            say(format!("{package} must not depend on {name}"));
        }
        let inherited = line.contains("workspace = true");
        if !inherited && (value.contains("version") || value.trim_start().starts_with('"')) {
            say("versions live in the root manifest only: write `workspace = true`".to_owned());
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(path: &str, text: &str) -> Vec<String> {
        check(path, text)
            .into_iter()
            .map(|violation| violation.to_string())
            .collect()
    }

    #[test]
    fn the_tasks_depend_on_no_crate_of_ours() {
        let found = sentences(
            "xtask/Cargo.toml",
            "[dependencies]\nlb-common.workspace = true\n",
        );
        assert_eq!(
            found,
            ["xtask/Cargo.toml:2: xtask must not depend on lb-common"]
        );
    }

    #[test]
    fn the_agent_names_the_programs_for_building_and_testing_only() {
        for section in ["build-dependencies", "dev-dependencies"] {
            let text = format!("[{section}]\nlb-ebpf = {{ workspace = true }}\n");
            assert_eq!(sentences("lb-agent/Cargo.toml", &text), [""; 0]);
        }
        let normal = "[dependencies]\nlb-ebpf = { workspace = true }\n";
        assert_eq!(sentences("lb-agent/Cargo.toml", normal).len(), 1);
    }

    #[test]
    fn a_version_outside_the_root_is_found() {
        let found = sentences("lb-lab/Cargo.toml", "[dependencies]\nanyhow = \"1.0\"\n");
        assert_eq!(found.len(), 1);
        assert_eq!(
            sentences("Cargo.toml", "[workspace.dependencies]\nanyhow = \"1\"\n"),
            [""; 0]
        );
    }
}
