//! Promise: `weft explain --datapath` says what this node's kernel programs do with a flow, and leaves nothing behind.
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result};
use serde_json::Value;
use weft_integration::{
    fleet::{API_POLICY, Fleet, Party, Place, scenario},
    limits::READY,
    traffic::{NamedServer, Namespace, send_and_ask},
    wait,
};

fn explain(fleet: &Fleet, (from, to): (&str, &str), port: &str, family: u8) -> Result<Value> {
    let family = family.to_string();
    let flow = ["explain", "--datapath", "--from", from, "--to", to, "--port", port, "--family", &family];
    fleet.node(1).weft(&[&flow[..], &["--output", "json"]].concat())?.success()?.json()
}

#[test]
fn the_programs_say_what_the_rules_say_and_keep_nothing_of_it() -> Result<()> {
    scenario("datapath", 2, |fleet| {
        fleet.attach(1, "web", &[("app", "web")])?;
        fleet.attach(1, "api", &[("app", "api")])?;
        fleet.attach(2, "far", &[("app", "far")])?;
        fleet.apply(API_POLICY)?;
        // Others may be of what endpoints send by themselves.
        let denied = || -> Result<u64> {
            let drops = fleet.node(1).status()?.drops;
            Ok(drops.iter().filter(|drop| drop.reason == "policy_denied").map(|drop| drop.packets).sum())
        };
        let before = denied()?;
        for family in [4, 6] {
            for (ends, port, verdict, outcome, rule) in [
                (("web", "api"), "tcp/8080", "allow", "delivered_local", "web"),
                (("web", "api"), "tcp/22", "deny", "policy_denied", "not-ssh"),
                (("web", "api"), "udp/53", "deny", "policy_denied", ""),
                (("far", "api"), "tcp/8080", "deny", "policy_denied", ""),
                (("api", "far"), "sctp/7", "allow", "delivered_overlay", ""),
            ] {
                let said = explain(fleet, ends, port, family)?;
                let what = format!("{ends:?} {port}: {said:#}");
                assert_eq!(said["verdict"], verdict, "{what}");
                assert_eq!(said["datapath"]["outcome"], outcome, "{what}");
                let rules = said["datapath"]["event"]["rules"].as_array().cloned().unwrap_or_default();
                let last = rules.last().with_context(|| what.clone())?;
                assert_eq!(last["rule"].as_str().unwrap_or_default(), rule, "{what}");
            }
        }
        assert_eq!(denied()?, before, "nothing was counted");
        Ok(())
    })
}

#[test]
fn who_is_not_here_is_said() -> Result<()> {
    scenario("datapathaway", 1, |fleet| {
        fleet.attach(1, "web", &[("app", "web")])?;
        let flow =
            ["explain", "--datapath", "--from", "203.0.113.1", "--to", "203.0.113.2", "--port", "tcp/1"];
        let answer = fleet.node(1).weft(&flow)?;
        assert!(answer.stderr.contains("is an endpoint of this node"), "{}", answer.stderr);
        let labels = ["explain", "--datapath", "--from", "web", "--to", "app=api", "--port", "tcp/1"];
        let answer = fleet.node(1).weft(&labels)?;
        assert!(answer.stderr.contains("app=api has no address"), "{}", answer.stderr);
        Ok(())
    })
}

const SERVICES: &str = "
kind: Service
name: api
frontends:
  - {address: 10.96.0.10, port: 80, protocol: UDP}
  - {address: 'fd96::10', port: 80, protocol: UDP}
selector: {matchLabels: {app: api}}
targetPort: 1000
---
kind: Service
name: sticky
frontends: [{address: 10.96.0.11, port: 80, protocol: UDP}]
selector: {matchLabels: {app: api}}
targetPort: 1000
affinity: {timeoutSeconds: 600}
---
kind: Service
name: near
frontends:
  - {address: 10.97.0.10, port: 80, protocol: UDP, type: external}
  - {port: 30080, protocol: UDP, type: node-port}
selector: {matchLabels: {app: api}}
targetPort: 1000
externalTrafficPolicy: local
sourceRanges: {action: deny, cidrs: [203.0.113.0/25]}
---
kind: Service
name: nobody
frontends: [{address: 10.96.0.12, port: 80, protocol: UDP}]
selector: {matchLabels: {app: nobody}}
---
kind: Service
name: direct
frontends: [{address: 10.97.0.11, port: 80, protocol: UDP, type: external}]
selector: {matchLabels: {zone: b}}
forwardingMode: dsr
";

const TWO_IS_CLOSED: &str = "
kind: Policy
name: two
subject: {endpoints: {matchLabels: {zone: b}}}
ingress:
  - {name: nobody, action: deny}
";

/// What a call from a certain port meets.
fn call(fleet: &Fleet, from: &str, (to, port): (&str, u16), source_port: u16) -> Result<Value> {
    let (port, source_port) = (format!("udp/{port}"), source_port.to_string());
    let flow = ["explain", "--datapath", "--from", from, "--to", to, "--port", &port];
    let more = ["--source-port", &source_port, "--output", "json"];
    fleet.node(1).weft(&[&flow[..], &more].concat())?.success()?.json()
}

/// The backend's address and why it is that one.
fn backend(said: &Value) -> (&str, &str) {
    let service = &said["datapath"]["service"];
    let address = service["backend"]["address"].as_str();
    (address.unwrap_or_default(), service["choice"].as_str().unwrap_or_default())
}

/// Who answers a client that calls from a certain port. Of this process no socket program sees anything.
fn ask(from: &Namespace, to: SocketAddr, source_port: u16) -> Result<String> {
    from.within(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        Ok(send_and_ask(&UdpSocket::bind((any, source_port))?, to)?.by)
    })
}

