//! What nodes have found out about services' backends, in the store: written only when it has changed, so that any controller
//! has it, and has it after a restart.
use std::net::IpAddr;

use prost::Message as _;
use weft_proto::v1;
use weft_shared::{policy::parse, service::shares::BACKENDS_MAX};

use crate::{
    fleet::{
        Words,
        health::{from_message, to_message},
    },
    keys, limits,
    plan::{Contended, Plan},
    resource,
    store::{Range, Store, StoreError},
};

#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error("health report: {0}")]
    Invalid(String),
    #[error(transparent)]
    Contended(#[from] Contended),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who brings a node's word. It counts only while the node is with the controller that it was given to: what an earlier
/// stream brought late must not be stored over what was said since.
#[derive(Debug)]
pub struct Bearer<'a, F> {
    pub node: &'a str,
    /// That the node has told.
    pub controller: &'a str,
    /// Whether the stream that brought it is still the node's.
    pub is_current: F,
}

/// Checks what can be checked without the store.
pub fn check(report: &v1::ServiceHealth) -> Result<(), HealthError> {
    let invalid = |path: &str, why: String| Err(HealthError::Invalid(format!("{path}: {why}")));
    if let Err(error) = parse::name(&report.service, "service") {
        return Err(HealthError::Invalid(error.to_string()));
    }
    let (count, most) = (report.backends.len(), 2 * BACKENDS_MAX);
    if count > most {
        return invalid("backends", format!("{count}, the limit is {most}"));
    }
    let mut former = None;
    for (index, backend) in report.backends.iter().enumerate() {
        let path = |field: &str| format!("backends[{index}].{field}");
        let address = backend.address.parse::<IpAddr>().ok();
        let Some(address) = address.filter(|address| address.to_string() == backend.address) else {
            return invalid(&path("address"), format!("\"{}\" is not a canonical address", backend.address));
        };
        if backend.port > u32::from(u16::MAX) {
            return invalid(&path("port"), format!("{}, expected 0 to 65535", backend.port));
        }
        let (bytes, most) = (backend.error.len(), limits::PROBE_ERROR_MAX_BYTES);
        if bytes > most {
            return invalid(&path("error"), format!("{bytes} bytes, the limit is {most}"));
        }
        let place = Some((address, backend.port));
        if former >= place {
            return invalid(&path("address"), "expected ascending backends, no two alike".to_owned());
        }
        former = place;
    }
    Ok(())
}

/// What holds after a report, given what was said before: of whom the node does not know more, and of what has stayed as it
/// was, the former word.
pub fn merge(former: Option<&Words>, report: &v1::ServiceHealth) -> Words {
    let mut words = from_message(report);
    let Some(former) = former else { return words };
    for (place, word) in &mut words {
        if let Some(before) = former.get(place).filter(|before| before.healthy == word.healthy) {
            word.clone_from(before);
        }
    }
    let unknown = report.backends.iter().filter(|backend| backend.health() == v1::Health::Unspecified);
    let places = unknown.filter_map(|backend| {
        let port = u16::try_from(backend.port).ok()?;
        Some((backend.address.parse::<IpAddr>().ok()?, port.try_into().ok()))
    });
    words.extend(places.filter_map(|place| Some((place, former.get(&place)?.clone()))));
    words
}

