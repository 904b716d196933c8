//! Who has which address: one key an address, so that two owners meet in a transaction whoever writes first.
use std::net::IpAddr;

use crate::{
    keys,
    plan::Plan,
    store::{Store, StoreError},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Node(String),
    Endpoint(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("address {address} is taken by {owner}")]
    Taken { address: IpAddr, owner: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => write!(formatter, "node {name}"),
            Self::Endpoint(name) => write!(formatter, "endpoint {name}"),
        }
    }
}

/// The owner has `new` after the commit, and no more what of `old` is not in it.
pub async fn plan(
    store: &dyn Store,
    owner: &Owner,
    old: &[IpAddr],
    new: &[IpAddr],
    plan: &mut Plan,
) -> Result<(), ClaimError> {
    let owner = owner.to_string();
    for &address in new {
        let key = keys::address(address);
        let (claim, _) = store.get(&key).await?;
        match &claim {
            Some(claim) if claim.value != owner.as_bytes() => {
                let owner = String::from_utf8_lossy(&claim.value).into_owned();
                return Err(ClaimError::Taken { address, owner });
            }
            Some(_) => {}
            None => plan.put(&*key, owner.clone()),
        }
        plan.expect(&key, claim.as_ref());
    }
    for &address in old.iter().filter(|address| !new.contains(address)) {
        plan.delete(keys::address(address));
    }
    Ok(())
}
