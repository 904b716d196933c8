//! Promise: whoever connects to a service reaches a backend and never notices, from a workload and from the node itself; no
//! connection goes to a backend that has gone, and none to another one is broken by its going.
#![expect(clippy::expect_used, reason = "addresses of the test's own")]

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, bail, ensure};
use weft_integration::{
    fleet::{Fleet, Place, scenario},
    limits::READY,
    traffic::{Answered, NamedServer, Namespace, connect_and_ask, send_and_ask},
    wait,
};

const PORT: u16 = 1000;
/// Clients that are asked of a service with two backends: that all of them get the same one has a chance of 2^-39.
const CLIENTS: usize = 40;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Who answers new connections.
fn tcp(from: &Namespace, service: SocketAddr, clients: usize) -> Result<BTreeSet<String>> {
    from.within(move || {
        let ask = |_| {
            let (_, Answered { by, from }) = connect_and_ask(service).context("TCP")?;
            ensure!(from == service, "the client is told {from}");
            Ok(by)
        };
        (0..clients).map(ask).collect()
    })
}

/// Who answers new sockets.
fn udp(from: &Namespace, service: SocketAddr, clients: usize) -> Result<BTreeSet<String>> {
    from.within(move || {
        let any: IpAddr = if service.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let ask = |_| {
            let socket = UdpSocket::bind((any, 0))?;
            let first = send_and_ask(&socket, service).context("UDP")?;
            ensure!(first.from == service, "the client is told {}", first.from);
            ensure!(send_and_ask(&socket, service)? == first, "a socket keeps its backend");
            let connected = UdpSocket::bind((any, 0))?;
            connected.connect(service)?;
            connected.set_read_timeout(Some(READY))?;
            connected.send(b"?")?;
            let (_, sender) = connected.recv_from(&mut [0; 64])?;
            ensure!(sender == service && connected.peer_addr()? == service, "connected, it is told {sender}");
            Ok(first.by)
        };
        (0..clients).map(ask).collect()
    })
}

/// A socket that is connected to a service, and who answers it.
fn connected(service: SocketAddr) -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(service)?;
    let by = send_and_hear(&socket)?;
    Ok((socket, by))
}

fn send_and_hear(socket: &UdpSocket) -> Result<String> {
    socket.set_read_timeout(Some(READY))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
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
  - {address: 10.96.0.11, port: 80, protocol: TCP}
  - {address: 'fd96::11', port: 80, protocol: UDP}
  - {port: 30080, protocol: TCP, type: node-port}
selector: {matchLabels: {app: api}}
targetPort: 1000
internalTrafficPolicy: local
---
kind: Service
name: nobody
frontends:
  - {address: 10.96.0.12, port: 80, protocol: TCP}
  - {address: 'fd96::12', port: 80, protocol: UDP}
selector: {matchLabels: {app: nobody}}
";

/// A service whose backends are outside of the fleet.
fn outside(world: IpAddr) -> String {
    format!(
        "
kind: Service
name: outside
frontends: [{{address: 10.96.0.13, port: 80, protocol: TCP}}, {{address: 10.96.0.13, port: 80, protocol: UDP}}]
backends: [{{address: {world}, port: {PORT}}}]
"
    )
}

#[test]
fn clients_on_a_node_reach_services_by_their_sockets() -> Result<()> {
    scenario("services", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let (one, two) =
            (fleet.attach(1, "one", &[("app", "api")])?, fleet.attach(2, "two", &[("app", "api")])?);
        let client = fleet.attach(1, "client", &[("app", "client")])?.namespace;
        let world = fleet.party("world")?.clone();
        let _servers = [(&one, "one"), (&two, "two"), (&world, "world")]
            .map(|(party, name)| NamedServer::start(&party.namespace, PORT, name));
        fleet.apply(SERVICES)?;
        fleet.apply(&outside(world.address(4)?))?;
        wait::until_true("both backends answer", READY, || {
            Ok(tcp(&client, at("10.96.0.10:80"), CLIENTS).is_ok_and(|found| found.len() == 2))
        })?;
        let host = fleet.node(1).host().namespace()?;
        // A workload: backends on its node and on another one.
        for service in ["10.96.0.10:80", "[fd96::10]:80", "[::ffff:10.96.0.10]:80"] {
            assert_eq!(tcp(&client, at(service), CLIENTS)?, names(&["one", "two"]), "TCP {service}");
            assert_eq!(udp(&client, at(service), CLIENTS)?, names(&["one", "two"]), "UDP {service}");
        }
        // The node itself and a workload: backends on the node alone, and outside.
        for from in [&client, &host] {
            assert_eq!(tcp(from, at("10.96.0.11:80"), 5)?, names(&["one"]));
            assert_eq!(udp(from, at("[fd96::11]:80"), 5)?, names(&["one"]));
            assert_eq!(tcp(from, at("10.96.0.13:80"), 5)?, names(&["world"]));
            assert_eq!(udp(from, at("10.96.0.13:80"), 5)?, names(&["world"]));
            let node = Place::node(1);
            assert_eq!(tcp(from, (node.v4(), 30_080).into(), 2)?, names(&["one"]));
            assert_eq!(tcp(from, (node.v6(), 30_080).into(), 2)?, names(&["one"]));
            refused(from, "10.96.0.12:80", "[fd96::12]:80")?;
        }
        assert_eq!(tcp(&host, at("127.0.0.1:30080"), 2)?, names(&["one"]));
        daemons_come_and_go(fleet, &client)
    })
}

