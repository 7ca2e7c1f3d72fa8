// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the API server serves, and under which paths.
//!
//! **Invariant:** one table, here; a path that is not in it is answered by 404, as any path is that a
//! real API server does not know. Read next: `serve`.

/// A kind of object that the API server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node, without a namespace.
    Node,
    /// Events, of either group: they can be written and not be watched.
    Event,
}

impl Resource {
    /// How many there are.
    pub(super) const COUNT: usize = 4;

    /// Those that can be listed and watched.
    pub(super) const WATCHED: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::Node];

    /// The kind as objects name it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Event => "Event",
        }
    }

    /// The kind's name in paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
            Self::Event => "events",
        }
    }

    /// The group and version that objects name.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Event => "events.k8s.io/v1",
        }
    }

    pub(super) const fn group(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::Event => "events.k8s.io",
        }
    }

    pub(super) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node)
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// The resource of objects of a kind that can be applied.
    pub(super) fn of_kind(kind: &str) -> Option<Self> {
        Self::WATCHED.into_iter().find(|one| one.kind() == kind)
    }

    /// The fields that a selector may name.
    pub(super) fn has_field(self, field: &str) -> bool {
        let of_all = ["metadata.name", "metadata.namespace"].contains(&field);
        let of_services = ["spec.clusterIP", "spec.type"].contains(&field);
        of_all || (self == Self::Service && of_services)
    }

    /// What a real server writes where an object has no content of its own, in bookmarks.
    pub(super) const fn empty_rest(self) -> &'static str {
        match self {
            Self::Service => r#","spec":{},"status":{"loadBalancer":{}}"#,
            Self::EndpointSlice => r#","addressType":"","endpoints":null,"ports":null"#,
            Self::Node => {
                r#","spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{}}"#
            }
            Self::Event => "",
        }
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/version`.
    Version,
    /// `/healthz`, `/livez` or `/readyz`.
    Health,
    /// Objects of one kind: all, those of a namespace, or one.
    Objects {
        resource: Resource,
        namespace: Option<&'a str>,
        name: Option<&'a str>,
    },
    /// None of these.
    Unknown,
}

pub(super) fn route(path: &str) -> Route<'_> {
    let groups: [(&str, &[Resource]); 3] = [
        (
            "/api/v1/",
            &[Resource::Service, Resource::Node, Resource::Event],
        ),
        ("/apis/discovery.k8s.io/v1/", &[Resource::EndpointSlice]),
        ("/apis/events.k8s.io/v1/", &[Resource::Event]),
    ];
    match path {
        "/version" => return Route::Version,
        "/healthz" | "/livez" | "/readyz" => return Route::Health,
        _ => {}
    }
    for (prefix, resources) in groups {
        let Some(rest) = path.strip_prefix(prefix) else {
            continue;
        };
        let (namespace, rest) = match rest.strip_prefix("namespaces/") {
            Some(rest) => match rest.split_once('/') {
                Some((namespace, rest)) => (Some(namespace), rest),
                None => return Route::Unknown,
            },
            None => (None, rest),
        };
        let (plural, name) = match rest.split_once('/') {
            Some((plural, name)) => (plural, Some(name)),
            None => (rest, None),
        };
        let found = resources.iter().find(|one| one.plural() == plural);
        let Some(&resource) = found else {
            return Route::Unknown;
        };
        let fits = if resource.is_namespaced() {
            namespace.is_some() || name.is_none()
        } else {
            namespace.is_none()
        };
        let is_one = name.is_none_or(|name| !name.is_empty() && !name.contains('/'));
        if fits && is_one {
            return Route::Objects {
                resource,
                namespace,
                name,
            };
        }
    }
    Route::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_namespaces_and_objects() {
        let objects = |resource, namespace, name| Route::Objects {
            resource,
            namespace,
            name,
        };
        assert_eq!(
            route("/api/v1/services"),
            objects(Resource::Service, None, None)
        );
        assert_eq!(
            route("/api/v1/namespaces/a/services/b"),
            objects(Resource::Service, Some("a"), Some("b"))
        );
        assert_eq!(
            route("/apis/discovery.k8s.io/v1/namespaces/a/endpointslices"),
            objects(Resource::EndpointSlice, Some("a"), None)
        );
        assert_eq!(
            route("/api/v1/nodes/n"),
            objects(Resource::Node, None, Some("n"))
        );
        for unknown in [
            "/api/v1/pods",
            "/api/v1/namespaces/a/nodes",
            "/apis/discovery.k8s.io/v1beta1/endpointslices",
            "/api/v1/nodes/n/status",
        ] {
            assert_eq!(route(unknown), Route::Unknown, "{unknown}");
        }
    }
}
