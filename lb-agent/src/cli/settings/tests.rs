// SPDX-License-Identifier: MIT OR Apache-2.0
//! Precedence, the sentences about wrong values, and the schema.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::CommandFactory as _;

use super::*;
use crate::cli::Cli;

/// What a setting ends as, or the sentence.
fn set(words: &[&str], environment: &[(&str, &str)], id: &str) -> Result<Vec<String>, String> {
    let (matches, origins) = parse(words, environment)?;
    assert_eq!(origins.notes, Vec::<String>::new());
    let run = matches.subcommand().map_or(&matches, |(_, run)| run);
    let raw = run.get_raw(id).into_iter().flatten();
    Ok(raw
        .map(|value| value.to_string_lossy().into_owned())
        .collect())
}

fn parse(words: &[&str], environment: &[(&str, &str)]) -> Result<(ArgMatches, Origins), String> {
    let arguments = ["lb-agent"].iter().chain(words).map(OsString::from);
    let pairs = environment.iter();
    let environment: Vec<_> = pairs.map(|(n, v)| (n.into(), v.into())).collect();
    let read = read(&mut Cli::command(), arguments.collect(), &environment);
    read.map_err(|refused| match refused {
        Refused::ByClap(error) => error.to_string(),
        Refused::Sentence(sentence) => sentence,
    })
}

/// A file of settings, for as long as the folder is kept.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, text).unwrap();
    (folder, path.display().to_string())
}

#[test]
fn a_flag_comes_before_its_variable_that_before_the_file_that_before_the_default() {
    let (_folder, path) = file("socketLb: off\nmasqueradeAll: true\nclusterCidr: [10.0.0.0/8]\n");
    let variable = [
        ("LB_SOCKET_LB", "all"),
        ("LB_CLUSTER_CIDR", "10.1.0.0/16,fd00::/8"),
    ];
    for verb in [&[][..], &["run"]] {
        let with = |more: &[&'static str]| [verb, &["--config", &path], more].concat();
        let mode =
            |words: &[&str], environment: &[_]| set(words, environment, "socket_lb").unwrap();
        assert_eq!(mode(verb, &[]), ["host"]);
        assert_eq!(mode(&with(&[]), &[]), ["off"]);
        assert_eq!(mode(&with(&[]), &variable), ["all"]);
        assert_eq!(mode(&with(&["--socket-lb=host"]), &variable), ["host"]);
        let all = |words: &[&str]| set(words, &[], "masquerade_all").unwrap();
        assert_eq!(all(&with(&[])), ["true"]);
        assert_eq!(all(&with(&["--masquerade-all=false"])), ["false"]);
        assert_eq!(all(verb), ["false"]);
        let ranges = |environment: &[_]| set(&with(&[]), environment, "cluster_cidr").unwrap();
        assert_eq!(ranges(&[]), ["10.0.0.0/8"]);
        assert_eq!(ranges(&variable), ["10.1.0.0/16", "fd00::/8"]);
    }
    let by_variable = [("LB_CONFIG", path.as_str()), ("LB_NODE", "")];
    assert_eq!(set(&[], &by_variable, "socket_lb").unwrap(), ["off"]);
    assert_eq!(
        set(&["doctor"], &by_variable, "bpffs").unwrap(),
        ["/sys/fs/bpf/lb"]
    );
}

#[test]
fn other_verbs_take_where_things_are_and_nothing_else() {
    let (_folder, path) = file("bpffs: /run/lb\nmanifests: /nowhere\nmasqueradeAll: true\n");
    let environment = [("LB_CONFIG", path.as_str())];
    assert_eq!(
        set(&["doctor"], &environment, "bpffs").unwrap(),
        ["/run/lb"]
    );
    let plan = ["plan", "--manifests", "here"];
    assert_eq!(set(&plan, &environment, "manifests").unwrap(), ["here"]);
    assert_eq!(
        set(&plan, &environment, "masquerade_all").unwrap(),
        ["false"]
    );
}

#[test]
fn a_wrong_value_is_refused_with_its_place() {
    let refused = |words: &[&str], environment: &[_]| set(words, environment, "node").unwrap_err();
    assert_eq!(
        refused(&[], &[("LB_SOCKET_LB", "hots")]),
        "LB_SOCKET_LB: \"hots\" cannot be used; give off, host or all"
    );
    let (_folder, path) = file("node: a\nkubeconfig: k\n");
    let sentence = refused(&["--config", &path, "--manifests", "d"], &[]);
    let place = format!("(--kubeconfig comes from kubeconfig in {path}, line 2)");
    assert!(
        sentence.contains("--manifests") && sentence.ends_with(&place),
        "{sentence}"
    );
    let missing = refused(&["--config", "/nowhere/c.yaml"], &[]);
    assert!(
        missing.starts_with("--config /nowhere/c.yaml: "),
        "{missing}"
    );
    let by_clap = refused(&["--socket-lb", "hots"], &[]);
    assert!(
        by_clap.contains("[possible values: off, host, all]"),
        "{by_clap}"
    );
}

#[test]
fn a_sentence_about_a_flag_says_where_its_value_comes_from() {
    let (_, origins) = parse(&[], &[("LB_NODEPORT_ADDRESSES", "nonsense")]).unwrap();
    let sentence = |text: &str| origins.explain(text.to_owned());
    assert_eq!(
        sentence("--nodeport-addresses nonsense: no range"),
        "--nodeport-addresses nonsense: no range \
         (--nodeport-addresses comes from the variable LB_NODEPORT_ADDRESSES)"
    );
    assert_eq!(
        sentence("--nodeport-addresses-of x"),
        "--nodeport-addresses-of x"
    );
}

#[test]
fn a_variable_that_nearly_is_a_setting_is_told() {
    let service = ("LB_SERVICE_HOST", "10.0.0.1");
    let variables = [
        service,
        ("LB_PORT_80_TCP", "x"),
        ("LB_SOCKETLBS", "all"),
        ("LB_LOG", "x"),
    ];
    let (_, origins) = parse(&[], &variables).unwrap();
    let note = "the variable LB_SOCKETLBS sets nothing; do you mean LB_SOCKET_LB?";
    assert_eq!(origins.notes, [note]);
}

#[test]
fn the_schema_in_the_repository_is_that_of_the_flags() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config.schema.json");
    let schema = config_schema();
    if std::env::var_os("LB_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &schema).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(stored, schema, "`cargo xtask bless config` writes it anew");
}

#[test]
fn help_names_the_variables_and_the_file() {
    for words in [&["--help"][..], &["run", "--help"]] {
        let help = set(words, &[], "node").unwrap_err();
        for word in [
            "LB_SOCKET_LB",
            "socketLb",
            "LB_CONFIG",
            "--healthz-bind-address",
        ] {
            assert!(help.contains(word), "{word} in:\n{help}");
        }
    }
}
