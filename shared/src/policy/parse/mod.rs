//! From the schema's messages to the model, once, at the edge. Every error names the field by its path inside the object
//! (`ingress[0].ports[1].endPort`, spelled as in manifests) and says what was expected. What this version does not
//! enforce is refused, never half understood.

mod cidr_set;
mod fleet;
mod peer;
mod policy;
mod port;
pub(crate) mod selector;
pub(crate) mod text;

use std::fmt;

use weft_proto::v1::{self, object};

use crate::service;

pub use self::{
    cidr_set::cidr_set,
    fleet::{failsafe, failsafe_to_proto, fleet_config},
    peer::entity_to_proto,
    policy::{policy, policy_and_warnings},
    selector::selector,
    text::{labels, name},
};

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Of the field, inside the object.
    pub path: String,
    pub message: String,
}

impl FieldError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for FieldError {}

/// What is right, and can still hardly be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldWarning {
    /// Of the field, inside the object.
    pub path: String,
    pub message: String,
}

/// Checks an object that an operator gives: its metadata, and all that its kind demands. Returns what can hardly be meant.
pub fn object(object: &v1::Object) -> Result<Vec<FieldWarning>, Vec<FieldError>> {
    match &object.kind {
        Some(object::Kind::Policy(message)) => policy_and_warnings(message).map(|(_, warnings)| warnings),
        Some(object::Kind::FleetConfig(message)) => fleet_config(message).map(|_| Vec::new()),
        Some(object::Kind::CidrSet(message)) => cidr_set(message).map(|_| Vec::new()),
        Some(object::Kind::Node(_)) => refuse("a node is written by its own daemon when it connects"),
        Some(object::Kind::Endpoint(_)) => refuse("an endpoint is written by the node that attaches it"),
        Some(object::Kind::Identity(_)) => refuse("identities are allocated by the controller"),
        Some(object::Kind::Service(message)) => {
            service::parse::with_warnings(message).map(|(_, warned)| warned)
        }
        Some(object::Kind::Prefilter(message)) => {
            service::parse::prefilter(message).map(|(_, warned)| warned)
        }
        Some(object::Kind::Shaping(message)) => service::parse::shaping(message).map(|(_, warned)| warned),
        Some(object::Kind::EgressGateway(_)) => refuse("this version does not support EgressGateway yet"),
        Some(object::Kind::Bundle(_)) => refuse("this version does not support Bundle yet"),
        Some(object::Kind::Rollout(_)) => refuse("this version does not support Rollout yet"),
        None => refuse("an object has a kind"),
    }
}

fn refuse(message: &str) -> Result<Vec<FieldWarning>, Vec<FieldError>> {
    Err(vec![FieldError::new("kind", message)])
}

/// Errors and warnings of one object, collected so that an operator sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    errors: Vec<FieldError>,
    warnings: Vec<FieldWarning>,
}

impl Errors {
    pub(crate) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    pub(crate) fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(FieldWarning { path: path.into(), message: message.into() });
    }

    /// How many there are so far.
    pub(crate) fn count(&self) -> usize {
        self.errors.len()
    }

    /// The value, or `None` with its error noted.
    pub(crate) fn take<T>(&mut self, result: Result<T, FieldError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    /// The value, or `None` with its errors noted.
    pub(crate) fn take_all<T>(&mut self, result: Result<T, Vec<FieldError>>) -> Option<T> {
        result.map_err(|errors| self.errors.extend(errors)).ok()
    }

    /// The whole, if nothing was wrong with a part.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        self.finish_with_warnings(value).map(|(value, _)| value)
    }

    pub(crate) fn finish_with_warnings<T>(
        self,
        value: Option<T>,
    ) -> Result<(T, Vec<FieldWarning>), Vec<FieldError>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok((value, self.warnings)),
            _ => Err(self.errors),
        }
    }
}

pub(crate) fn metadata(errors: &mut Errors, metadata: Option<&v1::Metadata>) -> Option<String> {
    let Some(metadata) = metadata else {
        errors.add("name", "expected a name");
        return None;
    };
    errors.take_all(labels(&metadata.labels, "labels"));
    errors.take(name(&metadata.name, "name"))?;
    Some(metadata.name.clone())
}

#[cfg(test)]
mod tests;
