//! Removes nodes that stay away for longer than the fleet allows.
mod absence;
mod probers;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use absence::Absence;

use crate::{
    fleet_config, limits,
    nodes::NodeError,
    plan::Plan,
    removal,
    store::{Store, StoreError},
    stream::Hub,
};

/// Looks until it is to stop.
pub async fn run(store: Arc<dyn Store>, hub: Arc<Hub>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(limits::ABSENCE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let looked = tokio::select! {
            biased;
            looked = look(store.as_ref(), &hub) => looked,
            () = stop.cancelled() => return,
        };
        if let Err(error) = looked {
            tracing::debug!(%error, "cannot say which nodes are away");
            hub.absence(|absence, _| absence.forget());
        }
    }
}

async fn look(store: &dyn Store, hub: &Hub) -> Result<(), StoreError> {
    // Of the store itself, and of a fleet that keeps up with it: who cannot reach it must not judge.
    let expiry = fleet_config::read(store, &mut Plan::default()).await?.node_expiry;
    let known = hub.wait_applied(store.revision().await?);
    if tokio::time::timeout(limits::ABSENCE_INTERVAL, known).await.is_err() {
        return Err(StoreError::Backend("this controller does not keep up with its store".into()));
    }
    let nodes: Vec<String> = hub.ask(|fleet| fleet.nodes().map(|(name, _)| name.to_owned()).collect());
    let away: BTreeSet<String> =
        nodes.into_iter().filter(|node| hub.standing(node).is_some_and(|node| !node.connected)).collect();
    let (expired, away) = hub.absence(|absence, now| {
        absence.look(away, expiry, now);
        (absence.expired(now), absence.longer_than(limits::PROBER_AWAY, now))
    });
    probers::mark(store, hub, &away).await?;
    for node in expired {
        remove(store, hub, &node, expiry.unwrap_or_default()).await?;
    }
    Ok(())
}

