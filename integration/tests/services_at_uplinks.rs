//! Promise: whoever calls a service from outside of the fleet, on any node, reaches a backend on whichever node, is judged there as who it
//! is, and hears the answer directly, as the frontend's.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use weft_integration::{
    fleet::{Fleet, UPLINK, scenario},
    limits::READY,
    traffic::{
        CLIENTS, Flow, NamedServer, Namespace, Outcome, Protocol::Tcp, Transport, answering, at,
        connect_and_ask, names, try_all,
    },
    wait,
};

const PORT: u16 = 80;
/// How long one look for an answer takes.
const LOOK: Duration = Duration::from_millis(500);

const SERVICE: &str = "
kind: Service
name: api
frontends:
  - {address: 198.51.100.10, port: 80, protocol: TCP, type: external}
  - {address: '2001:db8:96::10', port: 80, protocol: TCP, type: external}
selector: {matchLabels: {app: api}}
forwardingMode: dsr
";

const ONLY_OTHERS: &str = "
kind: Policy
name: only-others
tier: application
subject: {endpoints: {matchLabels: {app: api}}}
ingress:
  - {action: allow, peers: [{cidr: 203.0.113.0/24}]}
";

fn frontends() -> [SocketAddr; 2] {
    ["198.51.100.10:80", "[2001:db8:96::10]:80"].map(at)
}

/// Whether the kernel leaves checksums for the uplink to sum up.
fn leave_checksums(from: &Namespace, switch: &str) -> Result<()> {
    run_in(from, &["ethtool", "-K", UPLINK, "tx", switch]).map(drop)
}

fn run_in(namespace: &Namespace, command: &[&str]) -> Result<String> {
    let arguments = [&["netns", "exec", namespace.name()], command].concat();
    let output = Command::new("ip").args(arguments).output().context("start ip (iproute2)")?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Who calls services on the first node.
fn outside(fleet: &Fleet) -> Result<Namespace> {
    fleet.let_nodes_send_back()?;
    let party = fleet.party("world")?;
    party.send_whole_checksums()?;
    let world = party.namespace.clone();
    let node = fleet.node(1).place();
    fleet.ip(&world, &format!("route add 198.51.100.0/24 via {} dev {UPLINK}", node.v4()))?;
    fleet.ip(&world, &format!("route add 2001:db8:96::/64 via {} dev {UPLINK}", node.v6()))?;
    Ok(world)
}

/// Who answers new connections.
fn answers(from: &Namespace, service: SocketAddr) -> Result<BTreeSet<String>> {
    answering(Transport::Tcp, from, service, CLIENTS)
}

/// Whether the kernel of the balancing node keeps the other one's MAC known. Here, nothing else asks for it.
fn knows_neighbour(fleet: &Fleet) -> Result<bool> {
    let other = fleet.node(2).place().v4().to_string();
    let neighbours = fleet.node(1).host().run("ip", &["neigh", "show", "to", &other, "dev", UPLINK])?;
    Ok(neighbours.contains("managed") && neighbours.contains("lladdr"))
}

fn forwarded(fleet: &Fleet) -> Result<u64> {
    fleet.node(1).dropped("service_forwarded")
}

#[test]
fn clients_outside_reach_backends_of_every_node_by_one_and_hear_them_directly() -> Result<()> {
    scenario("services-uplinks", 2, |fleet| {
        let world = outside(fleet)?;
        let mut servers = Vec::new();
        for (number, name) in [(1, "a"), (2, "b")] {
            let party = fleet.attach(number, name, &[("app", "api")])?;
            servers.push(NamedServer::start(&party.namespace, PORT, name)?);
        }
        fleet.apply(SERVICE)?;
        fleet.wait_for_xdp(1)?;
        let both = names(["a", "b"]);
        for service in frontends() {
            let before = forwarded(fleet).unwrap_or(0);
            wait::until_true("both answer", READY, || {
                Ok(answers(&world, service).is_ok_and(|found| found == both))
            })?;
            ensure!(forwarded(fleet)? > before, "those of the other node were sent on at XDP");
        }
        ensure!(knows_neighbour(fleet)?, "the kernel keeps the next hop resolved");
        fleet.node(1).host().run("ip", &["neigh", "flush", "dev", UPLINK])?;
        ensure!(!knows_neighbour(fleet)?, "flushed");
        wait::until_true("the next hop is known again", READY, || knows_neighbour(fleet))?;
        let before = forwarded(fleet)?;
        ensure!(answers(&world, frontends()[0])? == both, "both answer again");
        ensure!(forwarded(fleet)? > before, "again at XDP");
        // The backends' policy is about the client, and not about the node that balances.
        fleet.apply(ONLY_OTHERS)?;
        wait::until_true("the client is refused", READY, || {
            let call =
                |service: SocketAddr| Flow { from: world.clone(), to: service.ip(), protocol: Tcp(PORT) };
            Ok(try_all(&frontends().map(call))? == [Outcome::Deny, Outcome::Deny])
        })?;
        drop(servers);
        Ok(())
    })
}

const DATAGRAMS: &str = "
kind: Service
name: datagrams
frontends:
  - {address: 198.51.100.10, port: 80, protocol: UDP, type: external}
  - {address: '2001:db8:96::10', port: 80, protocol: UDP, type: external}
  - {address: 198.51.100.10, port: 81, protocol: UDP, type: external}
  - {address: '2001:db8:96::10', port: 81, protocol: UDP, type: external}
selector: {matchLabels: {app: api}}
forwardingMode: dsr
";

/// Sends megabytes, which the server echoes.
fn echo_much(from: &Namespace, service: SocketAddr) -> Result<()> {
    const BYTES: usize = 4 << 20;
    let (sent, received) = from.within(move || {
        let (mut connection, _) = connect_and_ask(service)?;
        connection.set_write_timeout(Some(READY))?;
        let sent: Vec<u8> = (0..BYTES).map(|at| (at * 31 + at / 251).to_le_bytes()[0]).collect();
        let (mut writing, whole) = (connection.try_clone()?, sent.clone());
        let writer = thread::spawn(move || {
            writing.write_all(&whole)?;
            writing.shutdown(Shutdown::Write)
        });
        let mut received = Vec::with_capacity(BYTES);
        connection.read_to_end(&mut received)?;
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok((sent, received))
    })?;
    ensure!(received == sent, "{service}: {} bytes came back, or other ones", received.len());
    Ok(())
}

/// Whether a datagram that comes in pieces is answered.
fn answers_pieces(from: &Namespace, service: SocketAddr) -> Result<bool> {
    from.within(move || {
        let own = unspecified(service);
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(LOOK))?;
        socket.send_to(&[7; 3000], service)?;
        let mut name = [0; 8];
        Ok(socket.recv_from(&mut name).is_ok_and(|(_, from)| name.starts_with(b"b ") && from == service))
    })
}

