//! Promise: a node's own processes and the endpoints of other nodes reach each other, both ways and by both families,
//! through the overlay, and as the policies of both sides say who is who: the node by its labels, the endpoint by its own.
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_integration::{
    fleet::{Fleet, Node, scenario},
    limits::READY,
    traffic::{
        Conversation, Flow, NamedServer, Namespace,
        Outcome::{self, Allow, Deny},
        Protocol::{self, Echo, Tcp, Udp},
        TcpServer, Transport, UdpServer, answering, at, names, try_all,
    },
    wait,
};

const PORT: u16 = 1000;
const DEVICE: &str = "weft-vxlan";

fn namespace(fleet: &Fleet, name: &str) -> Result<Namespace> {
    match name.strip_prefix('n').and_then(|number| number.parse().ok()) {
        Some(number) => fleet.node(number).host().namespace(),
        None => Ok(fleet.party(name)?.namespace.clone()),
    }
}

fn address(fleet: &Fleet, name: &str, family: u8) -> Result<IpAddr> {
    match name.strip_prefix('n').and_then(|number| number.parse().ok()) {
        Some(number) if family == 4 => Ok(fleet.node(number).place().v4().into()),
        Some(number) => Ok(fleet.node(number).place().v6().into()),
        None => fleet.party(name)?.address(family),
    }
}

/// Tries all of them by both families.
fn expect(fleet: &Fleet, what: &str, flows: &[(&str, &str, Protocol, Outcome)]) -> Result<()> {
    let mut all = Vec::new();
    for (from, to, protocol, _) in flows {
        for family in [4, 6] {
            let (from, to) = (namespace(fleet, from)?, address(fleet, to, family)?);
            all.push(Flow { from, to, protocol: *protocol });
        }
    }
    let seen = try_all(&all)?;
    let wrong: Vec<_> = flows
        .iter()
        .zip(seen.chunks(2))
        .filter(|((.., expected), seen)| seen.iter().any(|seen| seen != expected))
        .collect();
    ensure!(wrong.is_empty(), "{what}: {wrong:#?}");
    Ok(())
}

/// Packets that came to a node out of the overlay, and that it sent there.
fn carried(node: &Node) -> Result<[u64; 2]> {
    let answer = node.host().run("ip", &["-json", "-statistics", "link", "show", DEVICE])?;
    let links: Value = serde_json::from_str(&answer)?;
    let packets = |direction: &str| links[0]["stats64"][direction]["packets"].as_u64();
    Ok([packets("rx").context("received")?, packets("tx").context("sent")?])
}

fn servers(namespaces: &[&Namespace]) -> Result<(Vec<TcpServer>, Vec<UdpServer>)> {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for namespace in namespaces {
        for port in [PORT, PORT + 1] {
            tcp.push(TcpServer::start(namespace, port, "server")?);
            udp.push(UdpServer::start(namespace, port)?);
        }
    }
    Ok((tcp, udp))
}

/// Each of them to its neighbour, and what is near as well.
fn everywhere(verdict: &Outcome) -> Vec<(&'static str, &'static str, Protocol, Outcome)> {
    let pairs = [("n1", "far"), ("far", "n1"), ("n1", "near"), ("near", "n1"), ("n1", "n2"), ("far", "near")];
    let protocols = [Tcp(PORT), Udp(PORT), Echo];
    let each = pairs.into_iter().flat_map(|(from, to)| protocols.map(|protocol| (from, to, protocol)));
    each.map(|(from, to, protocol)| (from, to, protocol, verdict.clone())).collect()
}

/// Datagrams that leave in pieces and come back so, and more than one segment of a connection.
fn much_at_once(from: &Namespace, to: SocketAddr) -> Result<()> {
    from.within(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(READY))?;
        for bytes in [1300, 1420, 1472, 1473, 5000] {
            let sent = vec![7; bytes];
            // A first one that is too large teaches the path's MTU; it may be lost.
            socket.send(&sent)?;
            let mut answer = vec![0; 8000];
            let length = socket.recv(&mut answer).with_context(|| format!("{bytes} bytes to {to}"))?;
            ensure!(answer[..length] == sent, "{length} of {bytes} bytes came back");
        }
        let mut connection = TcpStream::connect_timeout(&to, READY)?;
        connection.set_read_timeout(Some(READY))?;
        let line = [vec![b'x'; 300_000], vec![b'\n']].concat();
        connection.write_all(&line)?;
        let mut answer = vec![0; line.len()];
        connection.read_exact(&mut answer).with_context(|| format!("a long line to {to}"))?;
        ensure!(answer == line, "something else came back");
        Ok(())
    })
}

