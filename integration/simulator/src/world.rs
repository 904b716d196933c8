//! A fleet: its store, controllers and machines, and everything that can happen to them.
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_controller::{Services, api::Operator, signal, store::Store as _};

use crate::{
    acknowledged::{self, Kernels},
    chance::Chance,
    history::History,
    inspect::Inspector,
    network::{Network, Server, Uplink},
    node::Node,
    store::{Shared, View},
};

pub(crate) struct World {
    pub(crate) chance: Chance,
    pub(crate) history: History,
    pub(crate) shared: Arc<Shared>,
    pub(crate) network: Network,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) nodes: Vec<Node>,
    kernels: Kernels,
    due: Vec<(Instant, Due)>,
    machines: u8,
}

/// Something that ends by itself.
#[derive(Clone, Debug)]
pub(crate) enum Due {
    Controller(usize),
    Daemon(String),
    Link { node: String, controller: String },
    StoreOf(usize),
    WatchOf(usize),
    Quick(String),
}

pub(crate) struct Controller {
    pub(crate) name: String,
    life: Option<Life>,
    up: signal::Sender<bool>,
    stalled: signal::Sender<bool>,
}

/// One run of a controller's process.
struct Life {
    dead: CancellationToken,
    stop: Arc<Mutex<Started>>,
}

#[derive(Default)]
struct Started {
    services: Option<CancellationToken>,
    operator: Option<Operator>,
}

impl Controller {
    /// `None` while it is not serving.
    pub(crate) fn operator(&self) -> Option<Operator> {
        let started = self.life.as_ref()?.stop.lock().unwrap_or_else(PoisonError::into_inner);
        started.operator.clone()
    }

    pub(crate) fn runs(&self) -> bool {
        self.life.is_some()
    }
}

impl World {
    pub(crate) async fn begin(chance: Chance, controllers: usize, nodes: usize) -> io::Result<Self> {
        let history = History::begin();
        let shared = Arc::new(Shared::new(history.clone()));
        let kernels = Kernels::default();
        let observer = acknowledged::observer(
            Arc::clone(&shared),
            Arc::clone(&kernels),
            chance.clone(),
            history.clone(),
        );
        let network = Network::new(chance.clone(), history.clone(), observer);
        let controllers = (1..=controllers).map(|number| Controller {
            name: format!("controller-{number}"),
            life: None,
            up: signal::Sender::new(true),
            stalled: signal::Sender::new(false),
        });
        let mut world = Self {
            controllers: controllers.collect(),
            nodes: Vec::new(),
            chance,
            history,
            shared,
            network,
            kernels,
            due: Vec::new(),
            machines: 0,
        };
        for index in 0..world.controllers.len() {
            world.start_controller(index);
        }
        for _ in 0..nodes {
            world.add_node().await?;
        }
        Ok(world)
    }

    // ---- Controllers ----

