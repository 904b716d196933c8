//! Taking a node out of the fleet, with everything it has. Its endpoints go one by one, the node last: whoever dies in
//! between leaves a node with fewer endpoints, which is removed by trying again.
use crate::{
    endpoints, health, keys, limits,
    nodes::{NodeError, parse_all},
    plan::{Contended, Plan},
    resource,
    store::{Compare, Store},
    stream::Hub,
};

/// What the fleet knows of a node, as of a revision.
struct Known {
    revision: u64,
    endpoints: Vec<String>,
}

/// Removes the node and its endpoints, if it is not connected.
pub async fn remove(
    store: &dyn Store,
    hub: &Hub,
    name: &str,
    if_revision: Option<u64>,
) -> Result<u64, NodeError> {
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        hub.wait_applied(store.revision().await?).await;
        let known = hub.ask(|fleet| Known {
            revision: fleet.revision(),
            endpoints: fleet.endpoints_of(name).map(str::to_owned).collect(),
        });
        if let Some(standing) = hub.standing(name).filter(|standing| standing.connected) {
            return Err(NodeError::Connected { node: name.to_owned(), controller: standing.controller });
        }
        if let Some(revision) = try_remove(store, name, &known, if_revision).await? {
            return Ok(revision);
        }
    }
    Err(Contended.into())
}

/// `None`: the node or what it has changed meanwhile.
async fn try_remove(
    store: &dyn Store,
    name: &str,
    known: &Known,
    if_revision: Option<u64>,
) -> Result<Option<u64>, NodeError> {
    let key = keys::object(weft_proto::v1::Kind::Node, name);
    let (stored, _) = store.get(&key).await?;
    let Some(stored) = stored else { return Err(NodeError::NotFound(name.to_owned())) };
    let node = resource::decode_node(&stored)?;
    for endpoint in &known.endpoints {
        endpoints::gone(store, name, endpoint, None).await.map_err(NodeError::Endpoint)?;
    }
    health::forget(store, name).await?;
    let mut plan = Plan::default();
    plan.expect(&key, Some(&stored));
    // An endpoint that it was given since then would outlive it.
    let added = keys::endpoint_added(name);
    plan.compare(Compare::not_changed_after(&*added, known.revision));
    if let Some(revision) = if_revision {
        plan.compare(Compare::not_changed_after(keys::OPERATOR_CHANGE, revision));
    }
    plan.delete(key);
    plan.delete(added);
    plan.delete(keys::prober_away(name));
    for address in parse_all(&node.addresses) {
        plan.delete(keys::address(address));
    }
    for cidr in parse_all(&node.endpoint_cidrs) {
        plan.delete(keys::endpoint_cidr(cidr));
    }
    plan.put(keys::OPERATOR_CHANGE, "");
    Ok(plan.commit(store).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::v1;

    use super::*;
    use crate::{
        endpoints, fleet_config, nodes,
        plan::Registry,
        store::{Memory, Range},
        stream,
    };

    async fn registered(name: &str) -> Registry {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        let registry = Registry::new(store);
        let hello = v1::Hello {
            node: name.to_owned(),
            addresses: vec!["192.0.2.1".to_owned()],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::Hello::default()
        };
        nodes::register(&registry, &nodes::parse_hello(&hello, "test").unwrap()).await.unwrap();
        registry
    }

    fn endpoint(name: &str, address: &str) -> v1::Endpoint {
        v1::Endpoint {
            metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
            addresses: vec![address.to_owned()],
            mac: "02:00:00:00:00:01".to_owned(),
            ..v1::Endpoint::default()
        }
    }

    async fn names(store: &dyn Store, prefix: &str) -> Vec<String> {
        let range = Range { prefix: format!("/weft/v1/{prefix}/"), limit: 100, ..Range::default() };
        store.range(range).await.unwrap().items.into_iter().map(|item| item.key).collect()
    }

    #[tokio::test]
    async fn an_endpoint_that_is_reported_while_its_node_is_removed_does_not_outlive_it() {
        let registry = registered("n1").await;
        let store = registry.store.as_ref();
        endpoints::report(&registry, "n1", endpoint("first", "10.200.0.5")).await.unwrap();
        let hub = Hub::default();
        let revision = stream::load(store, &hub).await.unwrap();
        let seen = Known { revision, endpoints: vec!["first".to_owned()] };

        endpoints::report(&registry, "n1", endpoint("second", "10.200.0.6")).await.unwrap();
        assert_eq!(try_remove(store, "n1", &seen, None).await.unwrap(), None);
        assert_eq!(names(store, "node").await.len(), 1, "looked at again before it goes");

        stream::load(store, &hub).await.unwrap();
        remove(store, &hub, "n1", None).await.unwrap();
        for room in ["node", "endpoint", "address", "endpoint-cidr", "endpoint-added"] {
            assert_eq!(names(store, room).await, Vec::<String>::new());
        }
        let late = endpoints::report(&registry, "n1", endpoint("third", "10.200.0.7")).await;
        assert!(late.unwrap_err().to_string().contains("node n1 was removed"));
    }
}