/// Whether the client has been told what fits, by a datagram that is too long and whose checksum was left for the device.
fn is_told(from: &Namespace, service: SocketAddr, fits: u16) -> Result<bool> {
    let own = unspecified(service);
    from.within(move || {
        let socket = UdpSocket::bind((own, 0))?;
        // Once told, the kernel knows that it does not fit, or cuts it.
        drop(socket.send_to(&[7; 1440], service));
        Ok(())
    })?;
    let route = run_in(from, &["ip", "route", "get", &service.ip().to_string()])?;
    Ok(route.contains(&format!("mtu {fits} ")))
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Whether the server hears that its client is there no more: an ICMP error to the frontend's address says so.
fn hears_of_client_gone(client: &Namespace, server: &Namespace, service: SocketAddr) -> Result<()> {
    let own = unspecified(service);
    let socket = server.within(move || Ok(UdpSocket::bind((own, service.port()))?))?;
    socket.set_read_timeout(Some(READY))?;
    client.within(move || Ok(UdpSocket::bind((own, 0))?.send_to(b"?", service).map(drop)?))?;
    let (_, from) = socket.recv_from(&mut [0; 8])?;
    socket.connect(from)?;
    socket.set_read_timeout(Some(LOOK))?;
    wait::until_true("the server is told", READY, || {
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        // Sending tells of what came in before, too.
        Ok(socket.send(b"!").err().is_some_and(refused)
            || socket.recv(&mut [0; 8]).err().is_some_and(refused))
    })
}

/// Where XDP can't send on what is for backends that answer themselves, tc does, or tells the client how it can be.
#[test]
fn large_and_cut_packets_and_errors_reach_backends_of_another_node() -> Result<()> {
    scenario("services-direct", 2, |fleet| {
        let world = outside(fleet)?;
        let backend = fleet.attach(2, "b", &[("app", "api")])?.namespace.clone();
        let _server = NamedServer::start(&backend, PORT, "b")?;
        fleet.apply(SERVICE)?;
        fleet.apply(DATAGRAMS)?;
        fleet.wait_for_xdp(1)?;
        let (first, other) = (fleet.node(1).host(), fleet.node(2).place());
        let only: BTreeSet<String> = [String::from("b")].into();
        for service in frontends() {
            wait::until_true("the backend answers", READY, || {
                Ok(answers(&world, service).is_ok_and(|found| found == only))
            })?;
            first.run("ip", &["neigh", "flush", "dev", UPLINK])?;
            ensure!(answers(&world, service)? == only, "before the neighbour is resolved again");
            wait::until_true("pieces are answered", READY, || answers_pieces(&world, service))?;
            hears_of_client_gone(&world, &backend, SocketAddr::new(service.ip(), 81))?;
        }
        // So that what the node sends back has a checksum that the client looks at.
        first.run("ethtool", &["-K", UPLINK, "tx", "off"])?;
        // The way has no room for what endpoints take, and the header.
        first.run("ip", &["route", "add", &other.v4().to_string(), "dev", UPLINK, "mtu", "lock", "1400"])?;
        first.run("ip", &["route", "add", &other.v6().to_string(), "dev", UPLINK, "mtu", "lock", "1400"])?;
        for service in frontends() {
            leave_checksums(&world, "on")?;
            wait::until_true("the client is told", READY, || is_told(&world, service, 1380))?;
            fleet.party("world")?.send_whole_checksums()?;
            let family = if service.is_ipv4() { "-4" } else { "-6" };
            run_in(&world, &["ip", family, "route", "flush", "cache"])?;
            let before = fleet.node(1).dropped("service_told_length").unwrap_or(0);
            echo_much(&world, service)?;
            ensure!(fleet.node(1).dropped("service_told_length")? > before, "{service}: nobody was told");
            wait::until_true("shorter pieces are answered", READY, || answers_pieces(&world, service))?;
        }
        Ok(())
    })
}
