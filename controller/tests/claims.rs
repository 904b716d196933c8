//! Two who want what only one can have, one of them caught between its look at the fleet and its transaction: whoever writes
//! second looks again, and is refused with the name of the first.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use support::{Fleet, config, fleet_beside, hello, selector, within};
use tokio::sync::oneshot;
use weft_controller::store::{KeyValue, Memory, Outcome, Page, Range, Store, StoreError, Transaction, Watch};
use weft_proto::v1::{self, object::Kind as Of};

/// A store whose next transaction that writes a certain key waits.
struct Slow {
    store: Arc<dyn Store>,
    catching: Mutex<Option<Catch>>,
}

struct Catch {
    key: &'static str,
    caught: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

#[async_trait]
impl Store for Slow {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        self.store.get(key).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.store.range(range).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let writes =
            |catch: &mut Catch| transaction.then.iter().any(|operation| operation.key().contains(catch.key));
        let catch = self.catching.lock().unwrap().take_if(|catch| writes(catch));
        if let Some(catch) = catch {
            catch.caught.send(()).unwrap();
            catch.released.await.unwrap();
        }
        self.store.transact(transaction).await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.store.compact(revision).await
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
async fn race(caught: Deed, other: Deed) -> String {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let slow = Arc::new(Slow { store: Arc::clone(&store), catching: Mutex::default() });
    let mut first = fleet_beside("first", Arc::clone(&slow) as Arc<dyn Store>).await;
    let mut second = fleet_beside("second", store).await;
    let ((told, is_caught), (release, released)) = (oneshot::channel(), oneshot::channel());
    *slow.catching.lock().unwrap() = Some(Catch { key: caught.key(), caught: told, released });
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

#[tokio::test]
async fn whoever_is_second_is_refused() {
    let service = Deed::Service("a");
    let cases = [
        (Deed::Service("b"), service, "services \"a\" and \"b\" both claim 192.0.2.77:80/TCP"),
        (Deed::Node, service, "192.0.2.77:80/TCP is a frontend of service a"),
        (service, Deed::Node, "192.0.2.77 is an address of node node-1"),
        (Deed::Node, Deed::Prefilter, "prefilter scanners drops 192.0.2.77"),
        (Deed::Prefilter, Deed::Node, "192.0.2.77/32, which is an address of node node-1"),
        (Deed::Pool, service, "192.0.2.0/24 covers 192.0.2.77:80/TCP, a frontend of service \"a\""),
        (service, Deed::Pool, "192.0.2.77 is inside the pool 192.0.2.0/24"),
        (Deed::Ports, service, "leaves out node port 30080/TCP of service \"a\""),
        (service, Deed::Ports, "30080 is no node port of this fleet"),
        (Deed::Protect, Deed::Prefilter, "prefilter \"scanners\" drops 192.0.2.64/26"),
        (Deed::Prefilter, Deed::Protect, "meets 192.0.2.77/32, which is protected"),
    ];
    for (caught, other, expected) in cases {
        let refused = Box::pin(race(caught, other)).await;
        assert!(refused.contains(expected), "{caught:?} after {other:?}: {refused}");
    }
}
