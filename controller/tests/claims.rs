//! Two who want what only one can have, one of them caught between its look at the fleet and its transaction: whoever writes
//! second looks again, and is refused with the name of the first.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::{
    any::Any,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use support::{
    DEADLINE, Fleet, config, fleet_beside,
    gate::{Gate, Gated},
    hello, selector, within,
};
use tokio::sync::oneshot;
use weft_controller::store::{Embedded, Etcd, EtcdConfig, Memory, Store, StoreError, Transaction};
use weft_proto::v1::{self, object::Kind as Of};
use weft_test_etcd::{Cluster, Options};

/// Has the next transaction that writes a certain key wait.
#[derive(Default)]
struct Catching(Mutex<Option<Catch>>);

struct Catch {
    key: &'static str,
    caught: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

#[async_trait]
impl Gate for Catching {
    async fn pass(&self, transaction: &Transaction) -> Result<(), StoreError> {
        let writes =
            |catch: &mut Catch| transaction.then.iter().any(|operation| operation.key().contains(catch.key));
        let catch = self.0.lock().unwrap().take_if(|catch| writes(catch));
        if let Some(catch) = catch {
            catch.caught.send(()).unwrap();
            catch.released.await.unwrap();
        }
        Ok(())
    }
}

/// What somebody does, and how it ended: with the message of the refusal.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Service(&'static str),
    Prefilter,
    /// That gets the address.
    Node,
    /// A pool around the address.
    Pool,
    /// Other node ports.
    Ports,
    /// The address is protected.
    Protect,
}

const ADDRESS: &str = "192.0.2.77";

impl Deed {
    /// A part of the key that it alone writes.
    fn key(self) -> &'static str {
        match self {
            Self::Service(_) => "/service/",
            Self::Prefilter => "/prefilter/",
            Self::Node => "/node/",
            Self::Pool | Self::Ports | Self::Protect => "/fleet-config/",
        }
    }

    async fn does(self, fleet: &mut Fleet) -> Result<(), String> {
        if self == Self::Node {
            return fleet
                .try_node(hello("node-1", ADDRESS))
                .await
                .map(drop)
                .map_err(|status| status.message().to_owned());
        }
        let metadata = |name: &str| Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() });
        let object = match self {
            Self::Service(name) => {
                let frontend = |address: &str, port, kind: v1::FrontendType| v1::Frontend {
                    address: address.to_owned(),
                    port,
                    protocol: v1::Protocol::Tcp.into(),
                    r#type: kind.into(),
                };
                Of::Service(v1::Service {
                    metadata: metadata(name),
                    frontends: vec![
                        frontend(ADDRESS, 80, v1::FrontendType::External),
                        frontend("", 30_080, v1::FrontendType::NodePort),
                    ],
                    selector: Some(selector("app", "api")),
                    ..v1::Service::default()
                })
            }
            Self::Prefilter => Of::Prefilter(v1::Prefilter {
                metadata: metadata("scanners"),
                cidrs: vec!["192.0.2.64/26".to_owned()],
                ..v1::Prefilter::default()
            }),
            _ => {
                let Some(Of::FleetConfig(mut config)) = config(&[("10.200.0.0/16", 24)]).kind else {
                    panic!("a configuration")
                };
                match self {
                    Self::Pool => config
                        .pools
                        .push(v1::Pool { cidr: "192.0.2.0/24".to_owned(), node_prefix_length: 28 }),
                    Self::Ports => config.node_ports = Some(v1::NodePorts { first: 31_000, last: 32_000 }),
                    _ => config.protected_prefixes = vec![format!("{ADDRESS}/32")],
                }
                Of::FleetConfig(config)
            }
        };
        let applied = fleet.apply(vec![v1::Object { kind: Some(object) }]).await;
        applied.map(drop).map_err(|status| status.message().to_owned())
    }
}

