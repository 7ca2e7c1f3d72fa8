// SPDX-License-Identifier: MIT OR Apache-2.0
//! A real API server with its etcd, where `KUBEBUILDER_ASSETS` names a folder that has both.
//!
//! Started as envtest starts them: on loopback, a static token, everything allowed, no controllers.
//! **Invariant:** it is only ever the real thing; where it is not there, [`RealApiServer::assets`] says
//! so and the caller tells. Read next: the front page's section on the API server.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::object::{Identity, malformed};
use crate::error::LabError;
use crate::run::feed;

/// The variable that names the folder, by the convention of envtest.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// How long both may take to start.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// How often it is asked whether it has.
const LOOK: Duration = Duration::from_millis(100);

/// A running etcd and kube-apiserver; they end when it is dropped.
#[derive(Debug)]
#[must_use = "the server stops when dropped"]
pub struct RealApiServer {
    dir: PathBuf,
    url: String,
    token: String,
    children: Vec<(&'static str, Child)>,
}

impl RealApiServer {
    /// The folder with `etcd` and `kube-apiserver`, where there is one.
    pub fn assets() -> Option<PathBuf> {
        let dir = PathBuf::from(std::env::var_os(ASSETS)?);
        let has = |name: &str| dir.join(name).is_file();
        (has("etcd") && has("kube-apiserver")).then_some(dir)
    }

