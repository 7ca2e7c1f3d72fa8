// SPDX-License-Identifier: MIT OR Apache-2.0
//! How to reach the API server: where its address and the credentials come from, and the client.
//!
//! The stack below the client is our own: kube's default one logs every failed try, and its
//! sockets would not notice for a long time that the other end is gone.
//! **Invariant:** nothing is sent here. An API server that is away is no error of these functions.
//! Read next: wire.rs, the requests that go through this client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take to come about.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection without traffic is probed after this time by the kernel, at no cost to us.
const PROBE_AFTER: Duration = Duration::from_secs(20);
/// Time between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Probes without an answer after which the connection counts as broken.
const PROBES: u32 = 4;
/// The folder in which a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What the flags say about the API server.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig file (`--kubeconfig`); without it, those that `KUBECONFIG` names.
    pub kubeconfig: Option<PathBuf>,
    /// The URL of the API server (`--api-server`), instead of the one of the configuration.
    pub api_server: Option<String>,
}

/// The API server cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("use the kubeconfig {what}")]
    Kubeconfig {
        /// The file, or the variable that names it.
        what: String,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// This is a pod, and its service account cannot be used.
    #[error("use the service account of this pod in {SERVICE_ACCOUNT}")]
    ServiceAccount(#[source] InClusterError),
    /// Nothing tells where the API server is.
    #[error(
        "no source of objects: this is no pod with a service account; give --kubeconfig FILE or \
         --api-server URL for a cluster, or --manifests DIR for a folder"
    )]
    Nothing,
    /// The URL is none.
    #[error("--api-server {url}: not a URL such as https://192.0.2.1:6443")]
    Url {
        /// What was given.
        url: String,
    },
    /// The credentials or the certificates cannot be used.
    #[error("prepare the client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// A client for the API server that the flags and the surroundings name.
///
/// Must be called within a runtime, which the client's tasks run on.
pub async fn connect(access: &Access) -> Result<Client, AccessError> {
    let config = configuration(access).await?;
    tracing::info!("objects come from the API server at {}", config.cluster_url);
    if let Some(proxy) = &config.proxy_url {
        tracing::warn!("the proxy {proxy} is not used: the API server is dialled directly");
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_WITHIN));
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    connector.set_keepalive_retries(Some(PROBES));
    // Without TLS no certificates are looked for, which a bare machine may not have.
    if config.cluster_url.scheme_str() == Some("http") {
        return stack(&config, connector);
    }
    let connector = config
        .rustls_https_connector_with_connector(connector)
        .map_err(client_error)?;
    stack(&config, connector)
}

fn stack<C>(config: &Config, connector: C) -> Result<Client, AccessError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let http: Http<C, Body> = Http::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(client_error)?)
        .layer(config.extra_headers_layer().map_err(client_error)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, "default").build())
}

fn client_error(error: kube::Error) -> AccessError {
    AccessError::Client(Box::new(error))
}

async fn configuration(access: &Access) -> Result<Config, AccessError> {
    let url = match &access.api_server {
        Some(url) => Some(parse_url(url)?),
        None => None,
    };
    let given = kubeconfig(access.kubeconfig.as_deref()).await?;
    let pod = Path::new(SERVICE_ACCOUNT).join("token").is_file();
    match (given, url) {
        (Some(config), None) => Ok(config),
        (Some(mut config), Some(url)) => {
            config.cluster_url = url.cluster_url;
            Ok(config)
        }
        (None, None) if pod => Config::incluster().map_err(AccessError::ServiceAccount),
        // The variables that name the API server are not needed then.
        (None, Some(url)) if pod => {
            let mut config = Config::incluster_dns().map_err(AccessError::ServiceAccount)?;
            config.cluster_url = url.cluster_url;
            Ok(config)
        }
        (None, Some(url)) => Ok(url),
        (None, None) => Err(AccessError::Nothing),
    }
}

/// A configuration that knows the URL only.
fn parse_url(url: &str) -> Result<Config, AccessError> {
    let error = || AccessError::Url {
        url: url.to_owned(),
    };
    let config = Config::new(url.parse().map_err(|_| error())?);
    let has_scheme = ["http", "https"].contains(&config.cluster_url.scheme_str().unwrap_or(""));
    if has_scheme && config.cluster_url.host().is_some() {
        Ok(config)
    } else {
        Err(error())
    }
}

async fn kubeconfig(file: Option<&Path>) -> Result<Option<Config>, AccessError> {
    let (what, read) = match file {
        Some(path) => (
            path.display().to_string(),
            Kubeconfig::read_from(path).map(Some),
        ),
        None => ("that KUBECONFIG names".to_owned(), Kubeconfig::from_env()),
    };
    let wrap = |source| AccessError::Kubeconfig {
        what: what.clone(),
        source: Box::new(source),
    };
    let Some(read) = read.map_err(wrap)? else {
        return Ok(None);
    };
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(read, &options).await;
    config.map(Some).map_err(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_scheme_and_a_host() {
        assert!(parse_url("https://192.0.2.1:6443").is_ok());
        assert!(parse_url("http://[2001:db8::1]:8080/cluster").is_ok());
        for wrong in [
            "192.0.2.1",
            "192.0.2.1:6443",
            "ftp://192.0.2.1",
            "https://",
            "",
        ] {
            let error = parse_url(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--api-server "), "{error}");
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_is_named() {
        let path = Path::new("/nowhere/kubeconfig");
        let error = kubeconfig(Some(path)).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/kubeconfig"), "{error}");
    }

    #[tokio::test]
    async fn a_url_overrides_that_of_the_kubeconfig() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
            contexts: [{name: a, context: {cluster: c, user: u}}]\n\
            clusters: [{name: c, cluster: {server: 'https://10.96.0.1'}}]\n\
            users: [{name: u, user: {token: secret}}]\n";
        std::fs::write(&path, text).unwrap();
        let mut access = Access {
            kubeconfig: Some(path),
            api_server: None,
        };
        let config = configuration(&access).await.unwrap();
        assert_eq!(config.cluster_url, "https://10.96.0.1/");
        access.api_server = Some("https://192.0.2.1:6443".to_owned());
        let config = configuration(&access).await.unwrap();
        assert_eq!(config.cluster_url, "https://192.0.2.1:6443/");
        assert!(config.auth_info.token.is_some(), "the credentials stay");
    }
}
