// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures as the API server tells them: `Status` objects.
//!
//! **Invariant:** code, reason and message are those of kube-apiserver 1.36, because clients decide by them.
//! Read next: `serve`, which sends them.

use serde_json::{Value, json};

use super::resource::Resource;

/// A request that is answered by a failure.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u16,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    metadata: Value,
    pub(super) retry_after_secs: Option<u32>,
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            metadata: json!({}),
            retry_after_secs: None,
        }
    }

    /// A failure without a cause of its own, by its code.
    pub(super) fn by_code(code: u16, retry_after_secs: Option<u32>) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => (
                "Forbidden",
                "forbidden: User \"system:anonymous\" cannot list resource in API group at the cluster scope",
            ),
            410 => return Self::expired("too old resource version"),
            429 => (
                "TooManyRequests",
                "Too many requests, please try again later.",
            ),
            500 => (
                "InternalError",
                "Internal error occurred: etcdserver: leader changed",
            ),
            503 => ("ServiceUnavailable", "apiserver is shutting down"),
            504 => ("Timeout", "the request did not complete in time"),
            _ => ("", "the server refuses the request"),
        };
        // A real server never asks to try again later without saying when.
        let retry_after_secs = retry_after_secs.or((code == 429).then_some(1));
        Self {
            details: retry_after_secs.map(|secs| json!({"retryAfterSeconds": secs})),
            retry_after_secs,
            ..Self::new(code, reason, message)
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unknown_path() -> Self {
        let message = "the server could not find the requested resource";
        Self {
            details: Some(json!({})),
            ..Self::new(404, "NotFound", message)
        }
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let group = resource.group();
        let plural = resource.plural();
        let of_group = if group.is_empty() {
            plural.to_owned()
        } else {
            format!("{plural}.{group}")
        };
        let mut details = json!({"name": name, "kind": plural});
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Self {
            details: Some(details),
            ..Self::new(404, "NotFound", format!("{of_group} {name:?} not found"))
        }
    }

    pub(super) fn wrong_method() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self {
            details: Some(json!({})),
            ..Self::new(405, "MethodNotAllowed", message)
        }
    }

    /// An option that may not be there.
    pub(super) fn forbidden_option(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let cause = json!({
            "reason": "FieldValueForbidden",
            "message": format!("Forbidden: {why}"),
            "field": field,
        });
        let details = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]});
        Self {
            details: Some(details),
            ..Self::new(422, "Invalid", message)
        }
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// A page of a list that is gone; the token goes on where it ended, in today's objects.
    pub(super) fn expired_page(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. \
                       You can start a new list without the continue parameter, or use the continue token \
                       in this response to retrieve the remainder of the results. Continuing with the \
                       provided token results in an inconsistent list - objects that were created, modified, \
                       or deleted between the time the first chunk was returned and now may show up in the list.";
        Self {
            metadata: json!({"continue": token}),
            ..Self::expired(message)
        }
    }

    /// A version that has not come to be yet.
    pub(super) fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let cause =
            json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        Self {
            details: Some(json!({"causes": [cause], "retryAfterSeconds": 1})),
            retry_after_secs: Some(1),
            ..Self::new(504, "Timeout", message)
        }
    }

    /// The `Status` object.
    pub(super) fn body(&self) -> String {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status.to_string()
    }

    /// The words beside the code in the first line.
    pub(super) const fn words(&self) -> &'static str {
        match self.code {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            410 => "Gone",
            422 => "Unprocessable Entity",
            429 => "Too Many Requests",
            500 => "Internal Server Error",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            _ => "Failure",
        }
    }
}
