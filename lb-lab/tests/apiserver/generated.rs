// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generated clusters, and the program that serves them.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use lb_lab::apiserver::{Cluster, ClusterSpec};
use serde_json::Value;

use crate::client::{Client, SERVICES, SLICES};
use crate::server;

/// The program, spoken to by lines.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lb-lab"))
            .arg("apiserver")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        self.line()
    }

    fn cpu_secs(&mut self) -> f64 {
        let stats = self.ask("stats");
        let mut words = stats.split(' ');
        let cpu = words.find_map(|word| word.strip_prefix("cpu_s="));
        cpu.unwrap().parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Sends a request; the answer is the caller's to read.
fn ask(address: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn items(list: &Value) -> &Vec<Value> {
    list["items"].as_array().unwrap()
}

#[test]
fn a_generated_cluster_is_as_large_as_it_should_be() {
    let server = server("");
    let spec = ClusterSpec {
        services: 120,
        endpoints_per_service: 3,
        big_service: 250,
        node: Some("me".to_owned()),
        dual_stack: true,
    };
    let mut cluster = Cluster::generate(&server, spec);
    assert_eq!(cluster.services(), 121);
    let mut client = Client::new(&server);
    let services = client.get(SERVICES).body;
    assert_eq!(items(&services).len(), 121);
    let spec = &items(&services)[0]["spec"];
    assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
    assert_eq!(spec["clusterIPs"].as_array().unwrap().len(), 2);
    let slices = client.get(SLICES).body;
    assert_eq!(items(&slices).len(), 2 * (120 + 3));
    let mut addresses: Vec<&str> = Vec::new();
    for slice in items(&slices) {
        let fields = slice["metadata"]["managedFields"].to_string().len();
        assert!((500..1500).contains(&fields), "{fields}");
        for endpoint in slice["endpoints"].as_array().unwrap() {
            assert_eq!(endpoint["conditions"]["ready"], true);
            assert!(endpoint["nodeName"].is_string() && endpoint["zone"].is_string());
            addresses.push(endpoint["addresses"][0].as_str().unwrap());
        }
    }
    assert_eq!(addresses.len(), 2 * (120 * 3 + 250));
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(
        addresses.len(),
        2 * (120 * 3 + 250),
        "every pod has its own"
    );
    let nodes = client.get("/api/v1/nodes").body;
    assert_eq!(items(&nodes).len(), 4);
    assert_eq!(items(&nodes)[0]["metadata"]["name"], "me");

    let mut first = |service| {
        let path = format!("{SLICES}?watch=1&resourceVersion={}", server.version());
        let mut watch = Client::new(&server).watch(&path);
        cluster.change(&server, service).unwrap();
        let (kind, slice) = watch.event();
        assert_eq!(kind, "MODIFIED");
        slice["endpoints"][0]["addresses"][0]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (changed, back, big) = (first(7), first(7), first(120));
    assert_eq!(back, "10.128.0.22", "the first of the eighth");
    assert_ne!(changed, back);
    assert!(big.starts_with("10.64."), "{big}");
    assert_eq!(cluster.change(&server, 121), None);
}

#[test]
fn the_program_obeys_and_costs_little() {
    let mut program = Program::start(&["--services", "10000", "--endpoints-per-service", "5"]);
    let line = program.line();
    let address = line
        .strip_prefix("listening on http://")
        .unwrap()
        .to_owned();
    let before = program.cpu_secs();
    for path in [SERVICES, SLICES] {
        // Only counted, not to wait for the reading of 40 MB of JSON.
        let count = io::copy(&mut ask(&address, path), &mut io::sink()).unwrap();
        assert!(count > 10_000_000, "{count}");
    }
    let cost = program.cpu_secs() - before;
    assert!(cost < 0.3, "10,000 Services and slices cost {cost} s");

    let watch = ask(&address, &format!("{SLICES}?watch=1&resourceVersion=20005"));
    let answer = program.ask("change 3");
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!(words[..2], ["changed", "20006"], "{answer}");
    let at: u64 = words[2].parse().unwrap();
    let start = Instant::now();
    let answer = program.ask("changes 100 50");
    assert!(start.elapsed() >= Duration::from_micros(99 * 50));
    let times: Vec<u64> = answer
        .split(' ')
        .filter_map(|word| word.split_once(':')?.1.parse().ok())
        .collect();
    assert_eq!(times.len(), 100, "{answer}");
    assert!(at <= times[0] && times.is_sorted());
    assert!(program.ask("change 10000").starts_with("error: "));
    assert!(program.ask("nonsense").starts_with("error: commands: "));
    drop(watch);
    writeln!(program.input, "quit").unwrap();
    assert!(program.child.wait().unwrap().success());
}
