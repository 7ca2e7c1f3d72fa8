// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests to the API server and the bytes of its answers.
//!
//! Status codes become failures here; bodies are read piece by piece, each piece within a time, so
//! that neither a slow nor a dead server holds anybody up for ever.
//! **Invariant:** knows nothing of objects. A line that was not sent to its end is no line.
//! Read next: follow.rs, which asks; decode.rs, which reads the lines.

use std::error::Error;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request;
use tokio::time::timeout;

use super::failure::Failure;

/// How long a server may think before it begins to answer.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
/// How long it may take to say what it does not like.
const COMPLAIN_WITHIN: Duration = Duration::from_secs(5);
/// The longest body of a list, and with it of a page: half a million slices of servers that do not
/// know pages.
const BODY_MAX: usize = 1 << 30;
/// The longest line of a stream; no server stores an object of more than a few MiB.
const LINE_MAX: usize = 64 << 20;
/// How long a page may take, however steadily it comes.
const PAGE_WITHIN: Duration = Duration::from_mins(5);
/// How much of a complaint is read.
const COMPLAINT_MAX: usize = 64 * 1024;
/// How much of a complaint that is no Status is told.
const COMPLAINT_TOLD: usize = 200;

/// The objects that are asked for.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// The path of the resource.
    pub(super) path: &'static str,
    /// The resource as RBAC calls it.
    pub(super) resource: &'static str,
    /// Which labels.
    pub(super) labels: Option<&'static str>,
    /// Which fields.
    pub(super) fields: Option<String>,
    /// Only their metadata.
    pub(super) metadata: bool,
}

/// What to watch.
#[derive(Clone, Copy, Debug)]
pub(super) enum From<'a> {
    /// Everything there is, then changes.
    Everything,
    /// Changes since this version.
    Version(&'a str),
}

impl Query {
    /// Asks for one page of a list.
    pub(super) async fn list(
        &self,
        client: &Client,
        limit: u32,
        continue_token: Option<String>,
    ) -> Result<Answer, Failure> {
        let params = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: Some(limit),
            continue_token,
            ..ListParams::default()
        };
        let request = Request::new(self.path);
        let request = if self.metadata {
            request.list_metadata(&params)
        } else {
            request.list(&params)
        };
        self.send(client, "list", request.map_err(|e| unbuilt(&e))?)
            .await
    }

    /// Opens a stream of events that the server ends after `seconds`.
    pub(super) async fn watch(
        &self,
        client: &Client,
        from: From<'_>,
        seconds: u32,
    ) -> Result<Answer, Failure> {
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: matches!(from, From::Everything),
        };
        let version = match from {
            From::Everything => "",
            From::Version(version) => version,
        };
        let request = Request::new(self.path);
        let request = if self.metadata {
            request.watch_metadata(&params, version)
        } else {
            request.watch(&params, version)
        };
        self.send(client, "watch", request.map_err(|e| unbuilt(&e))?)
            .await
    }

    async fn send(
        &self,
        client: &Client,
        verb: &'static str,
        request: RequestBytes,
    ) -> Result<Answer, Failure> {
        let answer = timeout(ANSWER_WITHIN, client.send(request.map(Body::from))).await;
        let Ok(answer) = answer else {
            let seconds = ANSWER_WITHIN.as_secs();
            let cause = format!("no answer within {seconds} seconds");
            return Err(Failure::Unreachable { cause });
        };
        let answer = answer.map_err(|error| Failure::Unreachable {
            cause: root_cause(&error),
        })?;
        let code = answer.status().as_u16();
        let retry_after = answer.headers().get("retry-after");
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut answer = Answer {
            body: answer.into_body(),
            buffer: Vec::new(),
            read: 0,
            searched: 0,
        };
        if (200..300).contains(&code) {
            return Ok(answer);
        }
        let mut status = answer.complaint().await;
        status.code = code;
        Err(self.failure(verb, &status, retry_after))
    }

    /// What a status of the server means to us.
    pub(super) fn failure(
        &self,
        verb: &'static str,
        status: &Status,
        retry_after: Option<Duration>,
    ) -> Failure {
        let resource = self.resource;
        let message = status.message.clone();
        let named = status.details.as_ref().map(|d| d.retry_after_seconds);
        let named = named.filter(|seconds| *seconds > 0);
        let retry_after =
            retry_after.or_else(|| named.map(|seconds| Duration::from_secs(seconds.into())));
        match status.code {
            _ if tells_too_new(status) => Failure::SetBack,
            _ if matches!(status.reason.as_str(), "Expired" | "Gone") => Failure::Gone,
            401 => Failure::Unauthorized { message },
            403 => Failure::Forbidden {
                verb,
                resource,
                message,
            },
            410 => Failure::Gone,
            code @ (408 | 429 | 500..) => Failure::Busy {
                code,
                retry_after,
                message,
            },
            code => Failure::Refused {
                verb,
                resource,
                code,
                message,
            },
        }
    }
}