/// `caught` is at it first, with one controller, and `other` done with it first, with another. Returns what `caught` is told.
async fn race(caught: Deed, other: Deed, store: Arc<dyn Store>) -> String {
    let slow = Arc::new(Gated { store: Arc::clone(&store), gate: Catching::default() });
    let mut first = fleet_beside("first", Arc::clone(&slow) as Arc<dyn Store>).await;
    let mut second = fleet_beside("second", store).await;
    let ((told, is_caught), (release, released)) = (oneshot::channel(), oneshot::channel());
    *slow.gate.0.lock().unwrap() = Some(Catch { key: caught.key(), caught: told, released });
    let intrude = async {
        is_caught.await.unwrap();
        let done = other.does(&mut second).await;
        release.send(()).unwrap();
        done
    };
    let both = Box::pin(async { tokio::join!(caught.does(&mut first), intrude) });
    let (refused, done) = within(both).await;
    assert_eq!(done, Ok(()), "{other:?} was first");
    refused.unwrap_err()
}

const SERVICE: Deed = Deed::Service("a");

/// Between any two kinds of claims.
const CLAIMS: [(Deed, Deed, &str); 3] = [
    (Deed::Service("b"), SERVICE, "services \"a\" and \"b\" both claim 192.0.2.77:80/TCP"),
    (Deed::Node, SERVICE, "192.0.2.77:80/TCP is a frontend of service a"),
    (SERVICE, Deed::Node, "192.0.2.77 is an address of node node-1"),
];

/// What goes on from these: with a prefilter, and with the configuration.
const OTHERS: [(Deed, Deed, &str); 8] = [
    (Deed::Node, Deed::Prefilter, "prefilter scanners drops 192.0.2.77"),
    (Deed::Prefilter, Deed::Node, "192.0.2.77/32, which is an address of node node-1"),
    (Deed::Pool, SERVICE, "192.0.2.0/24 covers 192.0.2.77:80/TCP, a frontend of service \"a\""),
    (SERVICE, Deed::Pool, "192.0.2.77 is inside the pool 192.0.2.0/24"),
    (Deed::Ports, SERVICE, "leaves out node port 30080/TCP of service \"a\""),
    (SERVICE, Deed::Ports, "30080 is no node port of this fleet"),
    (Deed::Protect, Deed::Prefilter, "prefilter \"scanners\" drops 192.0.2.64/26"),
    (Deed::Prefilter, Deed::Protect, "meets 192.0.2.77/32, which is protected"),
];

/// Each case on a store of its own, with what must outlive it.
async fn second_is_refused<F: Future<Output = (Arc<dyn Store>, Box<dyn Any>)>>(
    cases: &[(Deed, Deed, &str)],
    make: impl Fn() -> F,
) {
    for (caught, other, expected) in cases {
        let (store, _beneath) = make().await;
        let refused = Box::pin(race(*caught, *other, store)).await;
        assert!(refused.contains(expected), "{caught:?} after {other:?}: {refused}");
    }
}

#[tokio::test]
async fn whoever_is_second_is_refused() {
    let memory =
        || std::future::ready((Arc::new(Memory::default()) as Arc<dyn Store>, Box::new(()) as Box<dyn Any>));
    second_is_refused(&CLAIMS, memory).await;
    second_is_refused(&OTHERS, memory).await;
}

#[tokio::test]
async fn also_on_the_embedded_store() {
    let embedded = || async {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path().join("store")).await.unwrap();
        (Arc::new(store) as Arc<dyn Store>, Box::new(directory) as Box<dyn Any>)
    };
    second_is_refused(&CLAIMS, embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_on_etcd() {
    let etcd = || async {
        let cluster = Cluster::start(1, &Options::default()).unwrap();
        let config = EtcdConfig { members: cluster.urls(), tls: None, user: None };
        let store = Etcd::connect(&config, DEADLINE).await.unwrap();
        (Arc::new(store) as Arc<dyn Store>, Box::new(cluster) as Box<dyn Any>)
    };
    second_is_refused(&CLAIMS, etcd).await;
}
