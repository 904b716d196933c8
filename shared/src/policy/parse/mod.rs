//! From the schema's messages to the model, once, at the edge. Every error names the field by its path inside the object
//! (`ingress[0].ports[1].endPort`, spelled as in manifests) and says what was expected. What this version does not
//! enforce is refused, never half understood.

mod fleet;
mod policy;
mod selector;
mod text;

use std::fmt;

use weft_proto::v1::{self, object};

pub use self::{
    fleet::fleet_config,
    policy::{entity_to_proto, policy},
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

/// Checks an object that an operator gives: its metadata, and all that its kind demands.
pub fn object(object: &v1::Object) -> Result<(), Vec<FieldError>> {
    match &object.kind {
        Some(object::Kind::Policy(message)) => policy(message).map(drop),
        Some(object::Kind::FleetConfig(message)) => fleet_config(message).map(drop),
        Some(object::Kind::Node(_)) => refuse("a node is written by its own daemon when it connects"),
        Some(object::Kind::Endpoint(_)) => refuse("an endpoint is written by the node that attaches it"),
        Some(object::Kind::Identity(_)) => refuse("identities are allocated by the controller"),
        Some(object::Kind::CidrSet(_)) => refuse("this version does not support CidrSet yet"),
        Some(object::Kind::Service(_)) => refuse("this version does not support Service yet"),
        Some(object::Kind::Prefilter(_)) => refuse("this version does not support Prefilter yet"),
        Some(object::Kind::EgressGateway(_)) => refuse("this version does not support EgressGateway yet"),
        Some(object::Kind::Bundle(_)) => refuse("this version does not support Bundle yet"),
        Some(object::Kind::Rollout(_)) => refuse("this version does not support Rollout yet"),
        None => refuse("an object has a kind"),
    }
}

fn refuse(message: &str) -> Result<(), Vec<FieldError>> {
    Err(vec![FieldError::new("kind", message)])
}

/// Errors of one object, collected so that an operator sees all of them at once.
#[derive(Debug, Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError::new(path, message));
    }

    /// The value, or `None` with its error noted.
    fn take<T>(&mut self, result: Result<T, FieldError>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// The value, or `None` with its errors noted.
    fn take_all<T>(&mut self, result: Result<T, Vec<FieldError>>) -> Option<T> {
        result.map_err(|errors| self.0.extend(errors)).ok()
    }

    /// The whole, if nothing was wrong with a part.
    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }
}

fn metadata(errors: &mut Errors, metadata: Option<&v1::Metadata>) -> Option<String> {
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
