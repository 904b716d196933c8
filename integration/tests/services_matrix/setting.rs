//! The fleet in which all rows are tried: a balancing node, another one, and two hosts outside, of which one is a client and one
//! a backend.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use weft_integration::{
    fleet::{Fleet, Party, Place, TunnelEnd, UPLINK, backends, frontends},
    limits::READY,
    traffic::{NamedServer, Transport, exchange},
    wait,
};

use crate::table::{
    As, Backend, Client, Expected, Kind, Mode,
    Mode::{XdpDsr, XdpSnat},
    Row, rows,
};

/// Of backends.
const PORT: u16 = 1000;
/// Of frontends with `snat`, which translate it.
const OPEN: u16 = 80;
/// Another one, to which the host policy lets no client.
const CLOSED: u16 = 81;
/// A packet that gets lost in the beginning is sent again.
const AGAIN: Duration = Duration::from_millis(500);

pub(crate) struct Setting {
    clients: BTreeMap<&'static str, Party>,
    servers: Vec<(Backend, NamedServer)>,
    _tunnel: TunnelEnd,
}

impl Client {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Foreign => "foreign",
            Self::Machine => "machine",
            Self::Process => "n1",
            Self::World => "world",
        }
    }
}

impl Setting {
    pub(crate) fn build(fleet: &mut Fleet) -> Result<Self> {
        fleet.let_nodes_send_back()?;
        let far = fleet.plug_outside("far")?;
        let world = fleet.party("world")?.clone();
        [&far, &world].iter().try_for_each(|party| party.send_whole_checksums())?;
        let clients = clients(fleet, &world)?;
        let (servers, tunnel) = servers(fleet, &far)?;
        fleet.apply(&policies(&world)?)?;
        fleet.apply(&services(&far)?)?;
        let node = fleet.node(1).place();
        // Room for the headers of DSR.
        for (prefix, via) in [("10.97.0.0/16", IpAddr::from(node.v4())), ("fd97::/16", node.v6().into())] {
            let route = format!("route add {prefix} via {via} dev {UPLINK} mtu 1400");
            fleet.ip(&world.namespace, &route)?;
        }
        let setting = Self { clients, servers, _tunnel: tunnel };
        setting.settle(fleet)?;
        Ok(setting)
    }

