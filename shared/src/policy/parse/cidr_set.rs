//! CIDR sets.

use weft_proto::v1;

use super::{super::model::CidrSet, Errors, FieldError, metadata, text::prefix};

/// A CIDR set; one of no prefixes is one that matches nothing yet.
pub fn cidr_set(message: &v1::CidrSet) -> Result<CidrSet, Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata(&mut errors, message.metadata.as_ref());
    let mut cidrs = Vec::new();
    for (index, text) in message.cidrs.iter().enumerate() {
        cidrs.extend(errors.take(prefix(text, &format!("cidrs[{index}]"))));
    }
    cidrs.sort();
    cidrs.dedup();
    let labels = message.metadata.as_ref().map(|metadata| metadata.labels.clone()).unwrap_or_default();
    errors.finish(name.map(|name| CidrSet { name, labels, cidrs }))
}
