//! Promise: whoever connects to a service reaches a backend and never notices, from a workload and from the node itself.
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, bail};
use weft_integration::{
    fleet::{Fleet, Place, backends, frontends, scenario},
    limits::READY,
    traffic::{
        CLIENTS, NamedServer, Namespace,
        Transport::{Tcp, Udp},
        answering, at, connect_and_ask, names,
    },
    wait,
};

const PORT: u16 = 1000;

/// Services with backends on both nodes, on the client's alone, nowhere, and outside of the fleet.
fn services(world: IpAddr) -> String {
    let open = "selector: {matchLabels: {app: api}}\ntargetPort: 1000";
    let frontends = |last: u8| {
        let addresses = [format!("10.96.0.{last}"), format!("fd96::{last}")];
        frontends(&addresses.each_ref().map(String::as_str), &[80], "cluster", &[Tcp, Udp])
    };
    let outside = backends([(world, "active")], PORT);
    format!(
        "
kind: Service
name: api
{}
{open}
---
kind: Service
name: near
{}
  - {{port: 30080, protocol: TCP, type: node-port}}
{open}
internalTrafficPolicy: local
---
kind: Service
name: nobody
{}
selector: {{matchLabels: {{app: nobody}}}}
---
kind: Service
name: outside
frontends: [{{address: 10.96.0.13, port: 80, protocol: TCP}}, {{address: 10.96.0.13, port: 80, protocol: UDP}}]
{outside}
",
        frontends(10),
        frontends(11),
        frontends(12),
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
        fleet.apply(&services(world.address(4)?))?;
        wait::until_true("both backends answer", READY, || {
            Ok(answering(Tcp, &client, at("10.96.0.10:80"), CLIENTS).is_ok_and(|found| found.len() == 2))
        })?;
        let host = fleet.node(1).host().namespace()?;
        // A workload: backends on its node and on another one.
        for service in ["10.96.0.10:80", "[fd96::10]:80", "[::ffff:10.96.0.10]:80"] {
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
        // The node itself and a workload: backends on the node alone, and outside.
        for from in [&client, &host] {
            assert_eq!(answering(Tcp, from, at("10.96.0.11:80"), 5)?, names(["one"]));
            assert_eq!(answering(Udp, from, at("[fd96::11]:80"), 5)?, names(["one"]));
            assert_eq!(answering(Tcp, from, at("10.96.0.13:80"), 5)?, names(["world"]));
            assert_eq!(answering(Udp, from, at("10.96.0.13:80"), 5)?, names(["world"]));
            let node = Place::node(1);
            assert_eq!(answering(Tcp, from, (node.v4(), 30_080).into(), 2)?, names(["one"]));
            assert_eq!(answering(Tcp, from, (node.v6(), 30_080).into(), 2)?, names(["one"]));
            refused(from, "10.96.0.12:80", "[fd96::12]:80")?;
        }
        assert_eq!(answering(Tcp, &host, at("127.0.0.1:30080"), 2)?, names(["one"]));
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
    assert_eq!(
        answering(Tcp, client, at("10.96.0.10:80"), CLIENTS)?,
        names(["one", "two"]),
        "without a daemon"
    );
    fleet.node_mut(1).run()?;
    fleet.wait_for_nodes()?;
    assert_eq!(
        answering(Tcp, client, at("[fd96::10]:80"), CLIENTS)?,
        names(["one", "two"]),
        "with another daemon"
    );
    assert_eq!(fleet.node(1).status()?.repairs, []);
    Ok(())
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
                answering(Tcp, &host, *service, CLIENTS).is_ok_and(|found| found == names(["one", "two"]))
            }))
        })?;
        for (from, last) in [(&client, 21), (&client, 23), (&host, 22)] {
            for service in ranged_at(last) {
                let both = names(["one", "two"]);
                assert_eq!(
                    answering(Tcp, from, service, CLIENTS).with_context(|| format!("{service}"))?,
                    both
                );
                assert_eq!(
                    answering(Udp, from, service, CLIENTS).with_context(|| format!("{service}"))?,
                    both
                );
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
