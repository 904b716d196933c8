//! Nodes in the store: registered by their Hello, with endpoint CIDRs out of the pools.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use prost::Message as _;
use weft_proto::v1::{self, object::Kind as Of};
use weft_shared::{
    policy::{model::FleetConfig, parse},
    version::{Release, Skew, TooFarApart},
};

use crate::{
    claims::{self, ClaimError, Owner},
    endpoints::EndpointError,
    fleet_config,
    identity::{self, IdentityError},
    keys, limits,
    plan::{Contended, Plan, Registry},
    resource,
    store::{Range, Store, StoreError},
};

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{0}")]
    Invalid(String),
    #[error("hello.version: {0}")]
    Version(#[from] TooFarApart),
    #[error("no {family} prefix of length {length} is left in pool {pool}")]
    PoolExhausted { pool: IpNet, length: u8, family: &'static str },
    #[error("if_revision {0} is stale: objects were changed after it")]
    Stale(u64),
    #[error("no node {0}")]
    NotFound(String),
    #[error("node {node} is connected to controller {controller}: stop its daemon first")]
    Connected { node: String, controller: String },
    #[error(transparent)]
    Claim(ClaimError),
    #[error(transparent)]
    Identity(IdentityError),
    #[error("cannot remove its endpoints: {0}")]
    Endpoint(EndpointError),
    #[error(transparent)]
    Contended(#[from] Contended),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A node as it says hello, checked.
#[derive(Debug, Clone)]
pub struct Greeting {
    pub name: String,
    pub labels: std::collections::BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub status: v1::NodeStatus,
    pub skew: Skew,
    /// What it had for endpoints in the store that it comes from, if it was adopted: it keeps what is free.
    pub former_cidrs: Vec<IpNet>,
}

/// Checks what can be checked without the store.
pub fn parse_hello(hello: &v1::Hello, controller: &str) -> Result<Greeting, NodeError> {
    let invalid = |error: parse::FieldError| NodeError::Invalid(format!("hello.{error}"));
    let (bytes, most) = (hello.encoded_len(), limits::REPORT_MAX_BYTES);
    if bytes > most {
        return Err(NodeError::Invalid(format!("hello: {bytes} bytes, the limit is {most}")));
    }
    parse::name(&hello.node, "node").map_err(invalid)?;
    parse::labels(&hello.labels, "labels").map_err(|mut errors| invalid(errors.swap_remove(0)))?;
    if let Some(key) = hello.labels.keys().find(|key| *key == identity::NODE_MARK) {
        return Err(NodeError::Invalid(format!("hello.labels: {key} is reserved")));
    }
    let skew = version_skew(&hello.version, env!("CARGO_PKG_VERSION"))?;
    if hello.addresses.is_empty() || hello.addresses.len() > limits::NODE_ADDRESSES_MAX {
        let (count, most) = (hello.addresses.len(), limits::NODE_ADDRESSES_MAX);
        return Err(NodeError::Invalid(format!(
            "hello.addresses: expected 1 to {most} addresses, found {count}"
        )));
    }
    let mut addresses = Vec::new();
    for (index, text) in hello.addresses.iter().enumerate() {
        let wrong = |why: &str| NodeError::Invalid(format!("hello.addresses[{index}]: {why}"));
        let address: IpAddr = text.parse().map_err(|_| wrong(&format!("\"{text}\" is not an IP address")))?;
        if address.is_unspecified() || address.is_multicast() {
            return Err(wrong(&format!("{address} is not an address of one node")));
        }
        if addresses.contains(&address) {
            return Err(wrong(&format!("{address} is there twice")));
        }
        addresses.push(address);
    }
    let status = v1::NodeStatus {
        capabilities: hello.capabilities.clone(),
        controller: controller.to_owned(),
        boot_id: hello.boot_id.clone(),
        version: hello.version.clone(),
        features: hello.features.clone(),
        ..v1::NodeStatus::default()
    };
    Ok(Greeting {
        name: hello.node.clone(),
        labels: hello.labels.clone(),
        addresses,
        status,
        skew,
        former_cidrs: Vec::new(),
    })
}

fn version_skew(node: &str, controller: &str) -> Result<Skew, NodeError> {
    let release = |text: &str| text.parse::<Release>();
    let node = release(node).map_err(|error| NodeError::Invalid(format!("hello.version: {error}")))?;
    let controller = release(controller).map_err(|error| NodeError::Invalid(error.to_string()))?;
    Ok(Skew::between(node, controller)?)
}

/// A registered node, and the revision from which the store shows it so.
#[derive(Debug, Clone)]
pub struct Registered {
    pub node: v1::Node,
    pub revision: u64,
}

/// Writes the node, unless the store already has it so.
pub async fn register(registry: &Registry, greeting: &Greeting) -> Result<Registered, NodeError> {
    let store = registry.store.as_ref();
    let mut turn = None;
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let mut plan = Plan::default();
        let (node, read_at) = plan_registration(store, greeting, &mut plan).await?;
        if plan.allocates() && turn.is_none() {
            turn = Some(registry.turn().await);
            continue;
        }
        if plan.changes_nothing() {
            return Ok(Registered { node, revision: read_at });
        }
        if let Some(revision) = plan.commit(store).await? {
            return Ok(Registered { node, revision });
        }
    }
    Err(Contended.into())
}

async fn plan_registration(
    store: &dyn Store,
    greeting: &Greeting,
    plan: &mut Plan,
) -> Result<(v1::Node, u64), NodeError> {
    let key = keys::object(v1::Kind::Node, &greeting.name);
    let (stored, revision) = store.get(&key).await?;
    plan.expect(&key, stored.as_ref());
    let old = stored.as_ref().map(resource::decode_node).transpose()?;
    let config = fleet_config::read(store, plan).await?;
    if let Some(inside) = greeting.addresses.iter().find(|address| config.in_pools(**address)) {
        let text = format!("hello.addresses: {inside} is inside the pools, which are for endpoints");
        return Err(NodeError::Invalid(text));
    }

    let owner = Owner::Node(greeting.name.clone());
    let old_addresses = old.as_ref().map(|node| parse_all(&node.addresses)).unwrap_or_default();
    claims::plan(store, &owner, &old_addresses, &greeting.addresses, plan).await.map_err(NodeError::Claim)?;

    let labels = identity::of_node(&config.security_labels(&greeting.labels));
    let former = old.as_ref().and_then(|node| node.status.as_ref()).map_or(0, |status| status.identity);
    let number = identity::plan_bearer(store, &labels, former, plan).await.map_err(NodeError::Identity)?;
    let old_cidrs = old.as_ref().map(|node| parse_all(&node.endpoint_cidrs)).unwrap_or_default();
    let cidrs = plan_cidrs(store, &config, greeting, &old_cidrs, plan).await?;

    let uid = old.as_ref().and_then(|node| node.metadata.as_ref()).map(|metadata| metadata.uid.clone());
    let mut node = v1::Node {
        metadata: Some(v1::Metadata {
            name: greeting.name.clone(),
            labels: greeting.labels.clone(),
            uid: uid.unwrap_or_else(resource::new_uid),
            revision: stored.as_ref().map_or(0, |item| item.mod_revision),
        }),
        addresses: greeting.addresses.iter().map(ToString::to_string).collect(),
        endpoint_cidrs: cidrs.iter().map(ToString::to_string).collect(),
        status: Some(v1::NodeStatus { identity: number, ..greeting.status.clone() }),
    };
    if old.as_ref() != Some(&node) {
        if let Some(metadata) = node.metadata.as_mut() {
            metadata.revision = 0;
        }
        plan.put(key, resource::encode(resource::object(Of::Node(node.clone()))));
    }
    Ok((node, revision))
}

/// What the node has in each pool stays; where it has nothing it gets the lowest prefix that is free.
async fn plan_cidrs(
    store: &dyn Store,
    config: &FleetConfig,
    greeting: &Greeting,
    old: &[IpNet],
    plan: &mut Plan,
) -> Result<Vec<IpNet>, NodeError> {
    let mut cidrs = Vec::new();
    let mut taken: Option<BTreeSet<IpNet>> = None;
    for pool in &config.pools {
        if let Some(kept) = old.iter().find(|cidr| pool.cidr.contains(*cidr)) {
            cidrs.push(*kept);
            continue;
        }
        if taken.is_none() {
            taken = Some(read_taken(store).await?);
        }
        let used = taken.get_or_insert_default();
        let former = greeting.former_cidrs.iter().copied().find(|cidr| {
            cidr.prefix_len() == pool.node_prefix_length && pool.cidr.contains(cidr) && is_free(cidr, used)
        });
        let free = former.or_else(|| first_free(pool.cidr, pool.node_prefix_length, used)).ok_or(
            NodeError::PoolExhausted {
                pool: pool.cidr,
                length: pool.node_prefix_length,
                family: if pool.cidr.addr().is_ipv4() { "IPv4" } else { "IPv6" },
            },
        )?;
        used.insert(free);
        plan.note_allocation();
        let key = keys::endpoint_cidr(free);
        plan.expect(&key, None);
        plan.put(key, greeting.name.clone());
        cidrs.push(free);
    }
    if taken.is_some() {
        // Who takes a pool away at this moment has not seen this node on it.
        plan.put(keys::ENDPOINT_CIDR_GIVEN, "");
    }
    Ok(cidrs)
}

async fn read_taken(store: &dyn Store) -> Result<BTreeSet<IpNet>, StoreError> {
    let mut taken = BTreeSet::new();
    let mut range = Range {
        prefix: keys::ENDPOINT_CIDRS.to_owned(),
        limit: limits::LIST_PAGE_MAX_OBJECTS,
        ..Range::default()
    };
    loop {
        let page = store.range(range.clone()).await?;
        taken.extend(
            page.items.iter().filter_map(|item| item.key[keys::ENDPOINT_CIDRS.len()..].parse::<IpNet>().ok()),
        );
        if !page.more {
            return Ok(taken);
        }
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
    }
}

fn is_free(cidr: &IpNet, taken: &BTreeSet<IpNet>) -> bool {
    !taken.iter().any(|other| other.contains(cidr) || cidr.contains(other))
}

/// The lowest prefix of this length inside the pool that overlaps none of `taken`.
fn first_free(pool: IpNet, length: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let inside: Vec<&IpNet> =
        taken.iter().filter(|cidr| pool.contains(*cidr) || cidr.contains(&pool)).collect();
    // Among n taken prefixes of any length, one of the first n + 1 candidates is free, or a longer walk past a
    // shorter prefix finds it: the walk skips what a shorter prefix covers.
    let mut candidates = pool.subnets(length).ok()?;
    candidates
        .find(|candidate| !inside.iter().any(|cidr| cidr.contains(candidate) || candidate.contains(*cidr)))
}

/// What is stored was checked before it was written; what cannot be read is left out.
pub fn parse_all<T: std::str::FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;
    use crate::store::Memory;

    fn greeting(number: u8) -> Greeting {
        let hello = v1::Hello {
            node: format!("node-{number}"),
            addresses: vec![format!("192.0.2.{number}")],
            labels: [("rack".to_owned(), number.to_string())].into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::Hello::default()
        };
        parse_hello(&hello, "test").unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_that_register_at_once_with_two_controllers_share_no_prefix() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        let controllers = [(); 2].map(|()| Arc::new(Registry::new(Arc::clone(&store))));
        let mut arrivals = JoinSet::new();
        for number in 0..100 {
            let registry = Arc::clone(&controllers[usize::from(number % 2)]);
            arrivals.spawn(async move { register(&registry, &greeting(number)).await.unwrap().node });
        }
        let nodes = arrivals.join_all().await;
        let cidrs: BTreeSet<String> = nodes.iter().flat_map(|node| node.endpoint_cidrs.clone()).collect();
        assert_eq!(cidrs.len(), 200, "one of each family for each node");
    }

    #[tokio::test]
    async fn a_node_that_comes_again_as_it_was_is_not_written() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        let registry = Registry::new(Arc::clone(&store));
        let first = register(&registry, &greeting(1)).await.unwrap();
        let again = register(&registry, &greeting(1)).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), first.revision);
        assert_eq!(again.node.endpoint_cidrs, first.node.endpoint_cidrs);
    }

    #[test]
    fn a_node_too_many_versions_away_is_refused_with_the_side_to_upgrade() {
        assert_eq!(version_skew("0.1.3", "0.2.0").unwrap(), Skew::NodeOlder);
        let error = version_skew("0.1.3", "0.3.0").unwrap_err();
        assert!(
            error.to_string().starts_with("hello.version: the node is 0.1 and the controller 0.3"),
            "{error}"
        );
        let error = version_skew("latest", "0.3.0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "hello.version: \"latest\" is not a version, expected MAJOR.MINOR.PATCH"
        );
    }

    #[test]
    fn the_lowest_prefix_that_overlaps_nothing_is_free() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let pool = net("10.0.0.0/16");
        let free = |taken: &[&str]| first_free(pool, 24, &taken.iter().map(|text| net(text)).collect());
        assert_eq!(free(&[]), Some(net("10.0.0.0/24")));
        assert_eq!(free(&["10.0.0.0/24", "10.0.2.0/24"]), Some(net("10.0.1.0/24")));
        assert_eq!(free(&["10.0.0.0/23"]), Some(net("10.0.2.0/24")), "given when the length was another");
        assert_eq!(free(&["10.0.0.128/25"]), Some(net("10.0.1.0/24")));
        assert_eq!(free(&["10.0.0.0/16"]), None);
    }
}
