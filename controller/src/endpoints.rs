//! Endpoints in the store: written for the node that attached them, removed with their attachment.
use std::net::IpAddr;

use ipnet::IpNet;
use prost::Message as _;
use weft_proto::v1::{self, object::Kind as Of};
use weft_shared::policy::parse;

use crate::{
    claims::{self, ClaimError, Owner},
    fleet_config,
    identity::{self, IdentityError},
    keys, limits,
    nodes::parse_all,
    plan::{Contended, Plan, Registry},
    resource,
    store::{Store, StoreError},
};

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0}")]
    Invalid(String),
    #[error("the name {name} is taken by an endpoint of node {node}")]
    NameTaken { name: String, node: String },
    #[error("address {address} is outside this node's endpoint prefixes {}", list(cidrs))]
    OutsideNode { address: IpAddr, cidrs: Vec<IpNet> },
    #[error(transparent)]
    Claim(ClaimError),
    #[error(transparent)]
    Identity(IdentityError),
    #[error(transparent)]
    Contended(#[from] Contended),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EndpointError {
    /// It is no word about the endpoint: the same report may be taken another time.
    pub fn is_of_store(&self) -> bool {
        matches!(
            self,
            Self::Store(_)
                | Self::Contended(_)
                | Self::Claim(ClaimError::Store(_))
                | Self::Identity(IdentityError::Store(_))
        )
    }
}

fn list(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes what the node says of its endpoint, if it may. Returns the revision that shows it.
pub async fn report(registry: &Registry, node: &str, endpoint: v1::Endpoint) -> Result<u64, EndpointError> {
    let (endpoint, addresses) = check(node, endpoint)?;
    let store = registry.store.as_ref();
    let mut turn = None;
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let mut plan = Plan::default();
        let read_at = plan_report(store, endpoint.clone(), &addresses, &mut plan).await?;
        if plan.allocates() && turn.is_none() {
            turn = Some(registry.turn().await);
            continue;
        }
        if plan.changes_nothing() {
            return Ok(read_at);
        }
        if let Some(revision) = plan.commit(store).await? {
            return Ok(revision);
        }
    }
    Err(Contended.into())
}

/// Checks what can be checked without the store; returns it in canonical form.
fn check(node: &str, mut endpoint: v1::Endpoint) -> Result<(v1::Endpoint, Vec<IpAddr>), EndpointError> {
    let invalid = |error: parse::FieldError| EndpointError::Invalid(error.to_string());
    let (bytes, most) = (endpoint.encoded_len(), limits::REPORT_MAX_BYTES);
    if bytes > most {
        return Err(EndpointError::Invalid(format!("{bytes} bytes, the limit is {most}")));
    }
    let metadata = endpoint.metadata.get_or_insert_default();
    parse::name(&metadata.name, "name").map_err(invalid)?;
    parse::labels(&metadata.labels, "labels").map_err(|mut errors| invalid(errors.swap_remove(0)))?;
    if metadata.labels.contains_key(identity::NODE_MARK) {
        return Err(EndpointError::Invalid(format!("labels: {} is reserved", identity::NODE_MARK)));
    }
    if !endpoint.node.is_empty() && endpoint.node != node {
        return Err(EndpointError::Invalid(format!("node: this is node {node}, not {}", endpoint.node)));
    }
    node.clone_into(&mut endpoint.node);
    if !is_mac(&endpoint.mac) {
        let text = format!("mac: \"{}\" is not six octets in colon notation", endpoint.mac);
        return Err(EndpointError::Invalid(text));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, text) in endpoint.addresses.iter().enumerate() {
        let wrong = |why: String| EndpointError::Invalid(format!("addresses[{index}]: {why}"));
        let address: IpAddr = text.parse().map_err(|_| wrong(format!("\"{text}\" is not an IP address")))?;
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(wrong("expected at most one address of a family".to_owned()));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(EndpointError::Invalid("addresses: expected at least one".to_owned()));
    }
    endpoint.addresses = addresses.iter().map(ToString::to_string).collect();
    Ok((endpoint, addresses))
}