/// At once, and not after some time without an answer.
fn refused(from: &Namespace, tcp: &'static str, udp: &'static str) -> Result<()> {
    from.within(move || {
        let connected = connect_and_ask(at(tcp)).map(|(_, answered)| answered);
        let sent = UdpSocket::bind("[::]:0")?.send_to(b"?", at(udp));
        match (connected, sent) {
            (Err(connected), Err(sent)) => {
                assert_eq!(
                    (connected.kind(), sent.kind()),
                    (ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused)
                );
                Ok(())
            }
            other => bail!("a service without backends: {other:?}"),
        }
    })
}

/// Services go on without the daemon, and it finds them as they are.
fn daemons_come_and_go(fleet: &mut Fleet, client: &Namespace) -> Result<()> {
    fleet.node_mut(1).kill()?;
    assert_eq!(tcp(client, at("10.96.0.10:80"), CLIENTS)?, names(&["one", "two"]), "without a daemon");
    fleet.node_mut(1).run()?;
    fleet.wait_for_nodes()?;
    assert_eq!(tcp(client, at("[fd96::10]:80"), CLIENTS)?, names(&["one", "two"]), "with another daemon");
    assert_eq!(fleet.node(1).status()?.repairs, []);
    Ok(())
}

#[test]
fn a_backend_that_is_taken_away_under_load_gets_no_new_connection_and_no_other_is_broken() -> Result<()> {
    scenario("backend-gone", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let (one, two) = (fleet.attach(1, "one", &[])?, fleet.attach(2, "two", &[])?);
        let client = fleet.attach(1, "client", &[])?.namespace;
        let _servers = [(&one, "one"), (&two, "two")]
            .map(|(party, name)| NamedServer::start(&party.namespace, PORT, name));
        let service = at("10.96.0.10:80");
        let manifest = |backends: &[IpAddr]| {
            let backends: Vec<String> =
                backends.iter().map(|address| format!("{{address: {address}, port: {PORT}}}")).collect();
            format!(
                "\nkind: Service\nname: api\nfrontends: [{{address: 10.96.0.10, port: 80, protocol: TCP}}, {{address: 10.96.0.10, port: 80, protocol: UDP}}]\nbackends: [{}]\n",
                backends.join(", ")
            )
        };
        let (first, second) = (one.address(4)?, two.address(4)?);
        fleet.apply(&manifest(&[first, second]))?;
        wait::until_true("both backends answer", READY, || {
            Ok(tcp(&client, service, CLIENTS).is_ok_and(|found| found.len() == 2))
        })?;
        let mut kept = client.within(move || {
            (0..CLIENTS).map(|_| Ok(connect_and_ask(service)?)).collect::<Result<Vec<_>>>()
        })?;
        let datagrams =
            client.within(move || (0..CLIENTS).map(|_| connected(service)).collect::<Result<Vec<_>>>())?;
        let (stop, gone, asked) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let (stop, gone, asked) = (Arc::clone(&stop), Arc::clone(&gone), Arc::clone(&asked));
                client.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let was_gone = gone.load(Ordering::SeqCst);
                        let (_, Answered { by, .. }) = connect_and_ask(service).context("under load")?;
                        ensure!(!was_gone || by == "one", "{by} answers after it was taken away");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let more = |what: &str, goal: u64| {
            let from = asked.load(Ordering::Relaxed);
            wait::until_true(what, READY, || {
                Ok(asked.load(Ordering::Relaxed) >= from + goal
                    || clients.iter().any(JoinHandle::is_finished))
            })
        };
        more("connections before", 50)?;
        fleet.apply(&manifest(&[first]))?;
        gone.store(true, Ordering::SeqCst);
        more("connections after", 200)?;
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        for (connection, Answered { by, .. }) in &mut kept {
            connection.write_all(b"ping").with_context(|| format!("to {by}"))?;
            connection.read_exact(&mut [0; 4]).with_context(|| format!("from {by}"))?;
        }
        // Who is connected by UDP to the backend that has gone is told; nobody else notices.
        for (socket, by) in &datagrams {
            if by == "two" {
                let heard = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
                assert_eq!(heard, Err(ErrorKind::ConnectionAborted));
            } else {
                assert_eq!(send_and_hear(socket)?, *by);
            }
        }
        Ok(())
    })
}