async fn remove(store: &dyn Store, hub: &Hub, node: &str, expiry: Duration) -> Result<(), StoreError> {
    let endpoints = hub.ask(|fleet| fleet.endpoints_of(node).count());
    let away_seconds = expiry.as_secs();
    match removal::remove(store, hub, node, None).await {
        Ok(revision) => {
            tracing::warn!(node, endpoints, revision, away_seconds, "node removed: it stayed away");
        }
        // It came back, or another controller was faster.
        Err(NodeError::Connected { .. } | NodeError::NotFound(_)) => {}
        Err(NodeError::Store(error)) => return Err(error),
        Err(error) => tracing::warn!(node, %error, "cannot remove a node that stays away"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{self, object::Kind as Of};

    use super::*;
    use crate::{endpoints, keys, nodes, plan::Registry, progress::keep, resource, store::Memory, stream};

    const EXPIRY: Duration = Duration::from_mins(10);
    const ALMOST: Duration = Duration::from_secs(599);

    /// A store with these nodes, last of this controller, an endpoint on each; they are removed after [`EXPIRY`].
    async fn store_with(names: &[&str], controller: &str) -> Arc<dyn Store> {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        let config = v1::FleetConfig {
            node_expiry_seconds: Some(u32::try_from(EXPIRY.as_secs()).unwrap()),
            ..fleet_config::default()
        };
        let mut plan = Plan::default();
        plan.put(fleet_config::key(), resource::encode(resource::object(Of::FleetConfig(config))));
        plan.commit(store.as_ref()).await.unwrap();
        let registry = Registry::new(Arc::clone(&store));
        for (number, name) in names.iter().enumerate() {
            let hello = v1::Hello {
                node: (*name).to_owned(),
                addresses: vec![format!("192.0.2.{}", number + 1)],
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..v1::Hello::default()
            };
            nodes::register(&registry, &nodes::parse_hello(&hello, controller).unwrap()).await.unwrap();
            let endpoint = v1::Endpoint {
                metadata: Some(v1::Metadata { name: format!("on-{name}"), ..v1::Metadata::default() }),
                addresses: vec![format!("10.200.{number}.5")],
                mac: "02:00:00:00:00:01".to_owned(),
                ..v1::Endpoint::default()
            };
            endpoints::report(&registry, name, endpoint).await.unwrap();
        }
        store
    }

    /// The parts of a controller that matter here.
    struct Running {
        hub: Arc<Hub>,
        stop: CancellationToken,
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    async fn controller(store: &Arc<dyn Store>, name: &str) -> Running {
        let (hub, stop) = (Arc::new(Hub::new(name.to_owned())), CancellationToken::new());
        let revision = stream::load(store.as_ref(), &hub).await.unwrap();
        let following = stream::follow(Arc::clone(store), Arc::clone(&hub), Some(revision), stop.clone());
        tokio::spawn(following);
        tokio::spawn(keep::keep(Arc::clone(store), Arc::clone(&hub), stop.clone()));
        tokio::spawn(run(Arc::clone(store), Arc::clone(&hub), stop.clone()));
        Running { hub, stop }
    }

    async fn names(store: &Arc<dyn Store>, kind: v1::Kind) -> Vec<String> {
        let prefix = keys::prefix(kind).unwrap();
        let range = crate::store::Range { prefix: prefix.clone(), limit: 100, ..Default::default() };
        let page = store.range(range).await.unwrap();
        page.items.iter().map(|item| item.key[prefix.len()..].to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stays_away_is_removed_with_its_endpoints_and_one_that_does_not_stays() {
        let store = store_with(&["away", "here"], "c1").await;
        let controller = controller(&store, "c1").await;
        let _session = controller.hub.connect("here", None);
        tokio::time::sleep(ALMOST).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["away", "here"]);
        tokio::time::sleep(2 * limits::ABSENCE_INTERVAL).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["here"]);
        assert_eq!(names(&store, v1::Kind::Endpoint).await, ["on-here"]);
    }

    /// A service with a backend outside of the fleet that is probed.
    async fn put_probed_service(store: &Arc<dyn Store>) {
        let frontend = v1::Frontend {
            address: "10.96.0.1".to_owned(),
            port: 80,
            protocol: v1::Protocol::Tcp.into(),
            ..v1::Frontend::default()
        };
        let backend = v1::Backend { address: "203.0.113.5".to_owned(), ..v1::Backend::default() };
        let service = v1::Service {
            metadata: Some(v1::Metadata { name: "out".to_owned(), ..v1::Metadata::default() }),
            frontends: vec![frontend],
            backends: Some(v1::BackendList { items: vec![backend] }),
            health_check: Some(v1::HealthCheck::default()),
            ..v1::Service::default()
        };
        let mut plan = Plan::default();
        let object = resource::object(Of::Service(service));
        plan.put(keys::object(v1::Kind::Service, "out"), resource::encode(object));
        plan.commit(store.as_ref()).await.unwrap();
    }

    fn probers(hub: &Hub) -> Vec<String> {
        hub.ask(|fleet| {
            let answering = fleet.answering(fleet.service("out").unwrap());
            answering.backends.into_values().flat_map(|backend| backend.probed_by).collect()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_away_probes_nothing_outside_until_it_is_back_and_all_controllers_know() {
        let store = store_with(&["away", "here"], "c1").await;
        put_probed_service(&store).await;
        let (first, second) = (controller(&store, "c1").await, controller(&store, "c2").await);
        let _here = first.hub.connect("here", None);
        tokio::time::sleep(limits::PROBER_AWAY / 2).await;
        assert_eq!(probers(&first.hub), ["away", "here"], "it may come back at once");
        tokio::time::sleep(limits::PROBER_AWAY).await;
        for hub in [&first.hub, &second.hub] {
            assert_eq!(probers(hub), ["here"]);
        }
        let marked = store.get(&keys::prober_away("away")).await.unwrap().0.unwrap();
        assert_eq!(marked.version, 1, "written once");
        let _away = first.hub.connect("away", None);
        tokio::time::sleep(3 * limits::ABSENCE_INTERVAL).await;
        for hub in [&first.hub, &second.hub] {
            assert_eq!(probers(hub), ["away", "here"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_of_another_controller_stays_until_that_one_is_gone_and_the_time_is_over() {
        let store = store_with(&["n"], "c2").await;
        let first = controller(&store, "c1").await;
        let second = controller(&store, "c2").await;
        let session = second.hub.connect("n", None);
        tokio::time::sleep(3 * EXPIRY).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        let refused = removal::remove(store.as_ref(), &first.hub, "n", None).await.unwrap_err();
        assert_eq!(refused.to_string(), "node n is connected to controller c2: stop its daemon first");

        drop((session, second));
        tokio::time::sleep(ALMOST).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        tokio::time::sleep(3 * limits::ABSENCE_INTERVAL).await;
        assert_eq!(names(&store, v1::Kind::Node).await, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_controllers_of_one_name_neither_takes_the_others_nodes_for_away() {
        let store = store_with(&["n"], "c").await;
        let first = controller(&store, "c").await;
        let second = controller(&store, "c").await;
        let _session = second.hub.connect("n", None);
        tokio::time::sleep(3 * EXPIRY).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        let refused = removal::remove(store.as_ref(), &first.hub, "n", None).await.unwrap_err();
        assert_eq!(refused.to_string(), "node n is connected to controller c: stop its daemon first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_was_down_gives_nodes_the_time_to_come_back() {
        let store = store_with(&["n"], "c1").await;
        let first = controller(&store, "c1").await;
        tokio::time::sleep(EXPIRY / 2).await;
        drop(first);
        tokio::time::sleep(10 * EXPIRY).await;
        let _again = controller(&store, "c1").await;
        tokio::time::sleep(ALMOST).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        tokio::time::sleep(2 * limits::ABSENCE_INTERVAL).await;
        assert_eq!(names(&store, v1::Kind::Node).await, Vec::<String>::new());
    }
}
