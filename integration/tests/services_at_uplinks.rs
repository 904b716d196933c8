//! Promise: whoever calls a service from outside of the fleet, on any node, reaches a backend on whichever node, is judged there as who it
//! is, and hears the answer directly, as the frontend's.
use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};
use weft_integration::{
    fleet::{Fleet, UPLINK, scenario},
    limits::READY,
    traffic::{
        CLIENTS, Flow, NamedServer, Namespace, Outcome, Protocol::Tcp, Transport, answering, at, names,
        try_all,
    },
    wait,
};

const PORT: u16 = 80;

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
        fleet.let_nodes_send_back()?;
        let party = fleet.party("world")?;
        party.send_whole_checksums()?;
        let world = party.namespace.clone();
        let node = fleet.node(1).place();
        fleet.ip(&world, &format!("route add 198.51.100.0/24 via {} dev {UPLINK}", node.v4()))?;
        fleet.ip(&world, &format!("route add 2001:db8:96::/64 via {} dev {UPLINK}", node.v6()))?;
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
