// SPDX-License-Identifier: MIT OR Apache-2.0
//! The servers behind `healthCheckNodePort`: load balancers ask them whether this node has endpoints.
//!
//! One server per Service. Any path and method is answered: 200 while an endpoint of this node is ready
//! and the agent keeps up, else 503; the answer is the one that kube-proxy gives.
//! **Invariant:** a port that cannot be listened at is tried again and stops nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::listen::listeners;
use super::progress::Progress;
use crate::model::service::ServiceKey;
use crate::reconcile::HealthNews;
use crate::source::kubernetes::events::EventRecorder;

/// How many endpoints a load balancer that weighs nodes finds here.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// The reason of the Event about a port that cannot be listened at.
const REASON: &str = "FailedToStartServiceHealthcheck";
/// The running servers.
#[derive(Debug)]
pub(super) struct HealthServers {
    progress: Progress,
    recorder: Option<EventRecorder>,
    /// Where to listen; none stands for all addresses.
    addresses: Option<Vec<IpAddr>>,
    servers: BTreeMap<ServiceKey, Server>,
}

/// One server; it ends when this is dropped.
#[derive(Debug)]
struct Server {
    port: u16,
    uid: String,
    endpoints: watch::Sender<usize>,
}

impl HealthServers {
    pub(super) fn new(progress: Progress, recorder: Option<EventRecorder>) -> Self {
        Self {
            progress,
            recorder,
            addresses: None,
            servers: BTreeMap::new(),
        }
    }

    /// Listens at these addresses from now on; none stands for all.
    pub(super) fn listen_at(&mut self, addresses: Option<&[IpAddr]>) {
        if self.addresses.as_deref() == addresses {
            return;
        }
        self.addresses = addresses.map(<[_]>::to_vec);
        for (service, server) in std::mem::take(&mut self.servers) {
            let endpoints = *server.endpoints.borrow();
            // ORDER: the old one gives its port up first.
            drop(server.endpoints);
            self.start(&service, server.uid, server.port, endpoints);
        }
    }

    /// Starts, changes and ends servers.
    pub(super) fn change(&mut self, news: Vec<HealthNews>) {
        // ORDER: ports are given up before others ask for them.
        for news in &news {
            let port = news.check.as_ref().map(|check| check.port);
            if self.servers.get(&news.service).map(|server| server.port) != port {
                self.servers.remove(&news.service);
            }
        }
        for news in news {
            let Some(check) = news.check else { continue };
            match self.servers.get(&news.service) {
                Some(server) => {
                    server.endpoints.send_replace(check.local_endpoints);
                }
                None => self.start(&news.service, news.uid, check.port, check.local_endpoints),
            }
        }
    }

    fn start(&mut self, service: &ServiceKey, uid: String, port: u16, endpoints: usize) {
        let (sender, endpoints) = watch::channel(endpoints);
        let check = Check {
            service: service.clone(),
            endpoints,
            progress: self.progress.clone(),
        };
        let report = Report {
            recorder: self.recorder.clone(),
            service: service.clone(),
            uid: uid.clone(),
            port,
        };
        tokio::spawn(serve(check, report, self.addresses.clone()));
        let server = Server {
            port,
            uid,
            endpoints: sender,
        };
        self.servers.insert(service.clone(), server);
    }
}

/// What one server answers by.
#[derive(Clone, Debug)]
struct Check {
    service: ServiceKey,
    /// Ready endpoints on this node; closed when the server is to end.
    endpoints: watch::Receiver<usize>,
    progress: Progress,
}

/// The body of an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Check {
    fn answer(&self) -> Response {
        let count = *self.endpoints.borrow();
        let healthy = self.progress.keeps_up();
        let body = Body {
            service: Name {
                namespace: &self.service.namespace,
                name: &self.service.name,
            },
            local_endpoints: count,
            service_proxy_healthy: healthy,
        };
        let status = if count > 0 && healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let headers = [
            (CONTENT_TYPE, "application/json".to_owned()),
            (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            (WEIGHT, count.to_string()),
        ];
        // Strings and numbers can always be written.
        let text = serde_json::to_string_pretty(&body).unwrap_or_default();
        (status, headers, text).into_response()
    }

    /// Waits until the server is to end.
    async fn ends(mut self) {
        while self.endpoints.changed().await.is_ok() {}
    }
}

/// Who is told that a port cannot be listened at.
struct Report {
    recorder: Option<EventRecorder>,
    service: ServiceKey,
    uid: String,
    port: u16,
}

