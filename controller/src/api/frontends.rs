//! What several objects must not have at once: a frontend, an address, a prefix. Checked against the fleet as of a revision;
//! the transaction holds only if nobody has spoken for addresses since, whichever controller they asked.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use tonic::Status;
use weft_proto::v1::object::Kind as Of;
use weft_shared::{
    policy::{
        model::FleetConfig,
        parse::{self, FieldError},
    },
    service::{
        self,
        model::{Place, Prefilter, Service},
    },
};

use super::{Operator, apply::Wanted, errors};
use crate::{
    fleet::Fleet, fleet_config, keys, limits, nodes, overlaps::Prefixes, plan::Plan, store::Compare,
};

/// What of a request speaks for addresses, with its path in the request.
#[derive(Debug, Default)]
struct Speaking<'a> {
    services: Vec<(&'a str, Service)>,
    prefilters: Vec<(&'a str, Prefilter)>,
    config: Option<(&'a str, FleetConfig)>,
}

impl Operator {
    /// Frontends that another service, a node or a pool has; node ports out of range; prefilters over what is protected; and
    /// a configuration that would make any of this so.
    pub(super) async fn check_addresses(
        &self,
        wanted: &[Wanted],
        plan: &mut Plan,
    ) -> Result<Vec<FieldError>, Status> {
        let speaking = Speaking::of(wanted).map_err(|wrong| errors::bad_request(&wrong))?;
        if speaking.is_silent() {
            return Ok(Vec::new());
        }
        let config = match &speaking.config {
            Some((_, config)) => config.clone(),
            None => fleet_config::read(self.store.as_ref(), plan).await.map_err(errors::store)?,
        };
        self.caught_up().await?;
        let (seen_at, wrong) = self.hub.ask(|fleet| (fleet.revision(), speaking.check(fleet, &config)));
        for mark in [keys::ADDRESSES_SPOKEN_FOR, keys::NODE_ADDRESS_GIVEN, keys::SNAT_PORTS_GIVEN] {
            plan.compare(Compare::not_changed_after(mark, seen_at));
        }
        Ok(wrong)
    }
}

/// Whether a change of the object must be seen by whoever speaks for an address at this moment.
pub(super) fn speaks_for_addresses(wanted: &Wanted) -> bool {
    matches!(wanted.object.kind, Some(Of::Service(_) | Of::Prefilter(_)))
}

impl<'a> Speaking<'a> {
    fn of(wanted: &'a [Wanted]) -> Result<Self, Vec<FieldError>> {
        let mut speaking = Self::default();
        for Wanted { object, path, .. } in wanted {
            match &object.kind {
                Some(Of::Service(message)) => {
                    speaking.services.push((path, service::parse::service(message)?));
                }
                Some(Of::Prefilter(message)) => {
                    speaking.prefilters.push((path, service::parse::prefilter(message)?.0));
                }
                Some(Of::FleetConfig(message)) => {
                    speaking.config = Some((path, parse::fleet_config(message)?));
                }
                _ => {}
            }
        }
        Ok(speaking)
    }

    fn is_silent(&self) -> bool {
        self.services.is_empty() && self.prefilters.is_empty() && self.config.is_none()
    }

    fn check(&self, fleet: &Fleet, config: &FleetConfig) -> Vec<FieldError> {
        let mut wrong = Vec::new();
        let nodes: HashMap<IpAddr, &str> = if self.services.is_empty() && self.prefilters.is_empty() {
            HashMap::new()
        } else {
            fleet.node_addresses().collect()
        };
        self.check_claims(fleet, &mut wrong);
        for (path, service) in &self.services {
            check_service(path, service, config, &nodes, &mut wrong);
        }
        if !self.prefilters.is_empty() {
            let kept = protected(config, &nodes);
            self.prefilters.iter().for_each(|(path, one)| check_prefilter(path, one, &kept, &mut wrong));
        }
        if let Some((path, _)) = &self.config {
            self.check_config(path, fleet, config, &mut wrong);
        }
        wrong
    }

    /// No two services have one frontend, nor are there too many services.
    fn check_claims(&self, fleet: &Fleet, wrong: &mut Vec<FieldError>) {
        let names: BTreeSet<&str> = self.services.iter().map(|(_, service)| service.name.as_str()).collect();
        let mut claims: BTreeMap<Place, &str> = BTreeMap::new();
        let mut count = fleet.services().count();
        for (path, service) in &self.services {
            let name = service.name.as_str();
            if fleet.service(name).is_none() {
                count += 1;
                if count > limits::SERVICES_MAX {
                    let text = format!("a fleet has at most {} services", limits::SERVICES_MAX);
                    wrong.push(FieldError::new(format!("{path}.name"), text));
                }
            }
            for (index, frontend) in service.frontends.iter().enumerate() {
                let stored = fleet.service_at(&frontend.at).filter(|owner| !names.contains(owner));
                let owner = claims.get(&frontend.at).copied().or(stored);
                if let Some(owner) = owner {
                    let text =
                        format!("services \"{owner}\" and \"{name}\" both claim {}: one has it", frontend.at);
                    wrong.push(FieldError::new(format!("{path}.frontends[{index}]"), text));
                }
                claims.entry(frontend.at).or_insert(name);
            }
        }
    }

    /// What stays must be right with the new configuration, too.
    fn check_config(&self, path: &str, fleet: &Fleet, config: &FleetConfig, wrong: &mut Vec<FieldError>) {
        let services: BTreeSet<&str> = self.services.iter().map(|(_, one)| one.name.as_str()).collect();
        for service in fleet.services().filter(|service| !services.contains(service.name.as_str())) {
            for frontend in &service.frontends {
                let (at, name) = (frontend.at, &service.name);
                match at.address {
                    Some(address) => {
                        let pools = config.pools.iter().enumerate();
                        let covering = pools.filter(|(_, pool)| pool.cidr.contains(&address));
                        wrong.extend(covering.map(|(index, pool)| {
                            let text = format!("{} covers {at}, a frontend of service \"{name}\"", pool.cidr);
                            FieldError::new(format!("{path}.pools[{index}].cidr"), text)
                        }));
                    }
                    None if !config.node_ports.contains(&at.port.get()) => {
                        let text = format!("leaves out {at} of service \"{name}\"");
                        wrong.push(FieldError::new(format!("{path}.nodePorts"), text));
                    }
                    None => {}
                }
            }
        }
        let meeting = fleet.nodes().find_map(|(node, facts)| {
            let ports = facts.snat_ports.as_ref().filter(|ports| nodes::meet(ports, &config.node_ports))?;
            Some((node, ports))
        });
        if let Some((node, ports)) = meeting {
            let (range, first, last) = (&config.node_ports, ports.start(), ports.end());
            let text = format!(
                "{} to {} meet the SNAT ports {first} to {last} of node {node}: start its daemon with others \
                 (--snat-ports)",
                range.start(),
                range.end()
            );
            wrong.push(FieldError::new(format!("{path}.nodePorts"), text));
        }
        let given: BTreeSet<&str> = self.prefilters.iter().map(|(_, one)| one.name.as_str()).collect();
        let mut dropped = Prefixes::default();
        for prefilter in fleet.prefilters().filter(|one| !given.contains(one.name.as_str())) {
            let senders = prefilter.arp_senders.iter().map(|sender| IpAddr::V4(*sender).into());
            for net in prefilter.cidrs.iter().copied().chain(senders) {
                dropped.insert(net, || prefilter.name.clone());
            }
        }
        let protected = config.protected_prefixes.iter().enumerate();
        let protected = protected.map(|(index, net)| (format!("protectedPrefixes[{index}]"), *net));
        let failsafe = config.failsafe.iter().enumerate().flat_map(|(entry, failsafe)| {
            let nets = failsafe.prefixes.iter().enumerate();
            nets.map(move |(index, net)| (format!("failsafe[{entry}].cidrs[{index}]"), *net))
        });
        for (field, net) in protected.chain(failsafe) {
            if let Some((other, name)) = dropped.overlapping(net) {
                let text = format!("prefilter \"{name}\" drops {other}, of which {net} would be protected");
                wrong.push(FieldError::new(format!("{path}.{field}"), text));
            }
        }
    }
}

fn check_service(
    path: &str,
    service: &Service,
    config: &FleetConfig,
    nodes: &HashMap<IpAddr, &str>,
    wrong: &mut Vec<FieldError>,
) {
    for (index, frontend) in service.frontends.iter().enumerate() {
        let field = |name: &str| format!("{path}.frontends[{index}].{name}");
        let Some(address) = frontend.at.address else {
            let (port, range) = (frontend.at.port.get(), &config.node_ports);
            if !range.contains(&port) {
                let text = format!(
                    "{port} is no node port of this fleet: expected {} to {} (nodePorts)",
                    range.start(),
                    range.end()
                );
                wrong.push(FieldError::new(field("port"), text));
            }
            continue;
        };
        if let Some(pool) = config.pools.iter().find(|pool| pool.cidr.contains(&address)) {
            let text = format!("{address} is inside the pool {}, which is for endpoints", pool.cidr);
            wrong.push(FieldError::new(field("address"), text));
        }
        if let Some(node) = nodes.get(&address) {
            let text = format!("{address} is an address of node {node}: a port there is of type node-port");
            wrong.push(FieldError::new(field("address"), text));
        }
    }
}

/// What no prefilter may drop.
fn protected(config: &FleetConfig, nodes: &HashMap<IpAddr, &str>) -> Prefixes {
    let mut kept = Prefixes::default();
    for net in &config.protected_prefixes {
        kept.insert(*net, || "protected (protectedPrefixes)".to_owned());
    }
    for net in config.failsafe.iter().flat_map(|failsafe| &failsafe.prefixes) {
        kept.insert(*net, || "in a failsafe entry".to_owned());
    }
    for (address, node) in nodes {
        kept.insert((*address).into(), || format!("an address of node {node}"));
    }
    kept
}

fn check_prefilter(path: &str, prefilter: &Prefilter, kept: &Prefixes, wrong: &mut Vec<FieldError>) {
    let cidrs = prefilter.cidrs.iter().enumerate();
    let cidrs = cidrs.map(|(index, net)| (format!("cidrs[{index}]"), *net, net.to_string()));
    let senders = prefilter.arp_senders.iter().enumerate().map(|(index, sender)| {
        (format!("arpSenders[{index}]"), IpAddr::V4(*sender).into(), sender.to_string())
    });
    for (field, net, text) in cidrs.chain(senders) {
        if let Some((other, what)) = kept.overlapping(net) {
            let meets = if other == net { String::new() } else { format!(" meets {other}, which") };
            wrong.push(FieldError::new(format!("{path}.{field}"), format!("{text}{meets} is {what}")));
        }
    }
}