/// Stores a report that was checked, where it says something new.
pub async fn report<F: Fn() -> bool>(
    store: &dyn Store,
    bearer: &Bearer<'_, F>,
    report: &v1::ServiceHealth,
) -> Result<(), HealthError> {
    let key = keys::health(bearer.node, &report.service);
    let node_key = keys::object(v1::Kind::Node, bearer.node);
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let mut plan = Plan::default();
        let (node, _) = store.get(&node_key).await?;
        let (stored, _) = store.get(&key).await?;
        // Compared, so that nothing outlives a node that is removed at this moment, or is said for one that has gone elsewhere.
        plan.expect(&node_key, node.as_ref());
        plan.expect(&key, stored.as_ref());
        let status = node.as_ref().map(resource::decode_node).transpose()?.and_then(|node| node.status);
        if status.is_none_or(|status| status.controller != bearer.controller) || !(bearer.is_current)() {
            return Ok(());
        }
        let former = stored.as_ref().and_then(|item| v1::ServiceHealth::decode(item.value.clone()).ok());
        let former = former.as_ref().map(from_message);
        let words = merge(former.as_ref(), report);
        match (stored, words.is_empty()) {
            (None, true) => return Ok(()),
            (Some(_), true) => {
                plan.delete(&*key);
                plan.put(keys::HEALTH_TAKEN_BACK, "");
            }
            (_, false) if former.as_ref() == Some(&words) => return Ok(()),
            (_, false) => plan.put(&*key, to_message(&report.service, &words).encode_to_vec()),
        }
        if plan.commit(store).await?.is_some() {
            return Ok(());
        }
    }
    Err(Contended.into())
}