/// Whether a status says that the server has not come to our version yet: it was set back, or its
/// cache has fallen behind. The code is that of any timeout.
fn tells_too_new(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut reasons = causes.map(|cause| cause.reason.as_str());
    // Before Kubernetes 1.18 there was the message only.
    status.code == 504
        && (reasons.any(|reason| reason == "ResourceVersionTooLarge")
            || status.message.contains("Too large resource version"))
}

/// A request with its body.
type RequestBytes = http::Request<Vec<u8>>;

fn unbuilt(error: &kube::core::request::Error) -> Failure {
    Failure::Garbled {
        cause: format!("the request: {error}"),
    }
}

/// The innermost error: those around it say only that something went wrong.
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// An error when so many bytes are more than any sound server sends.
fn within_limit(what: &str, bytes: usize, limit: usize) -> Result<(), Failure> {
    if bytes <= limit {
        return Ok(());
    }
    let cause = format!("{what} of more than {} MiB", limit >> 20);
    Err(Failure::Garbled { cause })
}

/// Nothing came for so long that nothing is expected any more.
pub(super) fn silent(within: Duration) -> Failure {
    let seconds = within.as_secs_f32();
    Failure::Broken {
        cause: format!("nothing came for {seconds} seconds"),
    }
}

/// What became of waiting for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Some came, then.
    Bytes(Instant),
    /// The body is at its end.
    End,
    /// None came in time.
    Silent,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    buffer: Vec<u8>,
    /// How much of the buffer has been read.
    read: usize,
    /// Up to where no end of a line is, from there on.
    searched: usize,
}

impl Answer {
    /// Waits for more bytes.
    pub(super) async fn fill(&mut self, within: Duration) -> Result<Fill, Failure> {
        self.buffer.drain(..self.read);
        self.read = 0;
        loop {
            let Ok(frame) = timeout(within, self.body.frame()).await else {
                return Ok(Fill::Silent);
            };
            match frame {
                None => return Ok(Fill::End),
                Some(Err(error)) => {
                    let cause = root_cause(&error);
                    return Err(Failure::Broken { cause });
                }
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        let now = Instant::now();
                        self.buffer.extend_from_slice(data);
                        return Ok(Fill::Bytes(now));
                    }
                }
            }
        }
    }

    /// The next line that is there to its end.
    pub(super) fn line(&mut self) -> Option<&[u8]> {
        let rest = self.buffer.get(self.read + self.searched..)?;
        let Some(found) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched += rest.len();
            return None;
        };
        let length = std::mem::take(&mut self.searched) + found;
        let start = self.read;
        self.read += length + 1;
        self.buffer.get(start..start + length)
    }

    /// An error when the line that has begun is longer than any line may be.
    pub(super) fn check_line(&self) -> Result<(), Failure> {
        within_limit("a line", self.buffer.len() - self.read, LINE_MAX)
    }

    /// The whole body, each piece of it within a time.
    pub(super) async fn whole(self, piece_within: Duration) -> Result<Vec<u8>, Failure> {
        let whole = timeout(PAGE_WITHIN, self.pieces(piece_within)).await;
        whole.unwrap_or_else(|_| Err(silent(PAGE_WITHIN)))
    }

    async fn pieces(mut self, piece_within: Duration) -> Result<Vec<u8>, Failure> {
        loop {
            match self.fill(piece_within).await? {
                Fill::Bytes(_) => within_limit("a list", self.buffer.len(), BODY_MAX)?,
                Fill::End => return Ok(self.buffer),
                Fill::Silent => return Err(silent(piece_within)),
            }
        }
    }

    /// What the server says about a request that it does not serve.
    async fn complaint(&mut self) -> Status {
        while self.buffer.len() < COMPLAINT_MAX {
            match self.fill(COMPLAIN_WITHIN).await {
                Ok(Fill::Bytes(_)) => {}
                Ok(Fill::End | Fill::Silent) | Err(_) => break,
            }
        }
        serde_json::from_slice(&self.buffer).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&self.buffer);
            let told: String = text.trim().chars().take(COMPLAINT_TOLD).collect();
            Status::failure(&told, "")
        })
    }
}
