//! Removes identities that nobody bears any more. Each controller looks; whoever is first removes, the others find it done.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use weft_shared::policy::model::Labels;

use crate::{
    identity, limits,
    store::{Store, StoreError},
    stream::Hub,
};

/// Since when identities have had no bearer. A state machine over values: the time is passed in. After a start, or when the
/// store could not be seen, everything counts anew.
#[derive(Debug, Default)]
struct Unused {
    since: BTreeMap<u32, Duration>,
}

impl Unused {
    /// Takes which identities have no bearer now, and returns those that have had none for too long.
    fn look(&mut self, now: Duration, without_bearer: impl Iterator<Item = u32>) -> Vec<u32> {
        let before = std::mem::take(&mut self.since);
        self.since =
            without_bearer.map(|number| (number, before.get(&number).copied().unwrap_or(now))).collect();
        let over =
            self.since.iter().filter(|(_, since)| now.saturating_sub(**since) >= limits::IDENTITY_UNUSED);
        over.map(|(number, _)| *number).take(limits::IDENTITIES_COLLECTED_AT_ONCE).collect()
    }
}

/// Looks until it is to stop.
pub async fn run(store: Arc<dyn Store>, hub: Arc<Hub>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(limits::IDENTITY_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unused = Unused::default();
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let looked = tokio::select! {
            biased;
            looked = look(store.as_ref(), &hub, &mut unused) => looked,
            () = stop.cancelled() => return,
        };
        if let Err(error) = looked {
            tracing::debug!(%error, "cannot say which identities are unused");
            unused = Unused::default();
        }
    }
}

