//! Promise: endpoints are no faster than their rates allow, in either direction, to another node and within one, from the moment
//! a shaping is applied until it is deleted; TCP connections of endpoints and of nodes' processes are told their rates while they
//! last.
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;
use weft_integration::{
    fleet::{Fleet, scenario},
    limits::READY,
    traffic::Namespace,
    wait,
};

const PORT: u16 = 1000;
const DATAGRAM_BYTES: usize = 1400;
/// Some four megabytes: what passes of it at a megabyte a second is far less, however slow the machine is.
const DATAGRAMS: usize = 3000;
/// A megabyte a second.
const RATE: u64 = 1_000_000;
/// A tenth of a second may be ahead, and the packet that goes beyond it.
const AHEAD: u64 = RATE / 10 + 2000;

fn shaping(name: &str, selector: &str, rates: &str) -> String {
    format!("kind: Shaping\nname: {name}\n{selector}\n{rates}\n")
}

/// Sends many datagrams as fast as it goes: bytes that arrived, and how many can have by the rate.
fn flood(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<(u64, u64)> {
    let at = SocketAddr::new(address, PORT);
    let inbox = to.within(move || Ok(UdpSocket::bind(at)?))?;
    inbox.set_read_timeout(Some(Duration::from_secs(1)))?;
    let counting = std::thread::spawn(move || {
        let (mut bytes, mut buffer) = (0, [0; 2 * DATAGRAM_BYTES]);
        while let Ok(length) = inbox.recv(&mut buffer) {
            bytes += length as u64;
        }
        bytes
    });
    let took = from.within(move || {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        let began = Instant::now();
        for _ in 0..DATAGRAMS {
            match socket.send_to(&[7; DATAGRAM_BYTES], at) {
                Err(error) if error.kind() != ErrorKind::ConnectionRefused => return Err(error.into()),
                _ => {}
            }
        }
        Ok(began.elapsed())
    })?;
    let arrived = counting.join().ok().context("the receiver panicked")?;
    let most = AHEAD + RATE * u64::try_from(took.as_millis() + 1)? / 1000;
    Ok((arrived, most))
}

fn assert_limited(
    fleet: &Fleet,
    node: usize,
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> Result<()> {
    let before = fleet.node(node).dropped("rate_exceeded")?;
    let (received, most) = flood(from, to, address)?;
    ensure!(received <= most, "{received} bytes came to {address} where {most} may");
    ensure!(received >= 10 * DATAGRAM_BYTES as u64, "only {received} bytes came to {address}");
    ensure!(fleet.node(node).dropped("rate_exceeded")? > before, "nothing was dropped on node {node}");
    Ok(())
}

/// A rate of an endpoint as the node's table says it; empty: none.
fn endpoint_rates(fleet: &Fleet, node: usize) -> Result<String> {
    let rows = fleet.node(node).weft(&["node", "map", "endpoints"])?.success()?.stdout;
    Ok(rows.lines().filter(|row| row.contains("bytes/s")).collect::<Vec<_>>().join("\n"))
}

/// The rates that the kernel keeps connections of the namespace to this port to, in bits a second; those that have none are
/// not among them.
fn rates(namespace: &Namespace, port: u16) -> Result<Vec<u64>> {
    let filter = format!("dport = :{port}");
    let listed = Command::new("ip")
        .args(["netns", "exec", namespace.name(), "ss", "-tinH", "state", "established", &filter])
        .output()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.status.success() && text.contains("pacing_rate"), "ss: {listed:?}");
    let words = text.split_whitespace().filter_map(|word| word.strip_suffix("bps")?.split_once('/'));
    words.map(|(_, most)| bits(most)).collect()
}

/// As `ss` writes numbers, which depends on its version: `8000000`, `8M`.
fn bits(text: &str) -> Result<u64> {
    let units = [('K', 1_000), ('M', 1_000_000), ('G', 1_000_000_000)];
    let unit = units.into_iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits)));
    let (number, unit) = unit.unwrap_or((text, 1));
    Ok(number.parse::<u64>().with_context(|| format!("{text} of ss"))? * unit)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(READY))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0]).context("the answer")
}

fn echo(namespace: &Namespace, address: IpAddr) -> Result<()> {
    let listener = namespace.within(move || Ok(TcpListener::bind((address, PORT))?))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut stream, mut byte) = (stream, [0]);
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).unwrap_or_default();
                }
            });
        }
    });
    Ok(())
}

