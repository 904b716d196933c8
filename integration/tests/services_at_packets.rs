//! Promise: who is in no cgroup of a node, or outside of the fleet, reaches services as everybody does: its packets are translated one
//! by one. No connection goes to a backend that has gone or is being drained, and none to another one is broken.
//!
//! This process enters no node's cgroup, so that the socket programs see none of its sockets.
#![expect(clippy::expect_used, reason = "addresses of the test's own")]

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};
use weft_integration::{
    fleet::{Fleet, Place, scenario},
    limits::READY,
    traffic::{Answered, NamedServer, Namespace, connect_and_ask, send_and_ask},
    wait,
};

const PORT: u16 = 1000;
/// Clients that are asked of a service with two backends: that all of them get the same one has a chance of 2^-39.
const CLIENTS: usize = 40;
/// More than a packet, and more than the kernel's segmentation leaves in one.
const BYTES: usize = 300_000;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Who answers new connections; much goes there and back.
fn tcp(from: &Namespace, service: SocketAddr, clients: usize) -> Result<BTreeSet<String>> {
    from.within(move || {
        let ask = |_| {
            let (connection, Answered { by, from }) = connect_and_ask(service).context("TCP")?;
            ensure!(from == service, "the client is told {from}");
            echo(connection)?;
            Ok(by)
        };
        (0..clients).map(ask).collect()
    })
}

fn echo(mut connection: TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..BYTES).map(|place| place.to_le_bytes()[0]).collect();
    let mut writing = connection.try_clone()?;
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || writing.write_all(&sent)
    });
    let mut back = vec![0; sent.len()];
    connection.read_exact(&mut back).context("the echo")?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(back == sent, "what comes back is what was sent");
    Ok(())
}

/// Who answers new sockets: those that are connected hear of nobody else.
fn udp(from: &Namespace, service: SocketAddr, clients: usize) -> Result<BTreeSet<String>> {
    from.within(move || {
        let any: IpAddr = if service.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let ask = |_| {
            let socket = UdpSocket::bind((any, 0))?;
            let first = send_and_ask(&socket, service).context("UDP")?;
            ensure!(first.from == service, "the client is told {}", first.from);
            ensure!(send_and_ask(&socket, service)? == first, "a flow keeps its backend");
            Ok(first.by)
        };
        (0..clients).map(ask).collect()
    })
}

