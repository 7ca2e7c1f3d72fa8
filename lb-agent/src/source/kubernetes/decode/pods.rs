// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods and Namespaces, which say whose sockets are served.
//!
//! **Invariant:** nothing but their metadata is read, so it does not matter whether a server sends more.

use serde::Deserialize;

use super::{Meta, Unread, Watched};
use crate::model::snapshot::{Kind, Object};
use crate::source::convert;

/// A pod; nothing but its metadata is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::source::kubernetes) struct Pod {
    metadata: Meta,
}

impl Watched for Pod {
    const KIND: Kind = Kind::Pods;

    fn meta(&mut self) -> &mut Meta {
        &mut self.metadata
    }

    fn convert(self) -> Result<Option<Object>, Unread> {
        let pod = convert::pod(&self.metadata.into_object_meta())?;
        Ok(Some(Object::Pod(pod)))
    }
}

/// A Namespace; nothing but its metadata is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::source::kubernetes) struct Namespace {
    metadata: Meta,
}

impl Watched for Namespace {
    const KIND: Kind = Kind::Namespaces;

    fn meta(&mut self) -> &mut Meta {
        &mut self.metadata
    }

    fn convert(self) -> Result<Option<Object>, Unread> {
        let namespace = convert::namespace(&self.metadata.into_object_meta())?;
        Ok(Some(Object::Namespace(namespace)))
    }
}
