//! Nodes in the store: registered by their Hello, with endpoint CIDRs out of the pools.
use std::{net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use prost::Message as _;
use tokio::sync::MutexGuard;
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
    prefixes::{self, Taken},
    resource,
    store::{Compare, StoreError},
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
    #[error("the node cannot have the address {address}: {why}")]
    SpokenFor { address: IpAddr, why: String },
    #[error(
        "the node's SNAT ports {} to {} (--snat-ports) meet the fleet's node ports {} to {} (nodePorts): start its \
         daemon with others",
        .ports.start(), .ports.end(), .node_ports.start(), .node_ports.end()
    )]
    SnatPorts { ports: RangeInclusive<u16>, node_ports: RangeInclusive<u16> },
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
        snat_ports: hello.snat_ports,
        ..v1::NodeStatus::default()
    };
    if hello.snat_ports.is_some() && snat_ports(&status).is_none() {
        let text = "hello.snatPorts: expected the first and the last of 1024 to 65535".to_owned();
        return Err(NodeError::Invalid(text));
    }
    Ok(Greeting {
        name: hello.node.clone(),
        labels: hello.labels.clone(),
        addresses,
        status,
        skew,
        former_cidrs: Vec::new(),
    })
}

/// What it sends from for others. `None`: it does not say, or says no ports.
pub fn snat_ports(status: &v1::NodeStatus) -> Option<RangeInclusive<u16>> {
    let v1::SnatPorts { first, last } = status.snat_ports?;
    let ports = first.try_into().ok()?..=last.try_into().ok()?;
    (*ports.start() >= 1024 && !ports.is_empty()).then_some(ports)
}

/// Whether they have a port in common.
pub fn meet(some: &RangeInclusive<u16>, others: &RangeInclusive<u16>) -> bool {
    some.start() <= others.end() && others.start() <= some.end()
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
    let mut turn: Option<MutexGuard<'_, Taken>> = None;
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let attempted = attempt(registry, greeting, turn.as_deref_mut()).await;
        if let (Some(taken), Ok(Attempt::Changed) | Err(_)) = (turn.as_deref_mut(), &attempted) {
            taken.forget();
        }
        match attempted? {
            Attempt::Done(registered) => return Ok(*registered),
            Attempt::NeedsTurn => turn = Some(registry.turn().await),
            Attempt::Changed => {}
        }
    }
    Err(Contended.into())
}

enum Attempt {
    Done(Box<Registered>),
    /// Something would be allocated.
    NeedsTurn,
    /// What was read has changed since.
    Changed,
}

async fn attempt(
    registry: &Registry,
    greeting: &Greeting,
    mut turn: Option<&mut Taken>,
) -> Result<Attempt, NodeError> {
    let store = registry.store.as_ref();
    let mut plan = Plan::default();
    let (node, read_at) = plan_registration(registry, greeting, turn.as_deref_mut(), &mut plan).await?;
    if plan.allocates() && turn.is_none() {
        return Ok(Attempt::NeedsTurn);
    }
    if plan.changes_nothing() {
        return Ok(Attempt::Done(Box::new(Registered { node, revision: read_at })));
    }
    let gives = plan.writes(keys::ENDPOINT_CIDR_GIVEN);
    let Some(revision) = plan.commit(store).await? else { return Ok(Attempt::Changed) };
    if let Some(taken) = turn.filter(|_| gives) {
        taken.given_at(revision);
    }
    Ok(Attempt::Done(Box::new(Registered { node, revision })))
}

async fn plan_registration(
    registry: &Registry,
    greeting: &Greeting,
    taken: Option<&mut Taken>,
    plan: &mut Plan,
) -> Result<(v1::Node, u64), NodeError> {
    let store = registry.store.as_ref();
    let key = keys::object(v1::Kind::Node, &greeting.name);
    let (stored, revision) = store.get(&key).await?;
    plan.expect(&key, stored.as_ref());
    let old = stored.as_ref().map(resource::decode_node).transpose()?;
    let config = fleet_config::read(store, plan).await?;
    if let Some(inside) = greeting.addresses.iter().find(|address| config.in_pools(**address)) {
        let text = format!("hello.addresses: {inside} is inside the pools, which are for endpoints");
        return Err(NodeError::Invalid(text));
    }

    let former_ports = old.as_ref().and_then(|node| snat_ports(node.status.as_ref()?));
    plan_snat_ports(&config, greeting, former_ports.as_ref(), plan)?;

    let owner = Owner::Node(greeting.name.clone());
    let old_addresses = old.as_ref().map(|node| parse_all(&node.addresses)).unwrap_or_default();
    claims::plan(store, &owner, &old_addresses, &greeting.addresses, plan).await.map_err(NodeError::Claim)?;
    let new = greeting.addresses.iter().copied().filter(|address| !old_addresses.contains(address));
    check_new_addresses(registry, &new.collect::<Vec<_>>(), plan).await?;

    let labels = identity::of_node(&config.security_labels(&greeting.labels));
    let former = old.as_ref().and_then(|node| node.status.as_ref()).map_or(0, |status| status.identity);
    let number = identity::plan_bearer(store, &labels, former, plan).await.map_err(NodeError::Identity)?;
    let old_cidrs = old.as_ref().map(|node| parse_all(&node.endpoint_cidrs)).unwrap_or_default();
    let cidrs = prefixes::plan(store, &config, greeting, &old_cidrs, taken, plan).await?;

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

/// What the node sends from is no node port, nor becomes one until the commit.
fn plan_snat_ports(
    config: &FleetConfig,
    greeting: &Greeting,
    former: Option<&RangeInclusive<u16>>,
    plan: &mut Plan,
) -> Result<(), NodeError> {
    let Some(ports) = snat_ports(&greeting.status) else { return Ok(()) };
    if meet(&ports, &config.node_ports) {
        return Err(NodeError::SnatPorts { ports, node_ports: config.node_ports.clone() });
    }
    if former != Some(&ports) {
        // Who changes the node ports at this moment has not seen these.
        plan.put(keys::SNAT_PORTS_GIVEN, "");
    }
    Ok(())
}

/// No service and no prefilter has spoken for what the node has newly, nor does until the commit.
async fn check_new_addresses(registry: &Registry, new: &[IpAddr], plan: &mut Plan) -> Result<(), NodeError> {
    if new.is_empty() {
        return Ok(());
    }
    plan.put(keys::NODE_ADDRESS_GIVEN, "");
    let Some(hub) = &registry.hub else { return Ok(()) };
    let known = hub.wait_applied(registry.store.revision().await?);
    if tokio::time::timeout(limits::HELLO_TIMEOUT, known).await.is_err() {
        let reason = "this controller does not keep up with it".to_owned();
        return Err(StoreError::Unreachable { reason }.into());
    }
    let (seen_at, spoken_for) = hub.ask(|fleet| {
        (fleet.revision(), new.iter().find_map(|address| Some((*address, fleet.spoken_for(*address)?))))
    });
    plan.compare(Compare::not_changed_after(keys::ADDRESSES_SPOKEN_FOR, seen_at));
    match spoken_for {
        Some((address, why)) => Err(NodeError::SpokenFor { address, why }),
        None => Ok(()),
    }
}

/// What is stored was checked before it was written; what cannot be read is left out.
pub fn parse_all<T: std::str::FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use tokio::task::JoinSet;

    use super::*;
    use crate::store::{Memory, Store};

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
}