impl Report {
    fn tell(&self, error: &std::io::Error) {
        let message = format!(
            "health check port {} cannot be served: {error}; trying again",
            self.port
        );
        warn!(service = %self.service, "{message}");
        if let Some(recorder) = &self.recorder {
            recorder.warn(&self.service, &self.uid, REASON, &message);
        }
    }
}

/// Listens and answers until the check ends.
async fn serve(check: Check, report: Report, addresses: Option<Vec<IpAddr>>) {
    let all = [Ipv6Addr::UNSPECIFIED.into()];
    let addresses = addresses.as_deref().unwrap_or(&all).iter();
    let addresses: Vec<_> = addresses
        .map(|ip| SocketAddr::new(*ip, report.port))
        .collect();
    let listeners = tokio::select! {
        listeners = listeners(&addresses, |error| report.tell(error)) => listeners,
        () = check.clone().ends() => return,
    };
    info!(service = %report.service, "health checks are answered at port {}", report.port);
    let mut servers = JoinSet::new();
    for listener in listeners {
        let (answer, end) = (check.clone(), check.clone());
        let app = Router::new().fallback(move || async move { answer.answer() });
        let server = axum::serve(listener, app).with_graceful_shutdown(end.ends());
        servers.spawn(server.into_future());
    }
    // A server ends with its Service only.
    while servers.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::cli::asking::ask;
    use crate::cli::listen::TRIES;
    use crate::cli::progress::KEEPS_UP;
    use crate::plan::health::HealthCheck;

    const LOCALHOST: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::LOCALHOST)];

    fn news(port: u16, local_endpoints: Option<usize>) -> Vec<HealthNews> {
        let service = ServiceKey::new("shop", "web");
        let check = local_endpoints.map(|local_endpoints| HealthCheck {
            service: service.clone(),
            port,
            local_endpoints,
        });
        let uid = String::new();
        vec![HealthNews {
            service,
            uid,
            check,
        }]
    }

    /// A port that nobody listens at, and servers for localhost alone.
    fn set_up() -> (u16, Progress, HealthServers) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let progress = Progress::default();
        let mut servers = HealthServers::new(progress.clone(), None);
        servers.listen_at(Some(&LOCALHOST));
        (free.local_addr().unwrap().port(), progress, servers)
    }

    async fn until_refused(port: u16) {
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn an_answer_is_the_one_of_kube_proxy() {
        let (port, progress, mut servers) = set_up();
        servers.change(news(port, Some(2)));
        let answer = ask(port, "GET /").await;
        assert_eq!(answer.status, 200);
        for (name, value) in [
            ("content-type", "application/json"),
            ("x-content-type-options", "nosniff"),
            ("x-load-balancing-endpoint-weight", "2"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let wanted = serde_json::json!({
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(body, wanted);
        servers.change(news(port, Some(0)));
        let answer = ask(port, "POST /any/path").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("x-load-balancing-endpoint-weight"), Some("0"));
        servers.change(news(port, Some(1)));
        progress.note_node(false);
        assert_eq!(
            ask(port, "GET /").await.status,
            200,
            "whether the node stays is no matter"
        );
        progress.queued();
        progress.waits_for(0, KEEPS_UP);
        let answer = ask(port, "GET /").await;
        assert_eq!(answer.status, 503);
        assert!(
            answer.body.contains("\"serviceProxyHealthy\": false"),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn a_server_ends_with_its_service_and_moves_with_its_port() {
        let (first, _, mut servers) = set_up();
        let (second, _, _) = set_up();
        servers.change(news(first, Some(1)));
        ask(first, "GET /").await;
        servers.change(news(second, Some(1)));
        ask(second, "GET /").await;
        until_refused(first).await;
        servers.listen_at(Some(&[Ipv4Addr::new(127, 0, 0, 2).into()]));
        until_refused(second).await;
        servers.listen_at(Some(&LOCALHOST));
        ask(second, "GET /").await;
        servers.change(news(second, None));
        until_refused(second).await;
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_served_soon_after_it_is_free() {
        let (port, _, mut servers) = set_up();
        let taken = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        servers.change(news(port, Some(1)));
        sleep(TRIES[0] + TRIES[1] + Duration::from_millis(100)).await;
        drop(taken);
        let answer = timeout(TRIES[3] + TRIES[2], ask(port, "GET /")).await;
        assert_eq!(answer.unwrap().status, 200);
    }
}