    /// Until both nodes have every backend, and the first knows the next hops to those elsewhere.
    fn settle(&self, fleet: &Fleet) -> Result<()> {
        for (node, service) in (1..=2).flat_map(|node| all_services().map(move |service| (node, service))) {
            let name = service_name(service);
            wait::until_true(&format!("n{node} has the backend of {name}"), READY, || {
                let held = fleet.node(node).weft(&["node", "service", &name, "--output", "json"])?;
                let held = held.success()?.json()?;
                let tables = held["tables"].as_array().context("tables")?;
                let takes = |table: &serde_json::Value| table["backends"][0]["slots"].as_u64() > Some(0);
                Ok(tables.len() == 2 && tables.iter().all(takes))
            })?;
        }
        fleet.wait_for_xdp(1)?;
        for row in rows() {
            if matches!(row.mode, XdpSnat | XdpDsr) && matches!(row.expected, Expected::Seen(_)) {
                for service in [4, 6].map(|family| service(&row, family)) {
                    let from = &self.client(row.client)?.namespace;
                    wait::until_true(&format!("{service} is reached"), READY, || {
                        Ok(from.within(move || exchange(Transport::Udp, service, AGAIN)).is_ok())
                    })?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn client(&self, client: Client) -> Result<&Party> {
        self.clients.get(client.name()).context("no such client")
    }

    /// As whom the backend is to see the client.
    pub(crate) fn source(&self, row: &Row, seen: As, family: u8) -> Result<IpAddr> {
        match seen {
            As::Itself => self.client(row.client)?.address(family),
            As::ItsNode => self.client(Client::Process)?.address(family),
        }
    }

    /// Whoever was denied was not heard, either; and what was expected was really there.
    pub(crate) fn heard(&self) -> Result<()> {
        let mut expected: BTreeMap<Backend, BTreeSet<IpAddr>> = BTreeMap::new();
        for row in rows() {
            if let Expected::Seen(seen) = row.expected {
                for family in [4, 6] {
                    expected.entry(row.backend).or_default().insert(self.source(&row, seen, family)?);
                }
            }
        }
        for backend in Backend::ALL {
            let own = self.servers.iter().filter(|(of, _)| *of == backend);
            let heard: BTreeSet<IpAddr> = own.flat_map(|(_, server)| server.clients()).collect();
            let expected = expected.remove(&backend).unwrap_or_default();
            ensure!(heard == expected, "{} has heard {heard:?}, and not {expected:?}", backend.name());
        }
        Ok(())
    }
}

fn clients(fleet: &mut Fleet, world: &Party) -> Result<BTreeMap<&'static str, Party>> {
    let labels = [("app", "client")];
    let endpoint = fleet.attach(1, "endpoint", &labels)?;
    let foreign = fleet.attach(1, "foreign", &labels)?;
    let machine = fleet.attach_vm(1, "machine", &labels)?;
    let (namespace, place) = (fleet.node(1).host().namespace()?, Place::node(1));
    let addresses = vec![place.v4().into(), place.v6().into()];
    let process = Party { name: "n1".to_owned(), namespace, addresses };
    let all = [Client::Endpoint, Client::Foreign, Client::Machine, Client::Process, Client::World];
    Ok(all.map(Client::name).into_iter().zip([endpoint, foreign, machine, process, world.clone()]).collect())
}

fn servers(fleet: &mut Fleet, far: &Party) -> Result<(Vec<(Backend, NamedServer)>, TunnelEnd)> {
    let mut servers = Vec::new();
    for backend in Backend::ALL {
        let name = backend.name();
        let Some(node) = backend.node() else { continue };
        let party = fleet.attach(node, name, &[("backend", name), ("door", backend.door())])?;
        servers.push((backend, NamedServer::start(&party.namespace, PORT, name)?));
    }
    let own = [4, 6].map(|family| address(Kind::Dsr, Backend::Outside, family));
    let tunnel = TunnelEnd::start(&far.namespace, &own)?;
    for address in far.addresses.iter().chain(&own) {
        let name = Backend::Outside.name();
        let server = NamedServer::start_at(&far.namespace, SocketAddr::new(*address, PORT), name)?;
        servers.push((Backend::Outside, server));
    }
    Ok((servers, tunnel))
}

/// Each backend has a service with `snat`, those that XDP sends packets to have one with `dsr`, and where policies judge nothing there is
/// one with source ranges.
fn all_services() -> impl Iterator<Item = (Kind, Backend)> {
    let has = |(kind, backend): &(Kind, Backend)| match kind {
        Kind::Snat => true,
        Kind::Dsr => backend.node() != Some(1),
        Kind::Ranged => backend.door() == "open",
    };
    let of = |kind| Backend::ALL.map(|backend| (kind, backend));
    [Kind::Snat, Kind::Dsr, Kind::Ranged].into_iter().flat_map(of).filter(has)
}

fn service_name((kind, backend): (Kind, Backend)) -> String {
    format!("{}-{}", backend.name(), format!("{kind:?}").to_lowercase())
}

fn address(kind: Kind, backend: Backend, family: u8) -> IpAddr {
    let (kind, number) = (kind as u8, backend as u8 + 1);
    match family {
        4 => [10, 97, kind, number].into(),
        _ => [0xfd97, kind.into(), 0, 0, 0, 0, 0, number.into()].into(),
    }
}

/// What the client of a row calls.
pub(crate) fn service(row: &Row, family: u8) -> SocketAddr {
    let port = match row.mode {
        XdpDsr => PORT,
        Mode::HostDenies => CLOSED,
        _ => OPEN,
    };
    SocketAddr::new(address(row.kind(), row.backend, family), port)
}

fn services(far: &Party) -> Result<String> {
    let transports: Vec<_> = Transport::available().collect();
    let mut manifests = Vec::new();
    for (kind, backend) in all_services() {
        let addresses = [4, 6].map(|family| address(kind, backend, family).to_string());
        let addresses = addresses.each_ref().map(String::as_str);
        let (ports, more): (&[u16], _) = match kind {
            Kind::Snat => (&[OPEN, CLOSED], "forwardingMode: snat"),
            Kind::Dsr => (&[PORT], "forwardingMode: dsr"),
            Kind::Ranged => (&[OPEN], "sourceRanges: {action: allow, cidrs: [0.0.0.0/0, '::/0']}"),
        };
        let frontends = frontends(&addresses, ports, "external", &transports);
        let name = service_name((kind, backend));
        let who = match backend {
            Backend::Outside => {
                let outside = [far.address(4)?, far.address(6)?].map(|address| (address, "active"));
                backends(outside, PORT)
            }
            _ => format!("selector: {{matchLabels: {{backend: {}}}}}\ntargetPort: {PORT}", backend.name()),
        };
        manifests.push(format!("kind: Service\nname: {name}\n{frontends}\n{who}\n{more}\n"));
    }
    Ok(manifests.join("---\n"))
}

/// The client outside, as a list of peers has it.
fn outsider(world: &Party) -> Result<String> {
    let [v4, v6] = [world.address(4)?, world.address(6)?];
    Ok(format!("{{cidr: {v4}/32}}, {{cidr: '{v6}/128'}}"))
}

fn policies(world: &Party) -> Result<String> {
    let world = outsider(world)?;
    Ok(format!(
        "
kind: Policy
name: no-clients
subject: {{endpoints: {{matchLabels: {{door: no-clients}}}}}}
ingress:
  - {{name: clients, action: deny, peers: [{{endpoints: {{matchLabels: {{app: client}}}}}}, {world}]}}
  - {{name: others, action: allow}}
---
kind: Policy
name: no-nodes
subject: {{endpoints: {{matchLabels: {{door: no-nodes}}}}}}
ingress:
  - {{name: nodes, action: deny, peers: [{{entity: remote-node}}]}}
  - {{name: others, action: allow}}
"
    ))
}

/// Lets no client outside have one port of the services.
pub(crate) fn host_policy(world: &Party) -> Result<String> {
    let world = outsider(world)?;
    let ports: Vec<_> =
        Transport::ALL.map(|transport| format!("{{protocol: {}, port: {CLOSED}}}", transport.name())).into();
    Ok(format!(
        "
kind: Policy
name: host
subject: {{nodes: {{matchLabels: {{}}}}}}
ingress:
  - {{name: closed, action: deny, peers: [{world}], ports: [{}]}}
  - {{name: others, action: allow}}
",
        ports.join(", ")
    ))
}
