// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parameters of lists and watches, read and checked as the API server does.
//!
//! **Invariant:** what a real server refuses is refused in its words; what it does not know is ignored.
//! Read next: `list` and `watch`, which obey them.

use std::time::Duration;

use super::resource::Resource;
use super::selector::Selector;
use super::status::Failure;

/// Which version an answer must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// The newest: the client named none.
    Newest,
    /// Whatever there is: the client said `0`.
    Any,
    /// At least this, or for a watch: what came after it.
    From(u64),
    /// This and no other.
    Exactly(u64),
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Continue {
    /// The version of the whole list; none for a list that gave up being consistent.
    pub(super) version: Option<u64>,
    /// The key of the last object of the page before.
    pub(super) after: String,
}

impl Continue {
    pub(super) fn token(&self) -> String {
        let version = self.version.map(|version| version.to_string());
        format!("{}:{}", version.as_deref().unwrap_or("-1"), self.after)
    }

    fn parse(token: &str) -> Result<Self, Failure> {
        let bad = || Failure::bad_request(format!("continue key is not valid: {token:?}"));
        let (version, after) = token.split_once(':').ok_or_else(bad)?;
        let version = match version {
            "-1" => None,
            version => Some(version.parse().map_err(|_| bad())?),
        };
        Ok(Self {
            version,
            after: after.to_owned(),
        })
    }
}

/// The parameters of a list or a watch.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) watch: bool,
    pub(super) limit: Option<usize>,
    pub(super) page: Option<Continue>,
    pub(super) version: Version,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
    /// `sendInitialEvents=true`: a streaming list.
    pub(super) streams_list: bool,
    pub(super) labels: Selector,
    pub(super) fields: Selector,
}

impl Params {
    pub(super) fn parse(query: &str, resource: Resource) -> Result<Self, Failure> {
        let pairs = pairs(query);
        let value = |name: &str| {
            let found = pairs.iter().find(|(own, _)| own == name);
            found
                .map(|(_, value)| value.as_str())
                .filter(|value| !value.is_empty())
        };
        let flag = |name: &str| value(name).is_some_and(|value| ["1", "true"].contains(&value));
        let number = |name: &str| match value(name) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| Failure::bad_request(format!("{name}: {text:?} is no number"))),
        };
        let watch = flag("watch");
        let initial = value("sendInitialEvents").map(|_| flag("sendInitialEvents"));
        let named = value("resourceVersion");
        let exactly = value("resourceVersionMatch");
        check_match(watch, named, exactly, initial, value("continue").is_some())?;
        let page = value("continue").map(Continue::parse).transpose()?;
        if page.is_some() && named.is_some_and(|named| named != "0") {
            return Err(Failure::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let limit = number("limit")?.filter(|limit| *limit > 0);
        let version = match number("resourceVersion")? {
            None => Version::Newest,
            Some(0) => Version::Any,
            // Without the word for it, a page of a named version is of exactly that version.
            Some(n)
                if exactly == Some("Exact") || (exactly.is_none() && limit.is_some()) && !watch =>
            {
                Version::Exactly(n)
            }
            Some(n) => Version::From(n),
        };
        let (labels, fields) = selectors(value("labelSelector"), value("fieldSelector"), resource)?;
        Ok(Self {
            watch,
            limit: limit.and_then(|limit| usize::try_from(limit).ok()),
            page,
            version,
            bookmarks: flag("allowWatchBookmarks"),
            timeout: number("timeoutSeconds")?.map(Duration::from_secs),
            streams_list: initial == Some(true),
            labels,
            fields,
        })
    }
}

/// What may stand beside `resourceVersionMatch` and `sendInitialEvents`.
fn check_match(
    watch: bool,
    version: Option<&str>,
    exactly: Option<&str>,
    initial: Option<bool>,
    pages: bool,
) -> Result<(), Failure> {
    let forbidden = |field, why| Err(Failure::forbidden_option(field, why));
    let of_match = |why| forbidden("resourceVersionMatch", why);
    match (watch, exactly, initial) {
        (true, Some(_), None) => of_match(
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (true, exactly, Some(_)) if exactly != Some("NotOlderThan") => {
            of_match("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        }
        (false, _, Some(_)) => forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for list",
        ),
        (false, Some(_), None) if version.is_none() => {
            of_match("resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        (false, Some(_), None) if pages => {
            of_match("resourceVersionMatch is forbidden when continue is provided")
        }
        (false, Some("Exact"), None) if version == Some("0") => {
            of_match("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        (false, Some(word), None) if !["Exact", "NotOlderThan"].contains(&word) => {
            of_match("supported values: \"Exact\", \"NotOlderThan\", \"\"")
        }
        _ => Ok(()),
    }
}

fn selectors(
    labels: Option<&str>,
    fields: Option<&str>,
    resource: Resource,
) -> Result<(Selector, Selector), Failure> {
    let parse = |text: Option<&str>| {
        Selector::parse(text.unwrap_or_default()).map_err(Failure::bad_request)
    };
    let (labels, fields) = (parse(labels)?, parse(fields)?);
    if let Some(unknown) = fields.keys().find(|key| !resource.has_field(key)) {
        let message = format!("field label not supported: {unknown}");
        return Err(Failure::bad_request(message));
    }
    if !fields.is_by_value() {
        return Err(Failure::bad_request("invalid field selector"));
    }
    Ok((labels, fields))
}

/// The pairs of a query, decoded.
fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// Undoes `%XX` and `+`; what is no code stays as it is.
pub(super) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let code = after
            .get(..2)
            .and_then(|code| std::str::from_utf8(code).ok())
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Params, u16> {
        Params::parse(query, Resource::Service).map_err(|failure| failure.code)
    }

    #[test]
    fn versions_mean_what_the_table_of_the_api_concepts_says() {
        let version = |query| parse(query).unwrap().version;
        assert_eq!(version(""), Version::Newest);
        assert_eq!(version("resourceVersion=0"), Version::Any);
        assert_eq!(version("resourceVersion=5"), Version::From(5));
        assert_eq!(version("resourceVersion=5&limit=2"), Version::Exactly(5));
        assert_eq!(
            version("resourceVersion=5&resourceVersionMatch=Exact"),
            Version::Exactly(5)
        );
        assert_eq!(
            version("resourceVersion=5&limit=2&resourceVersionMatch=NotOlderThan"),
            Version::From(5)
        );
        assert_eq!(
            version("watch=true&resourceVersion=5&limit=2"),
            Version::From(5)
        );
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for (query, code) in [
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", 422),
            ("sendInitialEvents=true", 422),
            ("watch=1&sendInitialEvents=true", 422),
            (
                "watch=1&resourceVersion=1&resourceVersionMatch=NotOlderThan",
                422,
            ),
            ("continue=nonsense", 400),
            ("continue=5%3Aa&resourceVersion=5", 400),
            ("resourceVersion=abc", 400),
            ("fieldSelector=status.phase%3DRunning", 400),
            ("labelSelector=a+b", 400),
        ] {
            assert_eq!(parse(query).unwrap_err(), code, "{query}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let params = parse("labelSelector=%21a%2Fb%2Cc%3Dd&watch=true").unwrap();
        assert_eq!(params.labels.keys().collect::<Vec<_>>(), ["a/b", "c"]);
        assert_eq!(decode("a%2fb+c%zz%"), "a/b c%zz%");
    }
}
