//! The shell: keeps this controller's record, reads those of the others, and removes nodes that stay away for longer
//! than the fleet allows.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::record;
use crate::{
    fleet_config, limits,
    nodes::NodeError,
    plan::Plan,
    removal, resource,
    store::{Store, StoreError},
    stream::Hub,
};

/// This controller's part in it, until it is to stop.
pub async fn run(store: Arc<dyn Store>, hub: Arc<Hub>, controller: String, stop: CancellationToken) {
    let mut watcher = Watcher {
        shared: store.kind() != "embedded",
        instance: resource::new_uid(),
        written: None,
        store,
        hub,
        controller,
    };
    watcher.hub.presence(|presence, _| presence.begin(watcher.instance.clone()));
    let mut ticks = tokio::time::interval(limits::PRESENCE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let looked = tokio::select! {
            looked = watcher.look() => looked,
            () = stop.cancelled() => break,
        };
        if let Err(error) = looked {
            tracing::debug!(%error, "cannot say which nodes are absent");
            watcher.hub.presence(|presence, _| presence.forget());
        }
    }
    watcher.leave().await;
}

struct Watcher {
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    controller: String,
    instance: String,
    /// Other controllers may use the same store.
    shared: bool,
    /// What the record says, and since when.
    written: Option<(BTreeSet<String>, Instant)>,
}

impl Watcher {
    async fn look(&mut self) -> Result<(), StoreError> {
        let expiry = self.read_expiry().await?;
        let (nodes, own) = self.hub.ask(|fleet| {
            let nodes: BTreeSet<String> = fleet.nodes().map(|(name, _)| name.to_owned()).collect();
            let own = nodes.iter().filter(|node| fleet.is_connected(node)).cloned().collect();
            (nodes, own)
        });
        if self.shared {
            self.keep_record(&own, expiry.is_some()).await?;
            self.read_others().await?;
        }
        let expired = self.hub.presence(|presence, now| {
            presence.allow(expiry);
            presence.look(&nodes, &own, now);
            presence.expired(now)
        });
        for node in expired {
            self.expire(&node, expiry.unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Asks the store itself: who cannot reach it must not judge.
    async fn read_expiry(&self) -> Result<Option<Duration>, StoreError> {
        Ok(fleet_config::read(self.store.as_ref(), &mut Plan::default()).await?.node_expiry)
    }

    async fn keep_record(&mut self, own: &BTreeSet<String>, judged: bool) -> Result<(), StoreError> {
        // Without expiry nobody needs to hear from a controller that serves the same nodes.
        let beat = if judged { limits::PRESENCE_BEAT } else { limits::PRESENCE_BEAT_IDLE };
        let known = self.written.as_ref().is_some_and(|(nodes, at)| nodes == own && at.elapsed() < beat);
        if !known {
            record::write(self.store.as_ref(), &self.instance, &self.controller, own).await?;
            self.written = Some((own.clone(), Instant::now()));
        }
        Ok(())
    }

    async fn read_others(&self) -> Result<(), StoreError> {
        let records = record::read(self.store.as_ref()).await?;
        let dead: Vec<String> = self.hub.presence(|presence, now| {
            presence.take(records, now);
            presence.dead(now).map(|record| record.instance.clone()).collect()
        });
        for instance in dead {
            record::remove(self.store.as_ref(), &instance).await?;
        }
        Ok(())
    }

    async fn expire(&self, node: &str, expiry: Duration) -> Result<(), StoreError> {
        let endpoints = self.hub.ask(|fleet| fleet.endpoints_of(node).count());
        let without_stream_seconds = expiry.as_secs();
        match removal::remove(self.store.as_ref(), &self.hub, node, None).await {
            Ok(revision) => {
                tracing::warn!(
                    node,
                    endpoints,
                    revision,
                    without_stream_seconds,
                    "node removed: it stayed away"
                );
            }
            // It came back, or another controller was faster.
            Err(NodeError::Connected { .. } | NodeError::NotFound(_)) => {}
            Err(NodeError::Store(error)) => return Err(error),
            Err(error) => tracing::warn!(node, %error, "cannot remove a node that stays away"),
        }
        Ok(())
    }

    /// Its nodes are somebody else's from now on.
    async fn leave(&self) {
        if self.written.is_some() {
            let left = record::remove(self.store.as_ref(), &self.instance);
            // A store that is away must not hold up the end; the others see the silence.
            drop(tokio::time::timeout(limits::PRESENCE_LEAVE, left).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{self, object::Kind as Of};

    use super::*;
    use crate::{endpoints, keys, nodes, plan::Registry, store::Memory, stream};

    const EXPIRY: Duration = Duration::from_mins(10);
    const ALMOST: Duration = Duration::from_secs(599);

    /// A store with these nodes, an endpoint on each, that are removed after [`EXPIRY`].
    async fn store_with(names: &[&str]) -> Arc<dyn Store> {
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
            nodes::register(&registry, &nodes::parse_hello(&hello, "test").unwrap()).await.unwrap();
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

    async fn controller(store: &Arc<dyn Store>) -> Running {
        let (hub, stop) = (Arc::new(Hub::default()), CancellationToken::new());
        let revision = stream::load(store.as_ref(), &hub).await.unwrap();
        let following = stream::follow(Arc::clone(store), Arc::clone(&hub), Some(revision), stop.clone());
        tokio::spawn(following);
        tokio::spawn(run(Arc::clone(store), Arc::clone(&hub), "c".to_owned(), stop.clone()));
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
        let store = store_with(&["away", "here"]).await;
        let controller = controller(&store).await;
        let _session = controller.hub.connect("here", None);
        tokio::time::sleep(ALMOST).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["away", "here"]);
        tokio::time::sleep(2 * limits::PRESENCE_INTERVAL).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["here"]);
        assert_eq!(names(&store, v1::Kind::Endpoint).await, ["on-here"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_of_another_controller_stays_until_that_one_is_gone_and_the_time_is_over() {
        let store = store_with(&["n"]).await;
        let first = controller(&store).await;
        let second = controller(&store).await;
        let session = second.hub.connect("n", None);
        tokio::time::sleep(3 * EXPIRY).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        let refused = removal::remove(store.as_ref(), &first.hub, "n", None).await.unwrap_err();
        assert_eq!(refused.to_string(), "node n is connected to controller c: stop its daemon first");

        drop((session, second));
        tokio::time::sleep(ALMOST).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        tokio::time::sleep(3 * limits::PRESENCE_INTERVAL).await;
        assert_eq!(names(&store, v1::Kind::Node).await, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_was_down_gives_nodes_the_time_to_come_back() {
        let store = store_with(&["n"]).await;
        let first = controller(&store).await;
        tokio::time::sleep(EXPIRY / 2).await;
        drop(first);
        tokio::time::sleep(10 * EXPIRY).await;
        let _again = controller(&store).await;
        tokio::time::sleep(ALMOST).await;
        assert_eq!(names(&store, v1::Kind::Node).await, ["n"]);
        tokio::time::sleep(2 * limits::PRESENCE_INTERVAL).await;
        assert_eq!(names(&store, v1::Kind::Node).await, Vec::<String>::new());
    }
}
