//! Promise: a host policy closes a node's front door and its back door, and locks nobody out: ssh, the stream of the
//! controller and the overlay go on, and so does what the node itself begins.
use std::net::IpAddr;

use anyhow::{Result, ensure};
use weft_integration::{
    fleet::{Fleet, Monitor, Place, UPLINK, scenario},
    limits::READY,
    traffic::{
        Conversation, Flow, Namespace,
        Outcome::{self, Allow, Deny},
        Protocol::{self, Echo, Tcp, Udp},
        TcpServer, UdpServer, send_tagged, try_all,
    },
    wait,
};
use weft_proto::v1;

const FRONT_DOOR: &str = "
kind: Policy
name: front-door
subject: {nodes: {matchLabels: {}}}
ingress:
  - {name: web, action: allow, ports: [{protocol: TCP, port: 8080}]}
";
/// And nothing out.
const SEALED: &str = "
kind: Policy
name: front-door
subject: {nodes: {matchLabels: {}}}
ingress:
  - {name: web, action: allow, ports: [{protocol: TCP, port: 8080}]}
egress: []
";
const SHUT: &str = "
kind: Policy
name: front-door
subject: {nodes: {matchLabels: {}}}
ingress: []
";
/// The one port.
const OPEN: u16 = 8080;

/// From, to, what; then the verdict with the front door closed, and with the node sealed. `n1` and `n2` are nodes
/// themselves.
const FLOWS: [(&str, &str, Protocol, Outcome, Outcome); 22] = [
    ("world", "n1", Tcp(22), Allow, Allow),
    ("world", "n1", Tcp(8080), Allow, Allow),
    ("world", "n1", Tcp(8081), Deny, Deny),
    ("world", "n1", Udp(2000), Deny, Deny),
    ("world", "n1", Echo, Deny, Deny),
    ("n2", "n1", Tcp(8080), Allow, Deny),
    ("n2", "n1", Tcp(8081), Deny, Deny),
    ("near", "n1", Tcp(22), Allow, Allow),
    ("near", "n1", Tcp(8080), Allow, Allow),
    ("near", "n1", Tcp(8081), Deny, Deny),
    ("near", "n1", Echo, Deny, Deny),
    ("n1", "near", Tcp(1000), Allow, Allow),
    ("n1", "world", Tcp(3000), Allow, Deny),
    ("n1", "world", Udp(2000), Allow, Deny),
    ("far", "near", Tcp(1000), Allow, Allow),
    ("near", "far", Echo, Allow, Allow),
    // The node's own DHCP, which no policy can stop; as a server it would be judged.
    ("n1", "world", Udp(67), Allow, Allow),
    ("n1", "world", Udp(547), Allow, Allow),
    ("world", "n1", Udp(68), Allow, Allow),
    ("world", "n1", Udp(546), Allow, Allow),
    ("world", "n1", Udp(67), Deny, Deny),
    ("n1", "world", Udp(68), Allow, Deny),
];

fn node(name: &str) -> Option<usize> {
    name.strip_prefix('n').and_then(|number| number.parse().ok())
}

fn namespace(fleet: &Fleet, name: &str) -> Result<Namespace> {
    match node(name) {
        Some(number) => fleet.node(number).host().namespace(),
        None => Ok(fleet.party(name)?.namespace.clone()),
    }
}

fn observed(fleet: &Fleet) -> Result<Vec<(String, Outcome)>> {
    let (mut names, mut flows) = (Vec::new(), Vec::new());
    for (from, to, protocol, ..) in FLOWS {
        for family in [4, 6] {
            let place = node(to).map(|number| fleet.node(number).place());
            let address = match (place, family) {
                (Some(place), 4) => place.v4().into(),
                (Some(place), _) => place.v6().into(),
                (None, family) => fleet.party(to)?.address(family)?,
            };
            names.push(format!("{from} → {to} {protocol:?} IPv{family}"));
            flows.push(Flow { from: namespace(fleet, from)?, to: address, protocol });
        }
    }
    Ok(names.into_iter().zip(try_all(&flows)?).collect())
}

fn expect(fleet: &Fleet, what: &str, verdict: impl Fn(Outcome, Outcome) -> Outcome) -> Result<()> {
    let expected = FLOWS.into_iter().flat_map(|(.., closed, sealed)| {
        let verdict = verdict(closed, sealed);
        [verdict.clone(), verdict]
    });
    let seen = observed(fleet)?;
    let differing: Vec<_> = seen
        .into_iter()
        .zip(expected)
        .filter(|((_, seen), expected)| seen != expected)
        .map(|((flow, seen), expected)| format!("{flow}: expected {expected}, observed {seen}"))
        .collect();
    ensure!(differing.is_empty(), "{what}: {differing:#?}");
    Ok(())
}

