//! The whole fleet, and running a test in one.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Answer, Binaries, Controller, Fabric, Home, Host, Node, Party, Place, Store, system::ip_batch,
    topology::UPLINK, vm, workload,
};
use crate::{limits::READY, traffic::Namespace, wait};

/// A fleet with real daemons. Everything is ended and removed when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    controller: Controller,
    nodes: Vec<Node>,
    fabric: Fabric,
    /// The first is `world`.
    outside: Vec<Host>,
    parties: BTreeMap<String, Party>,
    // Last: it removes the namespaces.
    home: Home,
}

/// Runs a test in a fleet of its own; when it fails, prints the logs and how to look around.
pub fn scenario(test: &str, nodes: u8, run: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<()> {
    scenario_on(Store::Embedded, test, nodes, run)
}

/// As [`scenario`], with the controller's state in this store.
pub fn scenario_on(
    store: Store,
    test: &str,
    nodes: u8,
    run: impl FnOnce(&mut Fleet) -> Result<()>,
) -> Result<()> {
    let mut fleet = Fleet::start(test, nodes, &Binaries::find()?, store)?;
    let result = run(&mut fleet);
    if result.is_err() {
        eprintln!("{}", fleet.picture());
    }
    result
}

impl Fleet {
    /// A controller with its store, a host of the world, and nodes `n1`, `n2`, …, all connected.
    pub fn start(test: &str, nodes: u8, binaries: &Binaries, store: Store) -> Result<Self> {
        let home = Home::create(test)?;
        let fabric = Fabric::create(&home)?;
        let controller = fabric.plug(&home, "ctl", Place::CONTROLLER)?;
        let controller = Controller::start(&home, controller, binaries, store)?;
        let (nodes_yet, parties) = (Vec::new(), BTreeMap::new());
        let mut fleet = Self { controller, nodes: nodes_yet, fabric, outside: Vec::new(), parties, home };
        let brought_up = fleet.bring_up(nodes, binaries);
        brought_up.with_context(|| fleet.picture())?;
        Ok(fleet)
    }

    fn bring_up(&mut self, nodes: u8, binaries: &Binaries) -> Result<()> {
        self.wait_for_controller()?;
        for number in 1..=nodes {
            let place = Place::node(number);
            let host = self.fabric.plug(&self.home, &format!("n{number}"), place)?;
            self.nodes.push(Node::start(&self.home, host, place, binaries)?);
        }
        self.wait_for_nodes()?;
        self.plug_outside("world").map(drop)
    }

    /// Another host that is no node; the first one is `world`.
    pub fn plug_outside(&mut self, name: &str) -> Result<Party> {
        let number = u8::try_from(self.outside.len()).context("so many hosts have no place")?;
        let place = Place::outside(number);
        let host = self.fabric.plug(&self.home, name, place)?;
        for node in &self.nodes {
            self.route_to(node, &host)?;
        }
        let addresses = vec![place.v4().into(), place.v6().into()];
        let party = Party { name: name.to_owned(), namespace: host.namespace()?, addresses };
        self.outside.push(host);
        self.parties.insert(name.to_owned(), party.clone());
        Ok(party)
    }

    /// Until the controller answers operators.
    pub fn wait_for_controller(&self) -> Result<()> {
        wait::until_true("the controller answers", READY, || {
            Ok(self.controller.weft(&["fleet", "status"])?.code == Some(0))
        })
    }

    /// Until every node's daemon is connected and has endpoint CIDRs.
    pub fn wait_for_nodes(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            wait::until_true(&format!("node {} is connected", node.name()), READY, || {
                if let Some(status) = node.process_mut()?.ended()? {
                    anyhow::bail!("the daemon of {} has ended: {status}", node.name());
                }
                Ok(node.status().is_ok_and(|status| status.connected))
            })?;
        }
        Ok(())
    }

    /// The world knows which node to send an endpoint's packets to, as a router of the site would.
    fn route_to(&self, node: &Node, from: &Host) -> Result<()> {
        let name = node.name();
        let object: Value =
            self.controller.weft(&["get", "node", name, "--output", "json"])?.success()?.json()?;
        let cidrs =
            object["endpointCidrs"].as_array().with_context(|| format!("{name} has no endpointCidrs"))?;
        for cidr in cidrs.iter().filter_map(Value::as_str) {
            let (flag, via) = if cidr.contains(':') {
                ("-6", node.place().v6().to_string())
            } else {
                ("-4", node.place().v4().to_string())
            };
            from.run("ip", &[flag, "route", "add", cidr, "via", &via, "dev", UPLINK])?;
        }
        Ok(())
    }

    /// Attaches a workload to a node (from 1) and returns when it is ready.
    pub fn attach(&mut self, node: usize, name: &str, labels: &[(&str, &str)]) -> Result<Party> {
        let namespace = workload::namespace(&self.home, name)?;
        let party = workload::attach(self.node(node), name, namespace, labels)?;
        self.parties.insert(name.to_owned(), party.clone());
        Ok(party)
    }

    /// The same with a workload in a machine behind a tap.
    pub fn attach_vm(&mut self, node: usize, name: &str, labels: &[(&str, &str)]) -> Result<Party> {
        let party = vm::attach(&self.home, self.node(node), name, labels)?;
        self.parties.insert(name.to_owned(), party.clone());
        Ok(party)
    }

    /// A namespace for a workload that the test attaches itself.
    pub fn bare_namespace(&self, name: &str) -> Result<Namespace> {
        workload::namespace(&self.home, name)
    }

    /// An `ip` command in a namespace of this fleet.
    pub fn ip(&self, namespace: &Namespace, command: &str) -> Result<()> {
        ip_batch(namespace.name(), &[command.to_owned()])
    }

    /// An attached workload, or `world`.
    pub fn party(&self, name: &str) -> Result<&Party> {
        self.parties.get(name).with_context(|| format!("{name} is not attached"))
    }

    /// Counted from 1, as in its name.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    pub fn controller_mut(&mut self) -> &mut Controller {
        &mut self.controller
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Runs `weft` as an operator.
    pub fn weft(&self, arguments: &[&str]) -> Result<Answer> {
        self.controller.weft(arguments)
    }

    /// Applies a manifest and returns when every node has realised it; the answer as JSON.
    pub fn apply(&self, manifest: &str) -> Result<Value> {
        let file = self.home.path().join("apply.yaml");
        fs::write(&file, manifest)?;
        self.apply_file(&file)
    }

    /// The same with a file or a folder of them.
    pub fn apply_file(&self, path: &Path) -> Result<Value> {
        let path = path.to_string_lossy();
        self.weft(&["apply", "-f", &path, "--wait", "--output", "json"])?.success()?.json()
    }

    /// What a person needs to see after a failure: the ends of all logs, and how to look around (where the fleet is
    /// still up).
    pub fn picture(&self) -> String {
        let mut text = String::new();
        let processes = self.nodes.iter().map(|node| (node.name(), node.host(), node.process()));
        let controller = ("controller", self.controller.host(), self.controller.process());
        for (name, host, process) in std::iter::once(controller).chain(processes) {
            let log = process.map_or_else(|error| error.to_string(), super::Process::log_tail);
            text.extend([&format!("---- {name} (enter: {}) ----\n", host.enter()), log.as_str(), "\n"]);
        }
        text
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.picture());
        }
    }
}