#[test]
fn nodes_and_endpoints_of_others_reach_each_other_through_the_overlay() -> Result<()> {
    scenario("nodetoep", 2, |fleet| {
        let near = fleet.attach(1, "near", &[("app", "near")])?.namespace;
        let far = fleet.attach(2, "far", &[("app", "far")])?.namespace;
        let (one, two) = (namespace(fleet, "n1")?, namespace(fleet, "n2")?);
        let _servers = servers(&[&near, &far, &one, &two])?;
        expect(fleet, "without policies", &everywhere(&Allow))?;
        for (from, to) in [(&one, "far"), (&far, "n1")] {
            for family in [4, 6] {
                much_at_once(from, (address(fleet, to, family)?, PORT).into())?;
            }
        }

        // Between the nodes themselves nothing goes through it; between a node and an endpoint all does.
        let before = carried(fleet.node(1))?;
        expect(fleet, "between nodes", &[("n1", "n2", Tcp(PORT), Allow), ("n2", "n1", Udp(PORT), Allow)])?;
        assert_eq!(carried(fleet.node(1))?, before);
        expect(fleet, "to an endpoint", &[("n1", "far", Udp(PORT), Allow), ("far", "n1", Udp(PORT), Allow)])?;
        let after = carried(fleet.node(1))?;
        assert!(after[0] >= before[0] + 4 && after[1] >= before[1] + 4, "{before:?} {after:?}");

        // What nobody has, and what is not the node's to send, is dropped where it is sent.
        fleet.node(1).host().run("ip", &["address", "add", "172.17.0.1/32", "dev", "lo"])?;
        let far_address = address(fleet, "far", 4)?.to_string();
        for (from, to, reason) in [
            ("0.0.0.0", "10.200.77.77", "no_endpoint"),
            ("::", "fd00:77:0:77::77", "no_endpoint"),
            ("172.17.0.1", &far_address, "not_the_nodes"),
        ] {
            let before = fleet.node(1).dropped(reason)?;
            let (from, to): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
            one.within(move || {
                // The kernel may tell the sender what a program has dropped.
                let _ = UdpSocket::bind((from, 0))?.send_to(b"?", (to, PORT));
                Ok(())
            })?;
            let what = format!("what is sent to {to} is dropped: {reason}");
            wait::until_true(&what, READY, || Ok(fleet.node(1).dropped(reason)? > before))?;
        }
        fleet.node(1).host().run("ip", &["address", "del", "172.17.0.1/32", "dev", "lo"])?;
        fleet.node_mut(1).kill()?;
        fleet.node_mut(2).kill()?;
        expect(fleet, "without daemons", &everywhere(&Allow))?;
        fleet.node_mut(1).run()?;
        fleet.node_mut(2).run()?;
        fleet.wait_for_nodes()?;
        expect(fleet, "with new daemons", &everywhere(&Allow))?;
        for node in fleet.nodes() {
            assert_eq!(node.status()?.repairs, [], "{}", node.name());
        }
        Ok(())
    })
}

/// Open to gateways at one port, and to all other nodes at another.
const FAR: &str = "
kind: Policy
name: far
subject: {endpoints: {matchLabels: {app: far}}}
ingress:
  - {name: gateways, action: allow, peers: [{nodes: {matchLabels: {role: gateway}}}], ports: [{protocol: TCP, port: 1000}]}
  - {name: nodes, action: allow, peers: [{entity: remote-node}], ports: [{protocol: TCP, port: 1001}]}
  - {name: own, action: allow, peers: [{entity: host}], ports: [{protocol: UDP, port: 1000}]}
egress:
  - {name: gateways, action: allow, peers: [{nodes: {matchLabels: {role: gateway}}}], ports: [{protocol: TCP, port: 1000}, {protocol: TCP, port: 1002}]}
";
/// A gateway is open to one kind of endpoint at two ports, and begins nothing but TCP.
const GATEWAYS: &str = "
kind: Policy
name: gateways
subject: {nodes: {matchLabels: {role: gateway}}}
ingress:
  - {name: far, action: allow, peers: [{endpoints: {matchLabels: {app: far}}}], ports: [{protocol: TCP, port: 1000}, {protocol: TCP, port: 1002}]}
egress:
  - {name: to-far, action: allow, peers: [{endpoints: {matchLabels: {app: far}}}], ports: [{protocol: TCP, port: 1001}]}
";

