// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the agent as a container of its DaemonSet, with the rights that this gives it and no others.
//!
//! A root that is empty but for the program, and read-only; volumes at the node's own paths; the
//! DaemonSet's capabilities, `no_new_privs`, a filter of system calls like the runtimes' default;
//! namespaces of its own for mounts, processes, IPC and cgroups; the node's network.
//! **Invariant:** the container has nothing that the DaemonSet does not give it, but for the socket by
//! which it says that it is ready, which is no file. Read next: `daemonset.rs`, what is read of it.

mod capability;
mod daemonset;
mod root;
mod seccomp;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

pub use self::capability::Capabilities;
pub use self::daemonset::DaemonSet;
use self::daemonset::Volume;
use self::root::{Mount, Root};
use self::seccomp::Filter;
use crate::agent::{Agent, Ends};
use crate::error::LabError;
use crate::host::Host;
use crate::node::Node;

/// Where a node has the file systems that every node has, and the lab's node has them.
const BPFFS: &str = "/sys/fs/bpf";
const CGROUP: &str = "/sys/fs/cgroup";

/// The place of an agent's container on a node: its cgroup, below the node's.
#[derive(Debug)]
pub struct Container {
    node: Node,
    pod: Host,
}

impl Container {
    /// Makes the place, under the pod's name.
    pub fn new(node: &Node, name: &str) -> Result<Self, LabError> {
        Ok(Self {
            node: node.clone(),
            pod: node.host_network_pod(name)?,
        })
    }

    /// Starts `program` as the DaemonSet says, with `further` arguments; does not wait until it is ready.
    pub fn start(
        &self,
        daemon_set: &DaemonSet,
        program: &Path,
        further: &[&str],
    ) -> Result<Agent, LabError> {
        let program = fs::canonicalize(program).map_err(LabError::file("find", program))?;
        let ends = Ends::next(&self.node)?;
        let name = format!("{}{}", self.node.netns().name(), ends.suffix());
        let address = SocketAddr::from_abstract_name(&name);
        let address = address.map_err(LabError::io("name a socket"))?;
        let bind = || UnixDatagram::bind_addr(&address).map_err(LabError::io("bind a socket"));
        let socket = self.node.netns().run(bind)??;
        let mut words = self.words(daemon_set)?;
        words
            .environment
            .insert("NOTIFY_SOCKET".to_owned(), format!("@{name}"));
        words
            .arguments
            .extend(further.iter().map(|&word| word.to_owned()));
        let root = Root {
            dir: self.file(&ends, "root")?,
            program: &program,
            mounts: self.mounts(daemon_set, &ends)?,
        };
        let held = daemon_set.capabilities()?;
        let filter = daemon_set
            .is_filtered()
            .then(|| Filter::for_container(held));
        let host_pid = daemon_set.pod.host_pid;
        let procs = self.pod.cgroup().join("cgroup.procs");
        let mut procs = File::options()
            .write(true)
            .open(&procs)
            .map_err(LabError::file("open", procs))?;
        let (output, errors) = ends.output()?;
        let spawn = move || -> Result<Child, LabError> {
            root.enter(host_pid)?;
            let mut command = Command::new(&words.program);
            command.args(&words.arguments).current_dir("/");
            command.env_clear().envs(&words.environment);
            command.stdin(Stdio::null()).stdout(output).stderr(errors);
            let confine = move || -> io::Result<()> {
                procs.write_all(b"0")?;
                unshare(CloneFlags::CLONE_NEWCGROUP)?;
                root::show_processes()?;
                held.keep_only()?;
                no_new_privileges()?;
                filter.as_ref().map_or(Ok(()), Filter::install)
            };
            // SAFETY: between fork and exec the closure makes system calls on what was made before;
            // it takes no lock and allocates nothing.
            unsafe { command.pre_exec(confine) };
            let doing = format!("start {} in its container", words.program);
            command.spawn().map_err(LabError::io(doing))
        };
        let child = self.node.netns().run(spawn)??;
        Agent::of(child, socket, None, ends)
    }