    /// Starts both and waits until the API server is ready.
    pub fn start() -> Result<Self, LabError> {
        let assets = Self::assets().ok_or_else(|| LabError::MissingTool {
            tool: format!("kube-apiserver (in the folder that {ASSETS} names)"),
        })?;
        let [client_port, peer_port, port] = free_ports()?;
        let uuid = "/proc/sys/kernel/random/uuid";
        let token = fs::read_to_string(uuid).map_err(LabError::file("read", uuid))?;
        let mut server = Self {
            dir: make_dir()?,
            url: format!("https://127.0.0.1:{port}"),
            token: token.trim().to_owned(),
            children: Vec::new(),
        };
        server.write_files()?;
        let etcd = format!("http://127.0.0.1:{client_port}");
        let dir = server.dir.clone();
        server.spawn(
            &assets,
            "etcd",
            &[
                format!("--data-dir={}", dir.join("etcd").display()),
                format!("--listen-client-urls={etcd}"),
                format!("--advertise-client-urls={etcd}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        let file = |name: &str| dir.join(name).display().to_string();
        server.spawn(
            &assets,
            "kube-apiserver",
            &[
                format!("--etcd-servers={etcd}"),
                "--bind-address=127.0.0.1".to_owned(),
                // A namespace of its own has no default route to find an address by.
                "--advertise-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", file("certs")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=AlwaysAllow".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
                // The default service account is made by a controller, and none runs here.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                format!("--service-account-issuer={}/", server.url),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                format!("--service-account-key-file={}", file("sa.pub")),
            ],
        )?;
        server.wait()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A kubeconfig with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Creates or changes an object, its status included, by server-side apply.
    pub fn apply(&self, mut value: Value) -> Result<(), LabError> {
        let map = value
            .as_object()
            .ok_or_else(|| malformed("it is no object"))?;
        let Identity {
            resource,
            namespace,
            name,
        } = Identity::of(map)?;
        let group = match resource.group() {
            "" => "/api/v1".to_owned(),
            _ => format!("/apis/{}", resource.api_version()),
        };
        let mut of_namespace = String::new();
        if resource.is_namespaced() {
            let object = json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace}});
            self.patch(&format!("/api/v1/namespaces/{namespace}"), &object)?;
            of_namespace = format!("/namespaces/{namespace}");
        }
        let path = format!("{group}{of_namespace}/{}/{name}", resource.plural());
        value["apiVersion"] = resource.api_version().into();
        self.patch(&path, &value)?;
        // The object itself does not take its status.
        if value.get("status").is_some() {
            self.patch(&format!("{path}/status"), &value)?;
        }
        Ok(())
    }

    fn patch(&self, path: &str, value: &Value) -> Result<(), LabError> {
        let mut curl = self.curl(&format!("{path}?fieldManager=lb-lab&force=true"));
        curl.args(["--request", "PATCH", "--data-binary", "@-", "--header"]);
        curl.arg("Content-Type: application/apply-patch+yaml");
        feed(&mut curl, &value.to_string()).map(drop)
    }

    /// Asks the server; a refusal is a failure whose text is on standard error.
    fn curl(&self, path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--insecure"])
            .args(["--output", "/dev/stderr", "--max-time", "10"])
            .args(["--oauth2-bearer", &self.token])
            .arg(format!("{}{path}", self.url));
        curl
    }

    fn write_files(&self) -> Result<(), LabError> {
        let tokens = format!("{},admin,admin,\"system:masters\"\n", self.token);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "real",
                "cluster": {"server": self.url, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "admin"}}],
            "current-context": "real",
        });
        for (name, text) in [
            ("tokens.csv", tokens),
            ("kubeconfig", kubeconfig.to_string()),
        ] {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(LabError::file("write", path))?;
        }
        let (key, public) = (self.dir.join("sa.key"), self.dir.join("sa.pub"));
        let mut openssl = Command::new("openssl");
        openssl.args(["genpkey", "-algorithm", "RSA", "-out"]);
        feed(openssl.arg(&key), "")?;
        let mut openssl = Command::new("openssl");
        openssl.args(["pkey", "-pubout", "-in"]).arg(&key);
        feed(openssl.arg("-out").arg(&public), "").map(drop)
    }

    fn spawn(
        &mut self,
        assets: &Path,
        name: &'static str,
        arguments: &[String],
    ) -> Result<(), LabError> {
        let path = self.log(name);
        let log = fs::File::create(&path).map_err(LabError::file("create", path))?;
        let child = Command::new(assets.join(name))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let child = child.map_err(LabError::io(format!("start {name}")))?;
        self.children.push((name, child));
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn wait(&mut self) -> Result<(), LabError> {
        let until = Instant::now() + STARTS_WITHIN;
        while feed(&mut self.curl("/readyz"), "").is_err() {
            let logs = self.dir.clone();
            let log = |name: &str| {
                let text = fs::read_to_string(logs.join(format!("{name}.log")));
                let text = text.unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(20).collect();
                lines.into_iter().rev().collect::<Vec<_>>().join("\n")
            };
            for (name, child) in &mut self.children {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(LabError::Ended {
                        what: (*name).to_owned(),
                        status: status.to_string(),
                        log: log(name),
                    });
                }
            }
            if Instant::now() >= until {
                return Err(LabError::Timeout {
                    what: "the API server to be ready".to_owned(),
                    millis: STARTS_WITHIN.as_millis(),
                    log: log("kube-apiserver"),
                });
            }
            thread::park_timeout(LOOK);
        }
        Ok(())
    }
}

impl Drop for RealApiServer {
    fn drop(&mut self) {
        // The API server first: without its etcd it would only complain.
        for (_, child) in self.children.iter_mut().rev() {
            drop(child.kill());
            drop(child.wait());
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            crate::stale::complain(&format!("remove {}: {error}", self.dir.display()));
        }
    }
}

/// A folder that only its owner can read: it holds a key and a token.
fn make_dir() -> Result<PathBuf, LabError> {
    use std::os::unix::fs::DirBuilderExt as _;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("lb-lab-apiserver-{}-{number}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    let made = fs::DirBuilder::new().mode(0o700).create(&dir);
    made.map_err(LabError::file("create", dir.clone()))?;
    Ok(dir)
}

/// Ports of loopback that nobody listens on.
fn free_ports() -> Result<[u16; 3], LabError> {
    let doing = "find a free port";
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(LabError::io(doing));
    // All are held at once, or one could be found twice.
    let held = [listen()?, listen()?, listen()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr().map_err(LabError::io(doing))?.port();
    }
    Ok(ports)
}
