// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the verbs that look at a node take the objects from: manifests, the API server, or what an agent
//! remembers.
//!
//! **Invariant:** read once; nothing is followed and nothing is written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;

use crate::model::snapshot::{Invalid, Object, Update};
use crate::source::kubernetes::{self, Access, Outlet, Patience};
use crate::source::{manifests, state};
use crate::{config, error_chain};

/// How long an API server may take to list everything.
const LIST_MAX: Duration = Duration::from_secs(30);

/// The flags that name a source of objects.
#[derive(Clone, Debug, Args)]
pub(super) struct SourceArgs {
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json).
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    pub(super) manifests: Option<PathBuf>,
    /// How to reach and to log in to the API server.
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The URL of the API server, instead of the one that the kubeconfig or the pod tells.
    #[arg(long, value_name = "URL")]
    pub(super) api_server: Option<String>,
    /// The name of this node [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
}

/// The same for verbs that need names only: what an agent remembers will do.
#[derive(Clone, Debug, Args)]
pub(super) struct NamesArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Folder in which an agent remembers objects, for names when neither manifests nor an API server
    /// are given [default: /var/lib/lb-agent if it is there].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) objects: Vec<Object>,
    /// What could not be read.
    pub(super) problems: Vec<String>,
}

impl SourceArgs {
    /// True when a flag names a source.
    fn is_given(&self) -> bool {
        self.manifests.is_some() || self.kubeconfig.is_some() || self.api_server.is_some()
    }

    /// The objects of the source that the flags name; the API server of `run` if they name none.
    pub(super) fn load(&self) -> Result<Found, String> {
        match &self.manifests {
            Some(folder) => from_manifests(folder),
            None => self.list_api_server(),
        }
    }

    fn list_api_server(&self) -> Result<Found, String> {
        let node = config::node_name(self.node.as_deref()).map_err(|e| error_chain(&e))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("start the runtime: {e}"))?;
        let access = Access {
            kubeconfig: self.kubeconfig.clone(),
            api_server: self.api_server.clone(),
        };
        runtime.block_on(async {
            let client = kubernetes::connect(&access).await;
            let client = client.map_err(|e| error_chain(&e))?;
            let (updates, mut inbox) = unbounded_channel();
            let outlet = Outlet {
                updates,
                state: None,
                remembered: false,
                recorder: None,
            };
            let watch = kubernetes::watch(&client, &node, outlet, Patience::default());
            let first = timeout(LIST_MAX, inbox.recv()).await;
            drop(watch);
            match first {
                Ok(Some(delivery)) => Ok(Found::from(delivery.update)),
                Ok(None) => Err("the API server was not listed".to_owned()),
                Err(_) => Err(format!(
                    "the API server has not listed everything within {} s; the log says why",
                    LIST_MAX.as_secs()
                )),
            }
        })
    }
}

impl NamesArgs {
    /// The objects that names are taken from; none if no source is given and nothing is remembered.
    pub(super) fn load(&self) -> Result<Option<Found>, String> {
        if self.source.is_given() {
            return self.source.load().map(Some);
        }
        let default = Path::new(config::STATE_DIR_DEFAULT);
        let folder = match &self.state_dir {
            Some(folder) => folder,
            None if default.is_dir() => default,
            None => return Ok(None),
        };
        // The agent may be writing its last line just now, which is no news.
        let quiet = tracing::subscriber::NoSubscriber::default();
        let read = tracing::subscriber::with_default(quiet, || state::read(folder));
        match read {
            Ok(objects) => Ok(Some(Found {
                objects,
                problems: Vec::new(),
            })),
            Err(error) if self.state_dir.is_some() => Err(error_chain(&error)),
            Err(_) => Ok(None),
        }
    }
}

fn from_manifests(folder: &Path) -> Result<Found, String> {
    config::manifests(folder).map_err(|e| error_chain(&e))?;
    let (objects, problems) = manifests::load(folder).map_err(|e| error_chain(&e))?;
    let problems = problems.iter().map(ToString::to_string).collect();
    Ok(Found { objects, problems })
}

impl From<Update> for Found {
    fn from(update: Update) -> Self {
        let lacks = |invalid: &Invalid| format!("{} cannot be read", invalid.object);
        match update {
            Update::Reset { objects, invalid } => Self {
                objects,
                problems: invalid.iter().map(lacks).collect(),
            },
            Update::Partial {
                objects,
                unreadable,
            } => Self {
                objects,
                problems: unreadable,
            },
            // A source begins with one of the two.
            Update::Relist { .. } | Update::Changes(_) | Update::Complete => Self::default(),
        }
    }
}