/// A service at two frontends of each protocol, whose ranges are an address of each family.
fn ranged(name: &str, last: u8, action: &str, [v4, v6]: [IpAddr; 2]) -> String {
    format!(
        "
---
kind: Service
name: {name}
frontends:
  - {{address: 10.96.0.{last}, port: 80, protocol: TCP}}
  - {{address: 10.96.0.{last}, port: 80, protocol: UDP}}
  - {{address: 'fd96::{last}', port: 80, protocol: TCP}}
  - {{address: 'fd96::{last}', port: 80, protocol: UDP}}
selector: {{matchLabels: {{app: api}}}}
targetPort: {PORT}
sourceRanges: {{action: {action}, cidrs: [{v4}/32, '{v6}/128']}}
"
    )
}

fn ranged_at(last: u8) -> [SocketAddr; 2] {
    [format!("10.96.0.{last}:80"), format!("[fd96::{last}]:80")].map(|text| at(&text))
}

#[test]
fn source_ranges_let_in_an_endpoint_by_its_packets_and_a_process_of_the_node_by_its_socket() -> Result<()> {
    scenario("ranges", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let (one, two) =
            (fleet.attach(1, "one", &[("app", "api")])?, fleet.attach(2, "two", &[("app", "api")])?);
        let client = fleet.attach(1, "client", &[("app", "client")])?;
        let _servers = [(&one, "one"), (&two, "two")]
            .map(|(party, name)| NamedServer::start(&party.namespace, PORT, name));
        let (node, endpoint) = (Place::node(1), [client.address(4)?, client.address(6)?]);
        let node = [IpAddr::from(node.v4()), node.v6().into()];
        let services = [
            ranged("endpoint", 21, "allow", endpoint),
            ranged("node", 22, "allow", node),
            ranged("others", 23, "deny", node),
        ];
        fleet.apply(&services.concat())?;
        let (host, client) = (fleet.node(1).host().namespace()?, client.namespace);
        wait::until_true("both backends answer", READY, || {
            Ok(ranged_at(22).iter().all(|service| {
                tcp(&host, *service, CLIENTS).is_ok_and(|found| found == names(&["one", "two"]))
            }))
        })?;
        for (from, last) in [(&client, 21), (&client, 23), (&host, 22)] {
            for service in ranged_at(last) {
                let both = names(&["one", "two"]);
                assert_eq!(tcp(from, service, CLIENTS).with_context(|| format!("{service}"))?, both);
                assert_eq!(udp(from, service, CLIENTS).with_context(|| format!("{service}"))?, both);
            }
        }
        for service in ranged_at(21).into_iter().chain(ranged_at(23)) {
            host.within(move || {
                let connected = connect_and_ask(service).map(|_| ()).map_err(|error| error.kind());
                let sent = UdpSocket::bind("[::]:0")?.send_to(b"?", mapped(service));
                assert_eq!(connected, Err(ErrorKind::PermissionDenied), "{service}");
                assert_eq!(sent.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied), "{service}");
                Ok(())
            })?;
        }
        let refused = || -> Result<u64> {
            let drops = fleet.node(1).status()?.drops;
            Ok(drops.iter().filter(|drop| drop.reason == "source_refused").map(|drop| drop.packets).sum())
        };
        assert_eq!(refused()?, 0);
        for (before, service) in (0..).zip(ranged_at(22)) {
            client.within(move || Ok(UdpSocket::bind("[::]:0")?.send_to(b"?", mapped(service))?))?;
            wait::until_true("the packet is refused", READY, || Ok(refused()? == before + 1))?;
        }
        Ok(())
    })
}

/// For a socket of IPv6.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}