#[test]
fn a_call_to_a_service_gets_the_backend_that_was_said() -> Result<()> {
    scenario("datapathcall", 2, |fleet| {
        let one = fleet.attach(1, "one", &[("app", "api"), ("zone", "a")])?;
        let two = fleet.attach(2, "two", &[("app", "api"), ("zone", "b")])?;
        let client = fleet.attach(1, "client", &[("app", "client")])?.namespace;
        let _servers = [(&one, "one"), (&two, "two")]
            .map(|(party, name)| NamedServer::start(&party.namespace, 1000, name));
        fleet.apply(SERVICES)?;
        let at = |text: &str| -> Result<SocketAddr> { Ok(text.parse()?) };
        let service = at("10.96.0.10:80")?;
        let mut port = 20_000;
        let mut seen = Vec::new();
        wait::until_true("both backends answer", READY, || {
            port += 1;
            seen.extend(ask(&client, service, port));
            Ok(["one", "two"].iter().all(|name| seen.iter().any(|by| by == name)))
        })?;
        let name_of = |said: &Value| -> Result<&'static str> {
            let (address, _) = backend(said);
            let is = |party: &Party| party.addresses.iter().any(|own| own.to_string() == address);
            [(&one, "one"), (&two, "two")]
                .into_iter()
                .find_map(|(party, name)| is(party).then_some(name))
                .with_context(|| format!("{said:#}"))
        };
        for (to, family) in [("10.96.0.10", 4), ("fd96::10", 6)] {
            for port in 21_000..21_004 {
                let said = call(fleet, "client", (to, 80), port)?;
                assert_eq!((&said["verdict"], backend(&said).1), (&"allow".into(), "hash"), "{said:#}");
                let again = call(fleet, "client", (to, 80), port)?;
                assert_eq!(backend(&again), backend(&said), "nothing of it is remembered");
                let address: IpAddr = to.parse()?;
                assert_eq!(ask(&client, (address, 80).into(), port)?, name_of(&said)?, "IPv{family} {port}");
            }
        }
        let known = call(fleet, "client", ("10.96.0.10", 80), 21_000)?;
        assert_eq!(backend(&known).1, "connection", "{known:#}");
        affinity(fleet, &client, &name_of)?;
        others(fleet)?;

        fleet.apply(TWO_IS_CLOSED)?;
        for port in 22_000..22_004 {
            let said = call(fleet, "client", ("10.96.0.10", 80), port)?;
            assert_eq!(said["verdict"], "varies", "{said:#}");
            // The other node judges what comes to its endpoint.
            let outcome = if name_of(&said)? == "one" { "delivered_local" } else { "delivered_overlay" };
            assert_eq!(said["datapath"]["outcome"], outcome, "{said:#}");
        }
        Ok(())
    })
}

/// A client that keeps its backend is said to get that one, whatever the hash says.
fn affinity(
    fleet: &Fleet,
    client: &Namespace,
    name_of: &dyn Fn(&Value) -> Result<&'static str>,
) -> Result<()> {
    let said = |port| call(fleet, "client", ("10.96.0.11", 80), port);
    let first = said(23_000)?;
    assert_eq!(backend(&first).1, "hash", "{first:#}");
    let had = ask(client, "10.96.0.11:80".parse()?, 23_000)?;
    assert_eq!(had, name_of(&first)?);
    for port in 23_001..23_005 {
        let said = said(port)?;
        assert_eq!((name_of(&said)?, backend(&said).1), (had.as_str(), "affinity"), "{said:#}");
    }
    Ok(())
}

/// Nobody who answers, those whom the service is not for, clients outside, and the node itself.
fn others(fleet: &Fleet) -> Result<()> {
    let none = Value::Null;
    let said = call(fleet, "client", ("10.96.0.12", 80), 24_000)?;
    assert_eq!((&said["verdict"], &said["service"]["refusal"]), (&"deny".into(), &"no-backends".into()));
    assert_eq!(said["datapath"]["outcome"], "service_rejected", "{said:#}");
    assert_eq!(said["datapath"]["service"]["backend"], none);

    let refused = call(fleet, "203.0.113.1", ("10.97.0.10", 80), 24_000)?;
    assert_eq!(refused["service"]["refusal"], "source", "{refused:#}");
    assert_eq!(refused["datapath"]["outcome"], "source_refused", "{refused:#}");
    assert_eq!(refused["datapath"]["service"]["backend"], none);
    let own_address = Place::node(1).v4().to_string();
    for frontend in [("10.97.0.10", 80), (own_address.as_str(), 30_080)] {
        let let_in = call(fleet, "203.0.113.129", frontend, 24_000)?;
        assert_eq!(let_in["datapath"]["outcome"], "delivered_local", "{let_in:#}");
        assert_eq!(let_in["datapath"]["service"]["atSockets"], false);
    }

    // No verdict of this node's: the packet goes on inside another one.
    let sent_on = call(fleet, "203.0.113.129", ("10.97.0.11", 80), 24_000)?;
    assert_eq!(sent_on["datapath"]["outcome"], "", "{sent_on:#}");
    let two = fleet.party("two")?.addresses.iter().any(|own| own.to_string() == backend(&sent_on).0);
    assert!(two && backend(&sent_on).1 == "hash", "{sent_on:#}");

    let own = call(fleet, fleet.node(1).name(), ("10.96.0.10", 80), 24_000)?;
    let service = &own["datapath"]["service"];
    assert_eq!((&service["atSockets"], &service["backend"]), (&true.into(), &none), "{own:#}");
    let shares: Vec<u64> = service["backends"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["shareBasisPoints"].as_u64())
        .collect();
    assert_eq!(shares, [5_000, 5_000], "{own:#}");
    Ok(())
}