fn is_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    octets.len() == 6
        && octets.iter().all(|octet| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

async fn plan_report(
    store: &dyn Store,
    mut endpoint: v1::Endpoint,
    addresses: &[IpAddr],
    plan: &mut Plan,
) -> Result<u64, EndpointError> {
    let metadata = endpoint.metadata.get_or_insert_default();
    let name = metadata.name.clone();
    let key = keys::object(v1::Kind::Endpoint, &name);
    let (stored, revision) = store.get(&key).await?;
    plan.expect(&key, stored.as_ref());
    let old = stored.as_ref().map(resource::decode_endpoint).transpose()?;
    if let Some(other) = old.as_ref().filter(|old| old.node != endpoint.node) {
        return Err(EndpointError::NameTaken { name, node: other.node.clone() });
    }
    // The node may be removed at this moment: then the endpoint must not outlive it.
    let node_key = keys::object(v1::Kind::Node, &endpoint.node);
    let (node, _) = store.get(&node_key).await?;
    let Some(node) = node else {
        return Err(EndpointError::Invalid(format!("node {} was removed", endpoint.node)));
    };
    plan.expect(&node_key, Some(&node));
    let cidrs: Vec<IpNet> = parse_all(&resource::decode_node(&node)?.endpoint_cidrs);
    let outside = addresses.iter().find(|address| !cidrs.iter().any(|cidr| cidr.contains(*address)));
    if let Some(&address) = outside {
        return Err(EndpointError::OutsideNode { address, cidrs });
    }

    let old_uid = old.as_ref().and_then(|old| old.metadata.as_ref()).map(|metadata| metadata.uid.clone());
    metadata.uid = old_uid.unwrap_or_else(resource::new_uid);
    metadata.revision = stored.as_ref().map_or(0, |item| item.mod_revision);
    let config = fleet_config::read(store, plan).await?;
    let labels = config.security_labels(&metadata.labels);
    let former = old.as_ref().and_then(|old| old.status.as_ref()).map_or(0, |status| status.identity);
    let number =
        identity::plan_bearer(store, &labels, former, plan).await.map_err(EndpointError::Identity)?;
    endpoint.status.get_or_insert_default().identity = number;

    let old_addresses = old.as_ref().map(|old| parse_all(&old.addresses)).unwrap_or_default();
    let owner = Owner::Endpoint(name);
    claims::plan(store, &owner, &old_addresses, addresses, plan).await.map_err(EndpointError::Claim)?;
    if old.is_none() {
        plan.put(keys::endpoint_added(&endpoint.node), "");
    }
    if old.as_ref() != Some(&endpoint) {
        plan.put(key, resource::encode(resource::object(Of::Endpoint(endpoint))));
    }
    Ok(revision)
}

/// The endpoint's attachment has ended. Of another node's endpoint, or another instance of the name (`None`: whichever),
/// nothing happens.
pub async fn gone(
    store: &dyn Store,
    node: &str,
    name: &str,
    instance: Option<&str>,
) -> Result<(), EndpointError> {
    let key = keys::object(v1::Kind::Endpoint, name);
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let (stored, _) = store.get(&key).await?;
        let Some(stored) = stored else { return Ok(()) };
        let endpoint = resource::decode_endpoint(&stored)?;
        let stored_instance = endpoint.attachment.as_ref().map_or("", |attachment| &attachment.instance);
        let is_other = |instance: &str| !stored_instance.is_empty() && instance != stored_instance;
        if endpoint.node != node || instance.is_some_and(is_other) {
            return Ok(());
        }
        let mut plan = Plan::default();
        plan.expect(&key, Some(&stored));
        plan.delete(&*key);
        plan.put(keys::ENDPOINT_REMOVED, "");
        for address in parse_all(&endpoint.addresses) {
            plan.delete(keys::address(address));
        }
        if plan.commit(store).await?.is_some() {
            return Ok(());
        }
    }
    Err(Contended.into())
}
