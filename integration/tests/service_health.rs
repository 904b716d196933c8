//! Promise: a backend whose server has stopped gets no new connection from any node once its probes have failed, and gets them
//! again when it is back; what answers in its place is not broken. If all are broken, all are tried.
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_integration::{
    fleet::{Fleet, Party, scenario},
    limits::READY,
    traffic::{self, CLIENTS, NamedServer, Namespace, Transport, at, connect_and_ask, names},
    wait,
};

const PORT: u16 = 1000;

fn service() -> SocketAddr {
    at("10.96.0.10:80")
}

/// Who answers new connections; the first that fails is the error.
fn answering(from: &Namespace) -> Result<BTreeSet<String>> {
    traffic::answering(Transport::Tcp, from, service(), CLIENTS)
}

fn server(party: &Party, name: &str) -> Result<NamedServer> {
    NamedServer::start(&party.namespace, PORT, name)
}

/// What `weft service show` says of the backend.
fn shown(fleet: &Fleet, address: IpAddr) -> Result<Value> {
    let shown = fleet.weft(&["service", "show", "api", "--output", "json"])?.success()?.json()?;
    let backends = shown["service"]["backends"].as_array().context("no backends")?;
    let address = address.to_string();
    let backend = backends.iter().find(|backend| backend["address"] == *address);
    Ok(backend.with_context(|| format!("no {address} in {shown}"))?.clone())
}

/// Who takes new flows, as the node's kernel has it.
fn takers(fleet: &Fleet, node: usize) -> Result<Vec<IpAddr>> {
    let held = fleet.node(node).weft(&["node", "service", "api", "--output", "json"])?.success()?.json()?;
    let backends = held["tables"][0]["backends"].as_array().with_context(|| format!("no table: {held}"))?;
    let taking = backends.iter().filter(|backend| backend["slots"].as_u64().is_some_and(|slots| slots > 0));
    let address = |backend: &Value| backend["address"].as_str().and_then(|text| text.parse().ok());
    taking.map(|backend| address(backend).with_context(|| format!("no address: {backend}"))).collect()
}

fn is_in_state(fleet: &Fleet, party: &Party, state: &str, health: &str) -> Result<()> {
    let address = party.address(4)?;
    wait::until_true(&format!("{address} is {state} and {health}"), READY, || {
        let backend = shown(fleet, address)?;
        Ok(backend["state"] == state && backend["health"] == health)
    })
}

/// From when on these answer, and nobody else.
fn settle(client: &Namespace, expected: &[&str]) -> Result<()> {
    let expected = names(expected.iter().copied());
    wait::until_true(&format!("{expected:?} answer"), READY, || {
        Ok(answering(client).is_ok_and(|found| found == expected))
    })?;
    for _ in 0..5 {
        assert_eq!(answering(client)?, expected);
    }
    Ok(())
}

#[test]
fn a_backend_whose_server_stops_gets_no_connection_until_it_is_back() -> Result<()> {
    scenario("health", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let (one, two) =
            (fleet.attach(1, "one", &[("app", "api")])?, fleet.attach(2, "two", &[("app", "api")])?);
        let client = fleet.attach(1, "client", &[("app", "client")])?.namespace;
        let first = server(&one, "one")?;
        let second = server(&two, "two")?;
        fleet.apply(
            "
kind: Service
name: api
frontends: [{address: 10.96.0.10, port: 80, protocol: TCP}]
selector: {matchLabels: {app: api}}
targetPort: 1000
healthCheck: {intervalMilliseconds: 200, timeoutMilliseconds: 200, unhealthyAfter: 2, healthyAfter: 2}
",
        )?;
        is_in_state(fleet, &one, "active", "healthy")?;
        is_in_state(fleet, &two, "active", "healthy")?;
        settle(&client, &["one", "two"])?;

        // One stops: its node says so, and no connection goes there any more.
        drop(second);
        is_in_state(fleet, &two, "quarantined", "unhealthy")?;
        let probe = &shown(fleet, two.address(4)?)?["probes"][0];
        assert_eq!(probe["node"], "n2");
        ensure!(probe["error"].as_str().is_some_and(|why| why.contains("refused")), "{probe}");
        settle(&client, &["one"])?;
        for node in 1..=2 {
            assert_eq!(takers(fleet, node)?, [one.address(4)?], "n{node}");
        }
        controllers_and_daemons_come_and_go(fleet, &client, &two)?;

        // All stop: whoever connects is refused by one that is broken, and not by the service itself.
        drop(first);
        is_in_state(fleet, &one, "quarantined", "unhealthy")?;
        let refused =
            client.within(|| Ok(connect_and_ask(service()).map(drop).map_err(|error| error.kind())))?;
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        let state = fleet.weft(&["service", "show", "api"])?.success()?;
        ensure!(
            state.stdout.contains("all backends are quarantined, so all of these answer"),
            "{}",
            state.stdout
        );
        // One that answers again is found at once, while it is still held for broken: all are tried.
        let _second = server(&two, "two")?;
        is_in_state(fleet, &two, "active", "healthy")?;
        settle(&client, &["two"])?;
        let _first = server(&one, "one")?;
        is_in_state(fleet, &one, "active", "healthy")?;
        settle(&client, &["one", "two"])
    })
}