/// At once, and not after some time without an answer.
fn refused(from: &Namespace, tcp: SocketAddr, udp: SocketAddr) -> Result<()> {
    from.within(move || {
        let connected = connect_and_ask(tcp).map(|(_, answered)| answered);
        assert_eq!(connected.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{tcp}");
        let any: IpAddr = if udp.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(udp)?;
        socket.set_read_timeout(Some(READY))?;
        socket.send(b"?")?;
        let heard = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(heard, Err(ErrorKind::ConnectionRefused), "{udp}");
        Ok(())
    })
}

const SERVICES: &str = "
kind: Service
name: api
frontends:
  - {address: 10.96.0.10, port: 80, protocol: TCP}
  - {address: 10.96.0.10, port: 80, protocol: UDP}
  - {address: 'fd96::10', port: 80, protocol: TCP}
  - {address: 'fd96::10', port: 80, protocol: UDP}
selector: {matchLabels: {app: api}}
targetPort: 1000
---
kind: Service
name: near
frontends:
  - {address: 10.97.0.10, port: 80, protocol: TCP, type: external}
  - {address: 10.97.0.10, port: 80, protocol: UDP, type: external}
  - {address: 'fd97::10', port: 80, protocol: TCP, type: external}
  - {address: 'fd97::10', port: 80, protocol: UDP, type: external}
  - {port: 30080, protocol: TCP, type: node-port}
  - {port: 30080, protocol: UDP, type: node-port}
selector: {matchLabels: {app: api}}
targetPort: 1000
internalTrafficPolicy: local
externalTrafficPolicy: local
---
kind: Service
name: far
frontends:
  - {address: 10.97.0.11, port: 80, protocol: TCP, type: external}
  - {address: 10.97.0.11, port: 80, protocol: UDP, type: external}
  - {address: 'fd97::11', port: 80, protocol: TCP, type: external}
  - {address: 'fd97::11', port: 80, protocol: UDP, type: external}
selector: {matchLabels: {at: two}}
targetPort: 1000
---
kind: Service
name: nobody
frontends:
  - {address: 10.97.0.12, port: 80, protocol: TCP, type: external}
  - {address: 10.97.0.12, port: 80, protocol: UDP, type: external}
  - {address: 'fd97::12', port: 80, protocol: TCP, type: external}
  - {address: 'fd97::12', port: 80, protocol: UDP, type: external}
selector: {matchLabels: {app: nobody}}
";

#[test]
fn clients_that_no_socket_program_sees_reach_services() -> Result<()> {
    scenario("packets", 2, |fleet| {
        let (one, two) = (
            fleet.attach(1, "one", &[("app", "api")])?,
            fleet.attach(2, "two", &[("app", "api"), ("at", "two")])?,
        );
        let client = fleet.attach(1, "client", &[("app", "client")])?.namespace;
        let world = fleet.party("world")?.clone();
        let _servers = [(&one, "one"), (&two, "two"), (&world, "world")]
            .map(|(party, name)| NamedServer::start(&party.namespace, PORT, name));
        fleet.apply(SERVICES)?;
        fleet.apply(&outside(world.address(4)?, world.address(6)?))?;
        wait::until_true("both backends answer", READY, || {
            Ok(udp(&client, at("10.96.0.10:80"), CLIENTS).is_ok_and(|found| found.len() == 2))
        })?;
        for service in ["10.96.0.10:80", "[fd96::10]:80"] {
            assert_eq!(tcp(&client, at(service), CLIENTS)?, names(&["one", "two"]), "TCP {service}");
            assert_eq!(udp(&client, at(service), CLIENTS)?, names(&["one", "two"]), "UDP {service}");
        }
        // On the node alone, where the backend is a client, too; and outside.
        for from in [&client, &one.namespace] {
            for service in ["10.97.0.10:80", "[fd97::10]:80"].map(at).into_iter().chain(node_port(1)) {
                assert_eq!(tcp(from, service, 3)?, names(&["one"]), "{service}");
                assert_eq!(udp(from, service, 3)?, names(&["one"]), "{service}");
            }
            for service in ["10.96.0.13:80", "[fd96::13]:80"] {
                assert_eq!(tcp(from, at(service), 3)?, names(&["world"]));
                assert_eq!(udp(from, at(service), 3)?, names(&["world"]));
            }
            refused(from, at("10.97.0.12:80"), at("[fd97::12]:80"))?;
            refused(from, at("[fd97::12]:80"), at("10.97.0.12:80"))?;
        }
        from_outside(fleet, &world.namespace)
    })
}

/// A service whose backend is outside of the fleet.
fn outside(v4: IpAddr, v6: IpAddr) -> String {
    format!(
        "
kind: Service
name: outside
frontends:
  - {{address: 10.96.0.13, port: 80, protocol: TCP}}
  - {{address: 10.96.0.13, port: 80, protocol: UDP}}
  - {{address: 'fd96::13', port: 80, protocol: TCP}}
  - {{address: 'fd96::13', port: 80, protocol: UDP}}
backends: [{{address: {v4}, port: {PORT}}}, {{address: '{v6}', port: {PORT}}}]
"
    )
}

fn node_port(node: u8) -> [SocketAddr; 2] {
    let place = Place::node(node);
    [(place.v4(), 30_080).into(), (place.v6(), 30_080).into()]
}

/// Others route the services' addresses to the first node.
fn route(fleet: &Fleet, world: &Namespace) -> Result<()> {
    let node = Place::node(1);
    fleet.ip(world, &format!("route add 10.97.0.0/24 via {}", node.v4()))?;
    fleet.ip(world, &format!("route add fd97::/64 via {}", node.v6()))
}

fn from_outside(fleet: &Fleet, world: &Namespace) -> Result<()> {
    route(fleet, world)?;
    for service in ["10.97.0.10:80", "[fd97::10]:80"].map(at).into_iter().chain(node_port(1)) {
        assert_eq!(tcp(world, service, 3).with_context(|| format!("{service}"))?, names(&["one"]));
        assert_eq!(udp(world, service, 3).with_context(|| format!("{service}"))?, names(&["one"]));
    }
    for service in node_port(2) {
        assert_eq!(tcp(world, service, 3)?, names(&["two"]));
    }
    // Behind another node, through the one that is called.
    for service in ["10.97.0.11:80", "[fd97::11]:80"].map(at) {
        assert_eq!(udp(world, service, 3).with_context(|| format!("{service}"))?, names(&["two"]));
        assert_eq!(tcp(world, service, 3).with_context(|| format!("{service}"))?, names(&["two"]));
    }
    refused(world, at("10.97.0.12:80"), at("[fd97::12]:80"))?;
    refused(world, at("[fd97::12]:80"), at("10.97.0.12:80"))
}

/// What clients under load may be answered by: bits of backends.
const ONE: u8 = 1;
const TWO: u8 = 2;
const THREE: u8 = 4;

fn bit(name: &str) -> u8 {
    match name {
        "one" => ONE,
        "two" => TWO,
        "three" => THREE,
        _ => 0,
    }
}

/// Who connects again and again, and whom it may meet meanwhile.
struct Load {
    allowed: Arc<AtomicU8>,
    asked: Arc<AtomicU64>,
    stop: Arc<AtomicU8>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(from: &Namespace, services: &[SocketAddr], allowed: u8) -> Self {
        let mut load = Self {
            allowed: Arc::new(AtomicU8::new(allowed)),
            asked: Arc::default(),
            stop: Arc::default(),
            clients: Vec::new(),
        };
        for service in services.iter().copied() {
            let (allowed, asked, stop) =
                (Arc::clone(&load.allowed), Arc::clone(&load.asked), Arc::clone(&load.stop));
            load.clients.push(from.spawn(move || {
                while stop.load(Ordering::Relaxed) == 0 {
                    let before = allowed.load(Ordering::SeqCst);
                    let (_, Answered { by, .. }) = connect_and_ask(service).context("under load")?;
                    let may = before | allowed.load(Ordering::SeqCst);
                    ensure!(bit(&by) & may != 0, "{by} answers {service}, and takes no new connections");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        load
    }

    /// The change is in force on the node: from now on only these.
    fn only(&self, allowed: u8) -> Result<()> {
        self.allowed.store(allowed, Ordering::SeqCst);
        let from = self.asked.load(Ordering::Relaxed);
        wait::until_true("connections under load", READY, || {
            Ok(self.asked.load(Ordering::Relaxed) >= from + 100
                || self.clients.iter().any(JoinHandle::is_finished))
        })
    }

    fn end(self) -> Result<()> {
        self.stop.store(1, Ordering::Relaxed);
        self.clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    }
}

#[test]
fn backends_come_and_go_under_load() -> Result<()> {
    scenario("packets-load", 2, |fleet| {
        let parties = [(1, "one"), (2, "two"), (1, "three")]
            .map(|(node, name)| fleet.attach(node, name, &[]).map(|party| (party, name)));
        let parties = parties.into_iter().collect::<Result<Vec<_>>>()?;
        let client = fleet.attach(1, "client", &[])?.namespace;
        let _servers: Vec<_> = parties
            .iter()
            .map(|(party, name)| NamedServer::start(&party.namespace, PORT, name))
            .collect::<Result<_>>()?;
        let services = ["10.96.0.10:80", "[fd96::10]:80"].map(at);
        let manifest = |states: [Option<&str>; 3]| -> Result<String> {
            let mut backends = Vec::new();
            for ((party, _), state) in parties.iter().zip(states) {
                for family in [4, 6] {
                    let address = party.address(family)?;
                    backends.extend(
                        state.map(|state| format!("{{address: '{address}', port: {PORT}, state: {state}}}")),
                    );
                }
            }
            Ok(format!(
                "\nkind: Service\nname: api\nfrontends: [{{address: 10.96.0.10, port: 80, protocol: TCP}}, {{address: 'fd96::10', port: 80, protocol: TCP}}]\nbackends: [{}]\n",
                backends.join(", ")
            ))
        };
        let set = |states| -> Result<()> { fleet.apply(&manifest(states)?).map(drop) };
        let met = |allowed: u8| {
            wait::until_true("the node has the change", READY, || {
                let met = services.map(|service| tcp_once(&client, service, CLIENTS));
                Ok(met.iter().all(|met| met.as_ref().is_ok_and(|met| *met == allowed)))
            })
        };
        let active = Some("active");
        set([active, active, None])?;
        met(ONE | TWO)?;
        let mut kept = Vec::new();
        for service in services {
            let connect =
                move || -> Result<Vec<_>> { (0..CLIENTS).map(|_| Ok(connect_and_ask(service)?)).collect() };
            kept.extend(client.within(connect)?);
        }
        let load = Load::start(&client, &services, ONE | TWO | THREE);
        load.only(ONE | TWO)?;
        // Comes.
        load.allowed.store(ONE | TWO | THREE, Ordering::SeqCst);
        set([active, active, active])?;
        met(ONE | TWO | THREE)?;
        // Is drained: connections stay.
        set([active, Some("terminating"), active])?;
        met(ONE | THREE)?;
        load.only(ONE | THREE)?;
        go_on(&mut kept, |_| true)?;
        // Goes: its connections are reset, and nobody else's.
        set([active, None, active])?;
        met(ONE | THREE)?;
        load.only(ONE | THREE)?;
        go_on(&mut kept, |by| by != "two")?;
        load.end()
    })
}

/// Which backends answer new connections.
fn tcp_once(from: &Namespace, service: SocketAddr, clients: usize) -> Result<u8> {
    from.within(move || (0..clients).try_fold(0, |met, _| Ok(met | bit(&connect_and_ask(service)?.1.by))))
}

/// Connections that are kept go on where they may; the others are reset at once.
fn go_on(kept: &mut [(TcpStream, Answered)], may: impl Fn(&str) -> bool) -> Result<()> {
    for (connection, Answered { by, .. }) in kept {
        let spoken = connection.write_all(b"ping").and_then(|()| connection.read_exact(&mut [0; 4]));
        match spoken {
            Ok(()) => ensure!(may(by), "{by} has gone"),
            Err(error) => ensure!(
                !may(by) && matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "from {by}: {error}"
            ),
        }
    }
    Ok(())
}
