//! Promise: who is in no cgroup of a node, or outside of the fleet, reaches services as everybody does: its packets are translated one
//! by one.
//!
//! This process enters no node's cgroup, so that the socket programs see none of its sockets.
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use weft_integration::{
    fleet::{Fleet, Place, backends, frontends, scenario},
    limits::{DENIED, POLL, READY},
    traffic::{
        CLIENTS, NamedServer, Namespace,
        Transport::{Tcp, Udp},
        answering, at, connect_and_ask, exchange, names, send_and_ask,
    },
    wait,
};

const PORT: u16 = 1000;

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

/// Services with backends on both nodes, on the called one alone, on the other one alone, nowhere, and outside of the fleet.
fn services(world: [IpAddr; 2]) -> String {
    let frontends = |kind: &str, number: u8| {
        let net = if kind == "cluster" { 96 } else { 97 };
        let addresses = [format!("10.{net}.0.{number}"), format!("fd{net}::{number}")];
        frontends(&addresses.each_ref().map(String::as_str), &[80], kind, &[Tcp, Udp])
    };
    let outside = backends(world.map(|address| (address, "active")), PORT);
    format!(
        "
kind: Service
name: api
{}
selector: {{matchLabels: {{app: api}}}}
targetPort: 1000
---
kind: Service
name: near
{}
  - {{port: 30080, protocol: TCP, type: node-port}}
  - {{port: 30080, protocol: UDP, type: node-port}}
selector: {{matchLabels: {{app: api}}}}
targetPort: 1000
internalTrafficPolicy: local
externalTrafficPolicy: local
---
kind: Service
name: far
{}
selector: {{matchLabels: {{at: two}}}}
targetPort: 1000
---
kind: Service
name: nobody
{}
selector: {{matchLabels: {{app: nobody}}}}
---
kind: Service
name: outside
{}
{outside}
",
        frontends("cluster", 10),
        frontends("external", 10),
        frontends("external", 11),
        frontends("external", 12),
        frontends("cluster", 13),
    )
}

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
        fleet.apply(&services([world.address(4)?, world.address(6)?]))?;
        wait::until_true("both backends answer", READY, || {
            Ok(answering(Udp, &client, at("10.96.0.10:80"), CLIENTS).is_ok_and(|found| found.len() == 2))
        })?;
        for service in ["10.96.0.10:80", "[fd96::10]:80"] {
            assert_eq!(
                answering(Tcp, &client, at(service), CLIENTS)?,
                names(["one", "two"]),
                "TCP {service}"
            );
            assert_eq!(
                answering(Udp, &client, at(service), CLIENTS)?,
                names(["one", "two"]),
                "UDP {service}"
            );
        }
        // On the node alone, where the backend is a client, too; and outside.
        for from in [&client, &one.namespace] {
            for service in ["10.97.0.10:80", "[fd97::10]:80"].map(at).into_iter().chain(node_port(1)) {
                assert_eq!(answering(Tcp, from, service, 3)?, names(["one"]), "{service}");
                assert_eq!(answering(Udp, from, service, 3)?, names(["one"]), "{service}");
            }
            for service in ["10.96.0.13:80", "[fd96::13]:80"] {
                assert_eq!(answering(Tcp, from, at(service), 3)?, names(["world"]));
                assert_eq!(answering(Udp, from, at(service), 3)?, names(["world"]));
            }
            refused(from, at("10.97.0.12:80"), at("[fd97::12]:80"))?;
            refused(from, at("[fd97::12]:80"), at("10.97.0.12:80"))?;
        }
        from_outside(fleet, &world.namespace)
    })
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
        assert_eq!(answering(Tcp, world, service, 3)?, names(["one"]));
        assert_eq!(answering(Udp, world, service, 3)?, names(["one"]));
    }
    for service in node_port(2) {
        assert_eq!(answering(Tcp, world, service, 3)?, names(["two"]));
    }
    // Behind another node, through the one that is called.
    for service in ["10.97.0.11:80", "[fd97::11]:80"].map(at) {
        assert_eq!(answering(Udp, world, service, 3)?, names(["two"]));
        assert_eq!(answering(Tcp, world, service, 3)?, names(["two"]));
    }
    refused(world, at("10.97.0.12:80"), at("[fd97::12]:80"))?;
    refused(world, at("[fd97::12]:80"), at("10.97.0.12:80"))
}

/// Of datagrams: connections go on as they began.
#[test]
fn an_address_that_becomes_a_service_is_one_for_flows_that_named_it_before() -> Result<()> {
    const ADDRESSES: [&str; 2] = ["10.96.0.10", "[fd96::10]"];
    scenario("becomes", 1, |fleet| {
        let one = fleet.attach(1, "one", &[("app", "api")])?;
        let client = fleet.attach(1, "client", &[])?.namespace;
        let _server = NamedServer::start(&one.namespace, PORT, "one")?;
        // Where nobody tells the client that there is nobody.
        let host = fleet.node(1).host();
        host.run("ip", &["route", "add", "blackhole", "10.96.0.0/16"])?;
        host.run("ip", &["-6", "route", "add", "blackhole", "fd96::/64"])?;
        let services = ADDRESSES.map(|address| at(&format!("{address}:80")));
        let service = |name: &str, port: u16| {
            let frontends = frontends(
                &ADDRESSES.map(|address| address.trim_matches(['[', ']'])),
                &[port],
                "cluster",
                &[Udp],
            );
            let selected = format!("selector: {{matchLabels: {{app: api}}}}\ntargetPort: {PORT}");
            fleet.apply(&format!("kind: Service\nname: {name}\n{frontends}\n{selected}\n"))
        };
        // Of what comes of the endpoints' beginning, nothing is under way any more.
        service("other", 81)?;
        wait::until_true("the node has services", READY, || {
            let other = ADDRESSES.map(|address| at(&format!("{address}:81")));
            Ok(client
                .within(move || other.into_iter().try_for_each(|at| exchange(Udp, at, DENIED).map(drop)))
                .is_ok())
        })?;
        let sockets = client.within(move || {
            let before = |service: SocketAddr| -> Result<_> {
                let any: IpAddr = if service.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
                let socket = UdpSocket::bind((any, 0))?;
                socket.set_read_timeout(Some(POLL))?;
                ensure!(send_and_ask(&socket, service).is_err(), "{service} is nobody's yet");
                socket.set_read_timeout(Some(DENIED))?;
                Ok(socket)
            };
            services.into_iter().map(before).collect::<Result<Vec<_>>>()
        })?;
        service("api", 80)?;
        for (socket, service) in sockets.iter().zip(services) {
            wait::until_true("new flows are answered", READY, || {
                Ok(client.within(move || exchange(Udp, service, DENIED)).is_ok())
            })?;
            let answered = send_and_ask(socket, service).context("a flow that was there")?;
            assert_eq!((answered.by.as_str(), answered.from), ("one", service));
        }
        Ok(())
    })
}
