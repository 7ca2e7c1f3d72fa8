// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists: of the newest version or an older one, whole or in pages that fit together.
//!
//! **Invariant:** all pages of a list show one version, or the client is told 410 and may go on
//! without that promise. Read next: `store`, which can go back in time; `out`, which sends.

use std::io;
use std::net::TcpStream;

use super::fault::{Claims, Fault};
use super::out::{self, Chunks};
use super::query::{Continue, Params, Version};
use super::resource::Resource;
use super::selector::Filter;
use super::serve::{Next, Shared};
use super::status::Failure;
use super::store::{Page, State};

/// Answers a list.
pub(super) fn list(
    shared: &Shared,
    stream: &TcpStream,
    resource: Resource,
    params: &Params,
    filter: &Filter,
    claims: &Claims,
) -> io::Result<Next> {
    if claims.has(Fault::ExpireContinue)
        && let Some(page) = &params.page
    {
        out::refuse(shared, stream, &expired(page))?;
        return Ok(Next::Request);
    }
    let page = find(&shared.lock(), resource, params, filter);
    let mut page = match page {
        Ok(page) => page,
        Err(failure) => {
            out::refuse(shared, stream, &failure)?;
            return Ok(Next::Request);
        }
    };
    if claims.has(Fault::HalfList) {
        let mut odd = false;
        page.objects.retain(|_| {
            odd = !odd;
            odd
        });
    }
    send(shared, stream, resource, &page, filter, claims)
}

fn expired(page: &Continue) -> Failure {
    let inconsistent = Continue {
        version: None,
        after: page.after.clone(),
    };
    Failure::expired_page(&inconsistent.token())
}

fn find(
    state: &State,
    resource: Resource,
    params: &Params,
    filter: &Filter,
) -> Result<Page, Failure> {
    let current = state.version;
    if let Some(page) = &params.page {
        let version = page.version.unwrap_or(current);
        if version < state.oldest(resource) {
            return Err(expired(page));
        }
        return Ok(state.page(resource, version, filter, Some(&page.after), params.limit));
    }
    let (version, limit) = match params.version {
        Version::Newest => (current, params.limit),
        // What is served from memory comes whole, whatever the limit.
        Version::Any => (current, None),
        Version::From(wanted) if wanted <= current => (current, params.limit),
        Version::Exactly(wanted) if wanted < state.oldest(resource) => {
            let message = "The resourceVersion for the provided list is too old.";
            return Err(Failure::expired(message));
        }
        Version::Exactly(wanted) if wanted <= current => (wanted, params.limit),
        Version::From(wanted) | Version::Exactly(wanted) => {
            return Err(Failure::too_large(wanted, current));
        }
    };
    Ok(state.page(resource, version, filter, None, limit))
}

fn send(
    shared: &Shared,
    stream: &TcpStream,
    resource: Resource,
    page: &Page,
    filter: &Filter,
    claims: &Claims,
) -> io::Result<Next> {
    let cut = claims.find(|fault| {
        let Fault::CutList { after } = fault else {
            return None;
        };
        usize::try_from(after).ok()
    });
    let mut out = Chunks::begin(shared, stream, claims.pace())?;
    let (kind, api_version, version) = (resource.kind(), resource.api_version(), page.version);
    let mut head = format!(
        r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}""#
    );
    if let Some((next, left)) = &page.next {
        let token = serde_json::Value::from(next.token());
        let more = format!(r#","continue":{token}"#);
        head.push_str(&more);
        if !filter.selects() {
            let left = format!(r#","remainingItemCount":{left}"#);
            head.push_str(&left);
        }
    }
    head.push_str(r#"},"items":["#);
    out.buffer().extend_from_slice(head.as_bytes());
    for (number, object) in page.objects.iter().enumerate() {
        if cut == Some(number) {
            break;
        }
        if number > 0 {
            out.buffer().push(b',');
        }
        object.write_item(out.buffer());
        if out.is_full() {
            out.flush()?;
        }
    }
    if cut.is_some() {
        out.flush()?;
        return Ok(Next::Close);
    }
    out.buffer().extend_from_slice(b"]}\n");
    out.finish()?;
    Ok(Next::Request)
}