    pub(crate) fn start_controller(&mut self, index: usize) {
        let controller = &mut self.controllers[index];
        if controller.life.is_some() {
            return;
        }
        let (dead, started) = (CancellationToken::new(), Arc::<Mutex<Started>>::default());
        let view = View {
            shared: Arc::clone(&self.shared),
            chance: self.chance.clone(),
            up: controller.up.subscribe(),
            stalled: controller.stalled.subscribe(),
            dead: dead.clone(),
        };
        self.history.note(&controller.name, "starts");
        let serving = serve(
            controller.name.clone(),
            Arc::new(view),
            self.network.clone(),
            Arc::clone(&started),
            self.history.clone(),
        );
        let died = dead.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = died.cancelled() => {}
                () = serving => {}
            }
        });
        controller.life = Some(Life { dead, stop: started });
    }

    pub(crate) fn kill_controller(&mut self, index: usize) {
        let controller = &mut self.controllers[index];
        let Some(life) = controller.life.take() else { return };
        self.history.note(&controller.name, "is killed");
        life.dead.cancel();
        let started = life.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(services) = &started.services {
            services.cancel();
        }
        self.network.controller_died(&controller.name);
    }

    pub(crate) fn part_from_store(&mut self, index: usize, parted: bool) {
        let controller = &self.controllers[index];
        self.history.note(&controller.name, if parted { "loses the store" } else { "reaches the store" });
        controller.up.send_replace(!parted);
    }

    /// Its watch says nothing any more; all else reaches the store.
    pub(crate) fn stall_watch(&mut self, index: usize) {
        let controller = &self.controllers[index];
        self.history.note(&controller.name, "hears nothing of the store any more");
        controller.stalled.send_replace(true);
    }

    /// The watch goes on. Meanwhile history was cut, as it is periodically, so that the controller is behind all of it.
    async fn resume_watch(&mut self, index: usize) {
        self.compact().await;
        let controller = &self.controllers[index];
        self.history.note(&controller.name, "hears of the store again");
        controller.stalled.send_replace(false);
    }

    /// What was before now is known to nobody any more.
    pub(crate) async fn compact(&self) {
        let revision = self.shared.ledger().revision;
        if self.shared.memory.compact(revision).await.is_ok() {
            self.history.note("store", format!("is compacted at revision {revision}"));
        }
    }

    // ---- Nodes ----

    pub(crate) async fn add_node(&mut self) -> io::Result<()> {
        self.machines += 1;
        let controllers = self.controllers.iter().map(|controller| controller.name.clone()).collect();
        let node = Node::new(self.machines, controllers)?;
        self.nodes.push(node);
        self.start_daemon(self.nodes.len() - 1).await;
        Ok(())
    }

    pub(crate) async fn start_daemon(&mut self, index: usize) {
        let Some(node) = self.nodes.get_mut(index).filter(|node| node.daemon.is_none()) else { return };
        let kernel = (node.twin.clone(), node.address);
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).insert(node.name.clone(), kernel);
        let inspector = Inspector {
            node: node.name.clone(),
            directory: node.directory().to_owned(),
            shared: Arc::clone(&self.shared),
            chance: self.chance.clone(),
            history: self.history.clone(),
        };
        let uplink = Uplink { network: self.network.clone(), node: node.name.clone() };
        self.history.note(&node.name, "its daemon starts");
        if let Err(error) = node.start(uplink, inspector).await {
            self.history.violated(format!("the daemon of {} does not start: {error}", node.name));
        }
    }

    pub(crate) fn kill_daemon(&mut self, index: usize) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        self.history.note(&node.name, "its daemon is killed");
        node.kill();
        self.network.node_died(&node.name);
    }

    // ---- Time ----

    pub(crate) fn after(&mut self, wait: Duration, due: Due) {
        self.due.push((Instant::now() + wait, due));
    }

    /// Does what is due, and notices who has died meanwhile.
    pub(crate) async fn tend(&mut self) {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if node.daemon.as_ref().is_some_and(|daemon| daemon.power.is_off()) {
                let name = node.name.clone();
                self.kill_daemon(index);
                self.after(self.chance.milliseconds(0..3000), Due::Daemon(name));
            }
        }
        let now = Instant::now();
        while let Some(place) = self.due.iter().position(|(at, _)| *at <= now) {
            let (_, due) = self.due.remove(place);
            self.end(due).await;
        }
    }

    async fn end(&mut self, due: Due) {
        match due {
            Due::Controller(index) => self.start_controller(index),
            Due::Daemon(name) => {
                if let Some(index) = self.nodes.iter().position(|node| node.name == name) {
                    self.start_daemon(index).await;
                }
            }
            Due::Link { node, controller } => {
                self.history.note(&node, format!("reaches {controller} again"));
                self.network.set_link(&node, &controller, true);
            }
            Due::StoreOf(index) => self.part_from_store(index, false),
            Due::WatchOf(index) => self.resume_watch(index).await,
            Due::Quick(node) => self.network.set_slow(&node, Duration::ZERO),
        }
    }

    /// All faults end; nobody does anything by hand.
    pub(crate) async fn heal(&mut self) {
        self.history.note("", "---- all faults end ----");
        self.network.heal();
        self.due.clear();
        for index in 0..self.controllers.len() {
            self.controllers[index].up.send_replace(true);
            self.controllers[index].stalled.send_replace(false);
            self.start_controller(index);
        }
        for index in 0..self.nodes.len() {
            if let Some(daemon) = &self.nodes[index].daemon {
                if daemon.power.is_off() {
                    self.kill_daemon(index);
                } else {
                    daemon.power.expect(None);
                }
            }
            self.start_daemon(index).await;
        }
    }

    /// Address → identity, as the store says.
    pub(crate) fn workloads(&self) -> BTreeMap<String, String> {
        let ledger = self.shared.ledger();
        let endpoints = ledger.endpoints.iter();
        endpoints.map(|(name, endpoint)| (name.clone(), endpoint.node.clone())).collect()
    }
}

/// Starts as often as it takes: the store may not be there.
async fn serve(
    name: String,
    view: Arc<View>,
    network: Network,
    started: Arc<Mutex<Started>>,
    history: History,
) {
    loop {
        match Services::start(name.clone(), Arc::clone(&view) as _).await {
            Ok(services) => {
                network.serve(&name, Server::new(services.nodes.clone()));
                history.note(&name, "serves");
                let mut started = started.lock().unwrap_or_else(PoisonError::into_inner);
                started.services = Some(services.stopper());
                started.operator = Some(services.operator);
                return;
            }
            Err(error) => {
                history.note(&name, format!("cannot start: {error}"));
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