#[test]
fn policies_of_both_sides_judge_what_a_node_and_another_ones_endpoint_say() -> Result<()> {
    scenario("nodejudged", 2, |fleet| {
        let far = fleet.attach(2, "far", &[("app", "far")])?.namespace;
        let other = fleet.attach(2, "other", &[("app", "other")])?.namespace;
        let (one, two) = (namespace(fleet, "n1")?, namespace(fleet, "n2")?);
        let _servers = servers(&[&far, &other, &one, &two])?;
        fleet.apply(FAR)?;
        let plain = [
            ("n1", "far", Tcp(1000), Deny),
            ("n1", "far", Tcp(1001), Allow),
            ("n1", "far", Udp(1000), Deny),
            ("n1", "far", Echo, Deny),
            ("n1", "other", Echo, Allow),
            ("far", "n1", Tcp(1000), Deny),
            ("far", "n1", Tcp(1001), Deny),
            ("other", "n1", Udp(1001), Allow),
        ];
        expect(fleet, "of a node without labels", &plain)?;

        fleet.node_mut(1).terminate()?;
        fleet.node_mut(1).set_labels(&["role=gateway"]);
        fleet.node_mut(1).run()?;
        fleet.wait_for_nodes()?;
        let gateway = [
            ("n1", "far", Tcp(1000), Allow),
            ("n1", "far", Tcp(1001), Allow),
            ("n1", "far", Udp(1000), Deny),
            ("n1", "other", Echo, Allow),
            ("far", "n1", Tcp(1000), Allow),
            ("far", "n1", Tcp(1001), Deny),
            ("other", "n1", Udp(1001), Allow),
        ];
        let flow = Flow { from: one.clone(), to: address(fleet, "far", 4)?, protocol: Tcp(1000) };
        wait::until_true("everybody knows the gateway", READY, || Ok(flow.attempt()? == Allow))?;
        expect(fleet, "of a gateway", &gateway)?;

        fleet.apply(GATEWAYS)?;
        let judged = [
            ("n1", "far", Tcp(1000), Deny),
            ("n1", "far", Tcp(1001), Allow),
            ("n1", "other", Echo, Deny),
            ("n1", "other", Tcp(1001), Deny),
            ("far", "n1", Tcp(1000), Allow),
            ("other", "n1", Tcp(1000), Deny),
            ("other", "n1", Udp(1001), Deny),
        ];
        expect(fleet, "of a gateway that is judged itself", &judged)?;

        let talk = Conversation::establish(&far, &one, address(fleet, "n1", 4)?, 1002)?;
        talk.passes_after(talk.mark())?;
        fleet.apply(&GATEWAYS.replace("app: far", "app: other"))?;
        talk.is_silent()?;
        Ok(())
    })
}

const SERVICE: &str = "
kind: Service
name: far
frontends:
  - {address: 10.96.0.10, port: 80, protocol: TCP}
  - {address: 10.96.0.10, port: 80, protocol: UDP}
  - {address: 'fd96::10', port: 80, protocol: TCP}
  - {address: 'fd96::10', port: 80, protocol: UDP}
selector: {matchLabels: {app: far}}
targetPort: 1000
";

#[test]
fn a_process_of_a_node_reaches_a_service_whose_only_backend_is_on_another_node() -> Result<()> {
    scenario("nodesvc", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let far = fleet.attach(2, "far", &[("app", "far")])?;
        let _server = NamedServer::start(&far.namespace, PORT, "far")?;
        fleet.apply(SERVICE)?;
        let host = namespace(fleet, "n1")?;
        for service in ["10.96.0.10:80", "[fd96::10]:80"] {
            for transport in [Transport::Tcp, Transport::Udp] {
                assert_eq!(answering(transport, &host, at(service), 1)?, names(["far"]), "{service}");
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_taken_down_takes_its_routes_along() -> Result<()> {
    scenario("noderoutes", 1, |fleet| {
        let node = fleet.node(1);
        let routes = || node.host().run("ip", &["route", "show", "10.200.0.0/16"]);
        let place = node.place();
        wait::until_true("the pool is routed to the overlay", READY, || {
            Ok(routes()?.contains(&format!("dev {DEVICE}")) && routes()?.contains(&place.v4().to_string()))
        })?;
        let v6 = node.host().run("ip", &["-6", "route", "show", "fd00:77::/48"])?;
        assert!(v6.contains(DEVICE) && v6.contains(&place.v6().to_string()), "{v6}");
        fleet.node_mut(1).terminate()?;
        let node = fleet.node(1);
        assert!(node.host().run("ip", &["route"])?.contains(DEVICE), "what is enforced stays");
        node.cleanup()?;
        for family in ["-4", "-6"] {
            let routes = node.host().run("ip", &[family, "route", "show", "table", "all"])?;
            assert!(!routes.contains(DEVICE) && !routes.contains("proto 119"), "{routes}");
        }
        Ok(())
    })
}