async fn look(store: &dyn Store, hub: &Hub, unused: &mut Unused) -> Result<(), StoreError> {
    let known = hub.wait_applied(store.revision().await?);
    if tokio::time::timeout(limits::IDENTITY_INTERVAL, known).await.is_err() {
        return Err(StoreError::Backend("this controller does not keep up with its store".into()));
    }
    let (seen_at, over) = hub.ask(|fleet| {
        let without_bearer = fleet.identities_without_bearer().map(|(number, _)| number);
        let over = unused.look(hub.now(), without_bearer);
        let over: Vec<(u32, Labels)> =
            over.into_iter().filter_map(|number| Some((number, fleet.labels(number)?.clone()))).collect();
        (fleet.revision(), over)
    });
    for (identity, labels) in over {
        if identity::collect(store, identity, &labels, seen_at).await? {
            tracing::info!(identity, ?labels, "identity removed: nobody bears it");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weft_proto::v1;

    use super::*;
    use crate::{endpoints, fleet_config, keys, nodes, plan::Registry, store::Memory, stream};

    fn minutes(minutes: u64) -> Duration {
        Duration::from_mins(minutes)
    }

    #[test]
    fn only_what_was_unused_all_the_time_is_collected() {
        let mut unused = Unused::default();
        assert_eq!(unused.look(minutes(0), [300, 301].into_iter()), Vec::<u32>::new());
        assert_eq!(unused.look(minutes(5), [300].into_iter()), Vec::<u32>::new());
        assert_eq!(unused.look(minutes(9), [300, 301].into_iter()), Vec::<u32>::new());
        assert_eq!(unused.look(minutes(10), [300, 301].into_iter()), [300]);
        assert_eq!(unused.look(minutes(19), [301].into_iter()), [301]);
    }

    struct World {
        registry: Registry,
        hub: Arc<Hub>,
        stop: CancellationToken,
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    impl World {
        async fn new() -> Self {
            let store: Arc<dyn Store> = Arc::new(Memory::default());
            fleet_config::initialise(store.as_ref()).await.unwrap();
            let registry = Registry::new(Arc::clone(&store));
            let hello = v1::Hello {
                node: "n1".to_owned(),
                addresses: vec!["192.0.2.1".to_owned()],
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..v1::Hello::default()
            };
            nodes::register(&registry, &nodes::parse_hello(&hello, "test").unwrap()).await.unwrap();
            let (hub, stop) = (Arc::new(Hub::default()), CancellationToken::new());
            let revision = stream::load(store.as_ref(), &hub).await.unwrap();
            tokio::spawn(stream::follow(Arc::clone(&store), Arc::clone(&hub), Some(revision), stop.clone()));
            tokio::spawn(run(store, Arc::clone(&hub), stop.clone()));
            Self { registry, hub, stop }
        }

        async fn report(&self, app: &str) -> u32 {
            let endpoint = v1::Endpoint {
                metadata: Some(v1::Metadata {
                    name: "e".to_owned(),
                    labels: [("app".to_owned(), app.to_owned())].into(),
                    ..v1::Metadata::default()
                }),
                addresses: vec!["10.200.0.5".to_owned()],
                mac: "02:00:00:00:00:01".to_owned(),
                ..v1::Endpoint::default()
            };
            let revision = endpoints::report(&self.registry, "n1", endpoint).await.unwrap();
            self.hub.wait_applied(revision).await;
            self.hub.ask(|fleet| fleet.endpoint("e").unwrap().identity)
        }

        async fn gone(&self) {
            endpoints::gone(self.registry.store.as_ref(), "n1", "e", None).await.unwrap();
        }

        async fn identities(&self) -> Vec<u32> {
            self.hub.wait_applied(self.registry.store.revision().await.unwrap()).await;
            self.hub.ask(|fleet| fleet.identity_numbers().collect())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_goes_some_time_after_its_last_bearer_and_its_number_is_not_given_again() {
        let world = World::new().await;
        let node = world.identities().await;
        let web = world.report("web").await;
        let api = world.report("api").await;
        assert_eq!(world.identities().await, [node.clone(), vec![web, api]].concat());
        tokio::time::sleep(limits::IDENTITY_UNUSED / 2).await;
        assert_eq!(world.identities().await.len(), 3, "a bearer may come back");
        tokio::time::sleep(limits::IDENTITY_UNUSED).await;
        assert_eq!(
            world.identities().await,
            [node.clone(), vec![api]].concat(),
            "relabelled: web is nobody's"
        );
        world.gone().await;
        tokio::time::sleep(2 * limits::IDENTITY_UNUSED).await;
        assert_eq!(world.identities().await, node);
        assert!(world.report("web").await > api, "numbers only ascend");
        let references = crate::store::Range {
            prefix: format!("{}identity-reference/", keys::ROOT),
            limit: 10,
            ..Default::default()
        };
        let left = world.registry.store.range(references).await.unwrap().items.len();
        assert_eq!(left, 2, "of the node and of the endpoint");
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_that_somebody_takes_at_this_moment_stays() {
        let world = World::new().await;
        let web = world.report("web").await;
        world.gone().await;
        let seen_at = world.registry.store.revision().await.unwrap();
        let labels = world.hub.ask(|fleet| fleet.labels(web).cloned().unwrap());
        assert_eq!(world.report("web").await, web);
        let store = world.registry.store.as_ref();
        assert!(!identity::collect(store, web, &labels, seen_at).await.unwrap());
        assert!(world.identities().await.contains(&web));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_an_identity_while_it_goes_gets_a_new_number() {
        let world = World::new().await;
        let web = world.report("web").await;
        world.gone().await;
        let store = world.registry.store.as_ref();
        let seen_at = store.revision().await.unwrap();
        let labels = world.hub.ask(|fleet| fleet.labels(web).cloned().unwrap());
        let mut plan = crate::plan::Plan::default();
        assert_eq!(identity::plan_bearer(store, &labels, 0, &mut plan).await.unwrap(), web);
        assert!(identity::collect(store, web, &labels, seen_at).await.unwrap());
        assert_eq!(plan.commit(store).await.unwrap(), None, "it is planned again");
        assert!(world.report("web").await > web);
    }
}