    /// What the container's process is called with.
    fn words(&self, daemon_set: &DaemonSet) -> Result<Words, LabError> {
        let container = daemon_set.container();
        let mut environment = BTreeMap::new();
        for variable in &container.env {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), None) => expand(value, &environment),
                (None, Some(from)) => self.field(&from.field_ref.field_path)?,
                _ => String::new(),
            };
            environment.insert(variable.name.clone(), value);
        }
        let words = container.command.iter().chain(&container.args);
        let mut words = words.map(|word| expand(word, &environment));
        let program = if container.command.is_empty() {
            root::PROGRAM.to_owned()
        } else {
            words.next().unwrap_or_default()
        };
        Ok(Words {
            program,
            arguments: words.collect(),
            environment,
        })
    }

    /// A field of the pod, as the downward API tells it.
    fn field(&self, path: &str) -> Result<String, LabError> {
        Ok(match path {
            "spec.nodeName" => self.node.name().to_owned(),
            "metadata.name" => self.pod.name().to_owned(),
            "metadata.namespace" => "kube-system".to_owned(),
            "status.hostIP" | "status.podIP" => self.node.v4().to_string(),
            _ => return Err(unknown(format!("it asks for the field {path}"))),
        })
    }

    /// The container's volumes, those below others after them.
    fn mounts(&self, daemon_set: &DaemonSet, ends: &Ends) -> Result<Vec<Mount>, LabError> {
        let mut mounts = Vec::new();
        for mount in &daemon_set.container().volume_mounts {
            let mut volumes = daemon_set.pod.volumes.iter();
            let volume = volumes.find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| unknown(format!("no volume {}", mount.name)))?;
            mounts.push(Mount {
                source: self.volume(daemon_set, volume, ends)?,
                target: mount.mount_path.clone(),
                // A volume of configuration is never writable.
                read_only: mount.read_only || volume.host_path.is_none(),
            });
        }
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        Ok(mounts)
    }

    /// Where the content of a volume is.
    fn volume(
        &self,
        daemon_set: &DaemonSet,
        volume: &Volume,
        ends: &Ends,
    ) -> Result<PathBuf, LabError> {
        if let Some(config) = &volume.config_map {
            let data = daemon_set.configs.get(&config.name);
            let data = data.ok_or_else(|| unknown(format!("no ConfigMap {}", config.name)))?;
            let folder = self.file(ends, &volume.name)?;
            for (name, text) in data {
                let path = folder.join(name);
                fs::write(&path, text).map_err(LabError::file("write", path))?;
            }
            return Ok(folder);
        }
        let Some(host) = &volume.host_path else {
            let why = format!("volume {} is neither hostPath nor configMap", volume.name);
            return Err(unknown(why));
        };
        if host.path == Path::new(BPFFS) {
            return Ok(self.node.bpffs().to_path_buf());
        }
        if host.path == Path::new(CGROUP) {
            return Ok(self.node.cgroup().to_path_buf());
        }
        let path = self.host_path(&host.path);
        if host.kind == "DirectoryOrCreate" {
            fs::create_dir_all(&path).map_err(LabError::file("make", &path))?;
        }
        if path.exists() {
            return Ok(path);
        }
        Err(unknown(format!(
            "a lab's node has no {}",
            host.path.display()
        )))
    }

    /// Where the node keeps what containers know as this path of the host.
    pub fn host_path(&self, path: &Path) -> PathBuf {
        let own = self.node.file(".files");
        own.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A new folder for one of the containers that are started here.
    fn file(&self, ends: &Ends, name: &str) -> Result<PathBuf, LabError> {
        let path = self.node.file(&format!("{}.{name}", ends.suffix()));
        fs::create_dir(&path).map_err(LabError::file("make", &path))?;
        Ok(path)
    }
}

/// What a process is called with.
struct Words {
    program: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

fn unknown(mut why: String) -> LabError {
    why.push_str(", which the lab does not know");
    LabError::Malformed {
        what: "the DaemonSet".to_owned(),
        why,
    }
}

/// Puts values in the place of `$(NAME)`, as a kubelet does; names without a value stay.
fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let replace = |text: String, (name, value): (&String, &String)| {
        text.replace(&format!("$({name})"), value)
    };
    values.iter().fold(text.to_owned(), replace)
}

/// From here on no program gains rights by being started.
fn no_new_privileges() -> io::Result<()> {
    // SAFETY: a call with integers about this process alone.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_arguments_are_replaced_by_what_the_environment_has() {
        let values = BTreeMap::from([("NODE".to_owned(), "node-0".to_owned())]);
        assert_eq!(expand("--node=$(NODE)", &values), "--node=node-0");
        assert_eq!(expand("$(OTHER) $NODE", &values), "$(OTHER) $NODE");
    }
}