#[test]
fn a_closed_node_is_reached_by_one_port_and_by_what_nobody_may_be_locked_out_of() -> Result<()> {
    scenario("hostpol", 2, |fleet| {
        let near = fleet.attach(1, "near", &[("app", "near")])?.namespace;
        let far = fleet.attach(2, "far", &[("app", "far")])?.namespace;
        let world = fleet.party("world")?.namespace.clone();
        let host = namespace(fleet, "n1")?;
        let mut servers = Vec::new();
        for port in [22, 8080, 8081] {
            servers.push(TcpServer::start(&host, port, "n1")?);
        }
        for (namespace, port) in [(&near, 1000), (&far, 1000), (&world, 3000)] {
            servers.push(TcpServer::start(namespace, port, "server")?);
        }
        let mut udp = Vec::new();
        for (namespace, ports) in [(&host, [2000, 67, 68, 546]), (&world, [2000, 67, 68, 547])] {
            for port in ports {
                udp.push(UdpServer::start(namespace, port)?);
            }
        }

        expect(fleet, "without policies", |_, _| Allow)?;
        fleet.apply(FRONT_DOOR)?;
        let ingress = i32::from(v1::Direction::Ingress);
        assert_eq!(fleet.node(1).status()?.node_judged, [ingress]);
        expect(fleet, "with the front door closed", |closed, _| closed)?;
        fleet.apply(SEALED)?;
        expect(fleet, "with the nodes sealed", |_, sealed| sealed)?;
        for node in fleet.nodes() {
            ensure!(node.status()?.connected, "{} has lost its controller", node.name());
        }
        fleet.weft(&["delete", "policy", "front-door", "--wait"])?.success()?;
        expect(fleet, "without policies again", |_, _| Allow)
    })
}

#[test]
fn connections_to_a_node_end_when_the_door_is_shut_and_the_drop_is_shown_with_the_policy() -> Result<()> {
    scenario("hostcut", 1, |fleet| {
        let world = fleet.party("world")?.namespace.clone();
        let host = namespace(fleet, "n1")?;
        let addresses = [Place::node(1).v4().into(), Place::node(1).v6().into()];
        fleet.apply(FRONT_DOOR)?;
        let mut talks = Vec::new();
        for address in addresses {
            talks.push(Conversation::establish(&world, &host, address, OPEN)?);
        }
        for talk in &talks {
            talk.passes_after(talk.mark())?;
        }
        let monitor = Monitor::start(fleet.node(1), &["--drops"])?;
        fleet.apply(SHUT)?;
        for talk in &talks {
            talk.is_silent()?;
        }
        let shown = monitor.wait_for("the drop is shown", |line| {
            line["point"] == "tc_from_uplink" && line["rules"][0]["policy"] == "front-door"
        })?;
        assert_eq!(shown["reason"], "policy_denied", "{shown}");
        Ok(())
    })
}

#[test]
fn a_frame_with_a_priority_tag_finds_the_same_door() -> Result<()> {
    scenario("hosttag", 1, |fleet| {
        let world = fleet.party("world")?.clone();
        let host = namespace(fleet, "n1")?;
        let server = UdpServer::start(&host, 2000)?;
        let place = fleet.node(1).place();
        let send = |tags: u8| -> Result<()> {
            for to in [IpAddr::from(place.v4()), place.v6().into()] {
                let from = world.address(if to.is_ipv4() { 4 } else { 6 })?;
                send_tagged((&world.namespace, &host), UPLINK, (from, to), 2000, tags)?;
            }
            Ok(())
        };
        for (tags, received) in [(0, 2), (1, 4), (2, 6)] {
            send(tags)?;
            let what = format!("datagrams with {tags} tags arrive");
            wait::until_true(&what, READY, || Ok(server.received() == received))?;
        }
        fleet.apply(SHUT)?;
        for (tags, reason) in [(0, "policy_denied"), (1, "policy_denied"), (2, "unknown_ethertype")] {
            let before = fleet.node(1).dropped(reason)?;
            send(tags)?;
            let what = format!("datagrams with {tags} tags are dropped: {reason}");
            wait::until_true(&what, READY, || Ok(fleet.node(1).dropped(reason)? >= before + 2))?;
        }
        assert_eq!(server.received(), 6);
        Ok(())
    })
}

/// As a client asks that has no address yet, and is answered that has none to be reached by.
#[test]
fn a_sealed_node_gets_its_address_by_dhcp_and_no_other_broadcast_passes() -> Result<()> {
    scenario("hostdhcp", 1, |fleet| {
        let world = fleet.party("world")?.clone();
        let host = namespace(fleet, "n1")?;
        fleet.apply(SEALED)?;
        let everybody = IpAddr::from([255; 4]);
        let ask = (IpAddr::from([0; 4]), everybody);
        let offer = (world.address(4)?, everybody);
        let (to_world, to_node) = ((&host, &world.namespace), (&world.namespace, &host));
        let others = [UdpServer::start(&world.namespace, 68)?, UdpServer::start(&host, 67)?];
        for (ends, addresses, port) in [(to_world, ask, 68), (to_node, offer, 67)] {
            let before = fleet.node(1).dropped("policy_denied")?;
            send_tagged(ends, UPLINK, addresses, port, 0)?;
            wait::until_true(
                "it is dropped",
                READY,
                || Ok(fleet.node(1).dropped("policy_denied")? > before),
            )?;
        }
        let (server, client) = (UdpServer::start(&world.namespace, 67)?, UdpServer::start(&host, 68)?);
        send_tagged(to_world, UPLINK, ask, 67, 0)?;
        wait::until_true("the question arrives", READY, || Ok(server.received() == 1))?;
        send_tagged(to_node, UPLINK, offer, 68, 0)?;
        wait::until_true("the offer arrives", READY, || Ok(client.received() == 1))?;
        assert_eq!(others.map(|other| other.received()), [0, 0]);
        Ok(())
    })
}