#[test]
fn endpoints_and_connections_are_no_faster_than_their_rates() -> Result<()> {
    scenario("shaping", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let web = fleet.attach(1, "web", &[("app", "web"), ("batch", "yes")])?;
        let near = fleet.attach(1, "near", &[("app", "near")])?;
        let far = fleet.attach(2, "far", &[("app", "far")])?;

        let endpoints = "endpoints: {matchLabels: {app: web}}";
        fleet.apply(&shaping("slow", endpoints, "egressRate: 8Mbit"))?;
        wait::until_true("the rate is there", READY, || {
            Ok(endpoint_rates(fleet, 1)?.contains("egress 1000000 bytes/s"))
        })?;
        for family in [4, 6] {
            assert_limited(fleet, 1, &web.namespace, &far.namespace, far.address(family)?)?;
            assert_limited(fleet, 1, &web.namespace, &near.namespace, near.address(family)?)?;
        }

        // The least of several counts, and labels that make no identity count, too.
        fleet.apply(&shaping(
            "fast",
            "endpoints: {matchLabels: {batch: 'yes'}}",
            "egressRate: 80Mbit\ningressRate: 1Gbit",
        ))?;
        wait::until_true("both are there", READY, || {
            Ok(endpoint_rates(fleet, 1)?.contains("ingress 125000000 bytes/s egress 1000000 bytes/s"))
        })?;

        for name in ["slow", "fast"] {
            fleet.weft(&["delete", "shaping", name])?.success()?;
        }
        wait::until_true("the rates are gone", READY, || Ok(endpoint_rates(fleet, 1)?.is_empty()))?;
        let before = fleet.node(1).dropped("rate_exceeded")?;
        flood(&web.namespace, &near.namespace, near.address(4)?)?;
        assert_eq!(fleet.node(1).dropped("rate_exceeded")?, before, "nothing is limited");

        let all = "endpoints: {matchExpressions: [{key: app, operator: In, values: [near, far]}]}";
        fleet.apply(&shaping("received", all, "ingressRate: 8Mbit"))?;
        for node in [1, 2] {
            wait::until_true("the rate is there", READY, || {
                Ok(endpoint_rates(fleet, node)?.contains("ingress 1000000 bytes/s"))
            })?;
        }
        assert_limited(fleet, 2, &web.namespace, &far.namespace, far.address(4)?)?;
        assert_limited(fleet, 1, &web.namespace, &near.namespace, near.address(6)?)?;
        let host = fleet.node(1).host().namespace()?;
        assert_limited(fleet, 1, &host, &near.namespace, near.address(4)?)
    })
}

#[test]
fn connections_are_told_their_rates_while_they_last() -> Result<()> {
    scenario("pacing", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let web = fleet.attach(1, "web", &[("app", "web")])?;
        let far = fleet.attach(2, "far", &[("app", "far")])?;
        let host = fleet.node(1).host().namespace()?;
        let (to, other) = (far.address(4)?, fleet.node(2).place().v4());
        echo(&far.namespace, to)?;
        echo(&fleet.node(2).host().namespace()?, other.into())?;

        let endpoints = "endpoints: {matchLabels: {app: web}}";
        fleet.apply(&shaping("slow", endpoints, "connectionRate: 8Mbit"))?;
        fleet.apply(&shaping("processes", "nodes: {}", "connectionRate: 16Mbit"))?;
        wait::until_true("the rate is there", READY, || {
            Ok(endpoint_rates(fleet, 1)?.contains("each connection"))
        })?;
        let mut stream = web.namespace.within(move || Ok(TcpStream::connect((to, PORT))?))?;
        let mut of_host = host.within(move || Ok(TcpStream::connect((other, PORT))?))?;
        exchange(&mut stream)?;
        exchange(&mut of_host)?;
        assert_eq!(rates(&web.namespace, PORT)?, [8_000_000]);
        assert_eq!(rates(&host, PORT)?, [16_000_000]);

        fleet.apply(&shaping("slow", endpoints, "connectionRate: 4Mbit"))?;
        fleet.weft(&["delete", "shaping", "processes"])?.success()?;
        wait::until_true("the connections have their new rates", READY, || {
            exchange(&mut stream)?;
            exchange(&mut of_host)?;
            Ok(rates(&web.namespace, PORT)? == [4_000_000] && rates(&host, PORT)?.is_empty())
        })?;

        // The programs outlive the daemon, and the next one takes them over.
        fleet.node_mut(1).kill()?;
        let mut later = web.namespace.within(move || Ok(TcpStream::connect((to, PORT))?))?;
        exchange(&mut later)?;
        assert_eq!(rates(&web.namespace, PORT)?, [4_000_000, 4_000_000], "without a daemon");
        fleet.node_mut(1).run()?;
        fleet.wait_for_nodes()?;
        fleet.weft(&["delete", "shaping", "slow"])?.success()?;
        wait::until_true("the connections have no rate any more", READY, || {
            exchange(&mut stream)?;
            exchange(&mut later)?;
            Ok(rates(&web.namespace, PORT)?.is_empty())
        })?;
        let status = fleet.node(1).status()?;
        ensure!(status.repairs.is_empty(), "{:?}", status.repairs);
        ensure!(!status.round_trips.is_empty(), "round trips are measured");
        Ok(())
    })
}