/// Takes back everything that a node has said, before the node itself goes.
pub async fn forget(store: &dyn Store, node: &str) -> Result<(), StoreError> {
    let prefix = keys::health(node, "");
    loop {
        let limit = limits::HEALTH_FORGOTTEN_AT_ONCE;
        let page = store.range(Range { prefix: prefix.clone(), limit, ..Range::default() }).await?;
        if page.items.is_empty() {
            return Ok(());
        }
        let mut plan = Plan::default();
        page.items.into_iter().for_each(|item| plan.delete(item.key));
        plan.put(keys::HEALTH_TAKEN_BACK, "");
        plan.commit(store).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{fleet_config, nodes, plan::Registry, store::Memory};

    async fn store_with_node(controller: &str) -> Arc<dyn Store> {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        register(&store, controller).await;
        store
    }

    async fn register(store: &Arc<dyn Store>, controller: &str) {
        let hello = v1::Hello {
            node: "n1".to_owned(),
            addresses: vec!["192.0.2.1".to_owned()],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::Hello::default()
        };
        let registry = Registry::new(Arc::clone(store));
        nodes::register(&registry, &nodes::parse_hello(&hello, controller).unwrap()).await.unwrap();
    }

    /// Backends by their addresses, each `+` healthy, `-` not, or `?`, at this second.
    fn found(backends: &[(&str, char)], second: i64) -> v1::ServiceHealth {
        let backends = backends.iter().map(|(address, health)| v1::BackendHealth {
            address: (*address).to_owned(),
            port: 80,
            health: match health {
                '+' => v1::Health::Healthy,
                '-' => v1::Health::Unhealthy,
                _ => v1::Health::Unspecified,
            }
            .into(),
            since: (*health != '?').then_some(prost_types::Timestamp { seconds: second, nanos: 0 }),
            error: if *health == '-' { format!("refused at {second}") } else { String::new() },
        });
        v1::ServiceHealth { service: "api".to_owned(), backends: backends.collect() }
    }

    async fn stored(store: &Arc<dyn Store>) -> Option<v1::ServiceHealth> {
        let (item, _) = store.get(&keys::health("n1", "api")).await.unwrap();
        item.map(|item| v1::ServiceHealth::decode(item.value).unwrap())
    }

    fn bearer(controller: &str, is_current: bool) -> Bearer<'_, impl Fn() -> bool> {
        Bearer { node: "n1", controller, is_current: move || is_current }
    }

    async fn tell(store: &Arc<dyn Store>, message: &v1::ServiceHealth) -> u64 {
        check(message).unwrap();
        report(store.as_ref(), &bearer("c1", true), message).await.unwrap();
        store.revision().await.unwrap()
    }

    #[tokio::test]
    async fn only_what_has_changed_is_written_and_a_daemon_that_knows_nothing_yet_takes_nothing_back() {
        let store = store_with_node("c1").await;
        let first = found(&[("10.0.0.1", '+'), ("10.0.0.2", '-'), ("10.0.0.3", '?')], 100);
        let told = tell(&store, &first).await;
        let kept = found(&[("10.0.0.1", '+'), ("10.0.0.2", '-')], 100);
        assert_eq!(stored(&store).await, Some(kept.clone()));
        // A daemon that has begun anew, and one that has found the same again.
        assert_eq!(tell(&store, &found(&[("10.0.0.1", '?'), ("10.0.0.2", '?')], 200)).await, told);
        assert_eq!(tell(&store, &found(&[("10.0.0.1", '+'), ("10.0.0.2", '-')], 200)).await, told);
        assert_eq!(stored(&store).await, Some(kept));

        let changed = tell(&store, &found(&[("10.0.0.1", '-'), ("10.0.0.2", '-')], 300)).await;
        assert_eq!(changed, told + 1);
        let backends = stored(&store).await.unwrap().backends;
        let errors: Vec<&str> = backends.iter().map(|backend| backend.error.as_str()).collect();
        assert_eq!(errors, ["refused at 300", "refused at 100"]);

        // It probes less, and then nothing.
        tell(&store, &found(&[("10.0.0.2", '?')], 400)).await;
        assert_eq!(stored(&store).await, Some(found(&[("10.0.0.2", '-')], 100)));
        let nothing = tell(&store, &found(&[], 500)).await;
        assert_eq!(stored(&store).await, None);
        assert_eq!(tell(&store, &found(&[], 600)).await, nothing);
        let (mark, _) = store.get(keys::HEALTH_TAKEN_BACK).await.unwrap();
        assert_eq!(mark.unwrap().mod_revision, nothing, "what is taken back is seen by who lists");
    }

    #[tokio::test]
    async fn what_an_earlier_stream_brings_late_is_not_stored() {
        let store = store_with_node("c1").await;
        let late = found(&[("10.0.0.1", '-')], 100);
        report(store.as_ref(), &bearer("c1", false), &late).await.unwrap();
        register(&store, "c2").await;
        report(store.as_ref(), &bearer("c1", true), &late).await.unwrap();
        assert_eq!(stored(&store).await, None);
        report(store.as_ref(), &bearer("c2", true), &late).await.unwrap();
        assert_eq!(stored(&store).await, Some(late));
    }

    #[tokio::test]
    async fn of_a_node_that_is_no_more_nothing_is_stored() {
        let store = store_with_node("c1").await;
        for number in 0..250 {
            let service = format!("s{number}");
            tell(&store, &v1::ServiceHealth { service, ..found(&[("10.0.0.1", '+')], 1) }).await;
        }
        forget(store.as_ref(), "n1").await.unwrap();
        let range = Range { prefix: keys::HEALTH.to_owned(), limit: 10, ..Range::default() };
        assert_eq!(store.range(range).await.unwrap().items, []);
        let mut plan = Plan::default();
        plan.delete(keys::object(v1::Kind::Node, "n1"));
        plan.commit(store.as_ref()).await.unwrap();
        tell(&store, &found(&[("10.0.0.1", '-')], 100)).await;
        assert_eq!(stored(&store).await, None);
    }

    #[test]
    fn a_report_that_is_wrong_is_refused_with_its_place() {
        type Change = fn(&mut v1::ServiceHealth);
        let cases: [(Change, &str); 6] = [
            (|report| report.service = "a/b".to_owned(), "service: \"a/b\" is not a name"),
            (
                |report| report.backends[1].address = "10.0.0.02".to_owned(),
                "backends[1].address: \"10.0.0.02\"",
            ),
            (|report| report.backends[1].address = "10.0.0.1".to_owned(), "expected ascending backends"),
            (|report| report.backends[0].port = 65_536, "backends[0].port: 65536"),
            (|report| report.backends[0].error = "e".repeat(201), "backends[0].error: 201 bytes"),
            (
                |report| report.backends = vec![v1::BackendHealth::default(); 2_621],
                "backends: 2621, the limit",
            ),
        ];
        for (change, expected) in cases {
            let mut report = found(&[("10.0.0.1", '+'), ("10.0.0.2", '-')], 100);
            change(&mut report);
            let error = check(&report).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