/// What is known to be broken stays so, whoever begins anew.
fn controllers_and_daemons_come_and_go(fleet: &mut Fleet, client: &Namespace, broken: &Party) -> Result<()> {
    fleet.controller_mut().kill()?;
    assert_eq!(answering(client)?, names(["one"]), "without a controller");
    fleet.controller_mut().run()?;
    fleet.wait_for_controller()?;
    assert_eq!(shown(fleet, broken.address(4)?)?["state"], "quarantined", "the first word of the new one");
    fleet.wait_for_nodes()?;
    fleet.node_mut(2).kill()?;
    fleet.node_mut(2).run()?;
    fleet.wait_for_nodes()?;
    for _ in 0..5 {
        assert_eq!(answering(client)?, names(["one"]));
        assert_eq!(shown(fleet, broken.address(4)?)?["state"], "quarantined");
    }
    Ok(())
}

#[test]
fn outside_of_the_fleet_several_nodes_probe_and_all_believe_them() -> Result<()> {
    scenario("health-outside", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let client = fleet.attach(1, "client", &[("app", "client")])?.namespace;
        let world = fleet.party("world")?.clone();
        let _stays = NamedServer::start(&world.namespace, PORT, "stays")?;
        let stops = NamedServer::start(&world.namespace, PORT + 1, "stops")?;
        let address = world.address(4)?;
        fleet.apply(&format!(
            "
kind: Service
name: api
frontends: [{{address: 10.96.0.10, port: 80, protocol: TCP}}]
backends: [{{address: {address}, port: {PORT}}}, {{address: {address}, port: {}}}]
healthCheck: {{intervalMilliseconds: 200, timeoutMilliseconds: 200, unhealthyAfter: 2, healthyAfter: 2}}
",
            PORT + 1
        ))?;
        settle(&client, &["stays", "stops"])?;
        drop(stops);
        settle(&client, &["stays"])?;
        let shown = fleet.weft(&["service", "show", "api", "--output", "json"])?.success()?.json()?;
        let probes = shown["service"]["backends"][1]["probes"].as_array().context("probes")?.clone();
        let by: Vec<_> = probes.iter().filter_map(|probe| probe["node"].as_str()).collect();
        assert_eq!(by, ["n1", "n2"]);
        for node in 1..=2 {
            wait::until_true("one backend is left", READY, || Ok(takers(fleet, node)?.len() == 1))?;
        }
        let _stops = NamedServer::start(&world.namespace, PORT + 1, "stops")?;
        settle(&client, &["stays", "stops"])
    })
}

/// Policy judges probes as what they are: packets of the node to its endpoint. The default lets them in.
#[test]
fn where_policies_judge_the_node_they_must_let_its_probes_in() -> Result<()> {
    scenario("health-policy", 1, |fleet| {
        let one = fleet.attach(1, "one", &[("app", "api")])?;
        let _server = server(&one, "one")?;
        fleet.apply(
            "
kind: Policy
name: closed
subject: {endpoints: {matchLabels: {app: api}}}
ingress: []
---
kind: Service
name: api
frontends: [{address: 10.96.0.10, port: 80, protocol: TCP}]
selector: {matchLabels: {app: api}}
targetPort: 1000
healthCheck: {intervalMilliseconds: 200, unhealthyAfter: 1, healthyAfter: 1}
",
        )?;
        is_in_state(fleet, &one, "active", "healthy")?;
        let config = fleet.weft(&["get", "fleet-config", "fleet", "--output", "yaml"])?.success()?.stdout;
        let judged: Vec<&str> = config.lines().filter(|line| !line.starts_with("hostToEndpoint")).collect();
        fleet.apply(&(judged.join("\n") + "\nhostToEndpoint: policy\n"))?;
        is_in_state(fleet, &one, "quarantined", "unhealthy")?;
        let why = shown(fleet, one.address(4)?)?["probes"][0]["error"].clone();
        assert_eq!(why, "no answer within 200 ms");
        fleet.apply(
            "
kind: Policy
name: closed
subject: {endpoints: {matchLabels: {app: api}}}
ingress: [{name: probes, action: allow, peers: [{entity: host}], ports: [{protocol: TCP, port: 1000}]}]
",
        )?;
        is_in_state(fleet, &one, "active", "healthy")
    })
}
