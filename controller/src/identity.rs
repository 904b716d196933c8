//! Identities: one number for one canonical set of security labels, given in one transaction, never two for one set.
//! Numbers only ascend. Identities that nobody uses any more are left in place for now.
use weft_proto::v1::{self, object::Kind as Of};
use weft_shared::policy::model::Labels;

use crate::{
    keys, limits,
    plan::Plan,
    resource,
    store::{Store, StoreError},
};

/// Marks the label sets of nodes, so that a node and an endpoint with equal labels are still two identities, and
/// selectors of endpoints don't match nodes. Endpoints and operators can't use it.
pub const NODE_MARK: &str = "weft/node";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("all {} identities are in use", limits::IDENTITY_LAST - limits::IDENTITY_FIRST + 1)]
    Exhausted,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The labels that make a node's identity.
pub fn of_node(security_labels: &Labels) -> Labels {
    let mut labels = security_labels.clone();
    labels.insert(NODE_MARK.to_owned(), String::new());
    labels
}

pub fn is_of_node(labels: &Labels) -> bool {
    labels.contains_key(NODE_MARK)
}

/// The number of a label set. A new one becomes real with the plan's commit.
pub async fn plan(store: &dyn Store, labels: &Labels, plan: &mut Plan) -> Result<u32, IdentityError> {
    let by_labels = keys::identity_by_labels(labels);
    let (known, _) = store.get(&by_labels).await?;
    plan.expect(&by_labels, known.as_ref());
    if let Some(item) = known {
        return parse_number(&item.value).ok_or(StoreError::Corrupt { key: item.key }.into());
    }
    let (counter, _) = store.get(keys::NEXT_IDENTITY).await?;
    plan.expect(keys::NEXT_IDENTITY, counter.as_ref());
    let number = match counter {
        None => limits::IDENTITY_FIRST,
        Some(item) => parse_number(&item.value).ok_or(StoreError::Corrupt { key: item.key })?,
    };
    if number > limits::IDENTITY_LAST {
        return Err(IdentityError::Exhausted);
    }
    plan.put(keys::NEXT_IDENTITY, (number + 1).to_string());
    plan.put(by_labels, number.to_string());
    let identity = v1::Identity {
        metadata: Some(v1::Metadata {
            name: number.to_string(),
            uid: resource::new_uid(),
            ..v1::Metadata::default()
        }),
        number,
        security_labels: labels.clone(),
    };
    let key = keys::object(v1::Kind::Identity, &number.to_string());
    plan.put(key, resource::encode(resource::object(Of::Identity(identity))));
    Ok(number)
}

fn parse_number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
