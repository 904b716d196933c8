//! Promise: a policy in audit mode stops nothing and opens nothing, of endpoints and of nodes, and every packet on which it
//! would be otherwise is told, with the rule.
use std::net::IpAddr;

use anyhow::Result;
use serde_json::Value;
use weft_integration::{
    fleet::{Fleet, Monitor, Party, scenario},
    traffic::{
        Flow,
        Outcome::{self, Allow, Deny},
        Protocol, TcpServer, try_all,
    },
};

/// In this mode: closed but for web at one port, and for ssh to nobody.
fn api(mode: &str) -> String {
    format!(
        "
kind: Policy
name: api
mode: {mode}
subject: {{endpoints: {{matchLabels: {{app: api}}}}}}
ingress:
  - name: web
    action: allow
    peers: [{{endpoints: {{matchLabels: {{app: web}}}}}}]
    ports: [{{protocol: TCP, port: 8080}}]
  - {{name: not-ssh, action: deny, ports: [{{protocol: TCP, port: 22}}]}}
"
    )
}

/// What a rule of the admin tier would open that the policy above closes.
const TRIAL: &str = "
kind: Policy
name: trial
tier: admin
mode: audit
subject: {endpoints: {matchLabels: {app: api}}}
ingress:
  - {name: ssh, action: allow, ports: [{protocol: TCP, port: 22}]}
";

fn front_door(mode: &str) -> String {
    format!(
        "
kind: Policy
name: front-door
mode: {mode}
subject: {{nodes: {{}}}}
ingress:
  - {{name: web, action: allow, ports: [{{protocol: TCP, port: 8080}}]}}
  - {{name: not-8081, action: deny, ports: [{{protocol: TCP, port: 8081}}]}}
egress:
  - {{name: not-3000, action: deny, ports: [{{protocol: TCP, port: 3000}}]}}
  - {{name: others, action: allow}}
"
    )
}

/// Who to whom at which port; what is audited of it: at which program, and the rule.
struct Try<'a> {
    from: &'a Party,
    to: [IpAddr; 2],
    port: u16,
    told: Option<(&'a str, &'a str, &'a str)>,
}

fn outcomes(tries: &[Try<'_>]) -> Result<Vec<Outcome>> {
    let flow = |one: &Try<'_>| {
        let (from, protocol) = (one.from.namespace.clone(), Protocol::Tcp(one.port));
        one.to.map(|to| Flow { from: from.clone(), to, protocol })
    };
    try_all(&tries.iter().flat_map(flow).collect::<Vec<_>>())
}

/// Everything of which something is told is told, of both families, and no more.
fn assert_told(monitor: &Monitor, tries: &[Try<'_>], verdict: (&str, &str)) -> Result<()> {
    let is_to = |line: &Value, one: &Try<'_>, to: &IpAddr| {
        one.from.addresses.iter().any(|from| line["source"]["address"] == from.to_string())
            && line["destination"]["address"] == to.to_string()
            && line["destinationPort"] == one.port
    };
    for one in tries {
        for to in &one.to {
            let Some((point, policy, rule)) = one.told else { continue };
            let is_it = |line: &Value| is_to(line, one, to) && line["point"] == point;
            let line = monitor.wait_for(&format!("{to} port {} is told", one.port), is_it)?;
            let audit = &line["audit"];
            assert_eq!(
                (&line["verdict"], &audit["verdict"]),
                (&verdict.0.into(), &verdict.1.into()),
                "{line}"
            );
            assert_eq!(
                (&audit["rule"]["policy"], &audit["rule"]["rule"]),
                (&policy.into(), &rule.into()),
                "{line}"
            );
        }
    }
    let lines = monitor.lines()?;
    for one in tries.iter().filter(|one| one.told.is_none()) {
        let told = lines.iter().find(|line| one.to.iter().any(|to| is_to(line, one, to)));
        assert_eq!(told, None, "{}", monitor.output());
    }
    Ok(())
}

fn both(fleet: &Fleet, name: &str) -> Result<[IpAddr; 2]> {
    let party = fleet.party(name)?;
    Ok([party.address(4)?, party.address(6)?])
}

#[test]
fn what_an_audited_policy_would_drop_and_would_let_through_is_told_and_nothing_else_happens() -> Result<()> {
    scenario("audit", 2, |fleet| {
        let web = fleet.attach(1, "web", &[("app", "web")])?;
        let api_at = fleet.attach(1, "api", &[("app", "api")])?.namespace;
        let far = fleet.attach(2, "far", &[("app", "far")])?;
        let mut servers = Vec::new();
        for port in [22, 8080] {
            servers.push(TcpServer::start(&api_at, port, "api")?);
        }
        let to = both(fleet, "api")?;
        let by = |from, port, told| Try { from, to, port, told };
        let tries = [
            by(&web, 8080, None),
            by(&web, 22, Some(("tc_from_endpoint", "api", "not-ssh"))),
            by(&far, 8080, Some(("tc_from_overlay", "api", ""))),
        ];
        fleet.apply(&api("audit"))?;
        let monitor = Monitor::start(fleet.node(1), &["--audit"])?;
        let dropped = fleet.node(1).dropped("policy_denied")?;
        assert_eq!(outcomes(&tries)?, vec![Allow; 6]);
        assert_told(&monitor, &tries, ("allowed", "dropped"))?;
        assert_eq!(fleet.node(1).dropped("policy_denied")?, dropped, "it was counted");
        drop(monitor);

        // Enforced, it does what it was said to; and another one is tried that would open it again.
        fleet.apply(&format!("{}---{TRIAL}", api("enforce")))?;
        let tries = [
            by(&web, 8080, None),
            by(&web, 22, Some(("tc_from_endpoint", "trial", "ssh"))),
            by(&far, 8080, None),
        ];
        let monitor = Monitor::start(fleet.node(1), &["--audit", "--policy", "trial"])?;
        assert_eq!(outcomes(&tries)?, [Allow, Allow, Deny, Deny, Deny, Deny]);
        assert_told(&monitor, &tries, ("dropped", "allowed"))?;
        assert!(fleet.node(1).dropped("policy_denied")? > dropped);
        Ok(())
    })
}

#[test]
fn an_audited_host_policy_tells_what_it_would_drop_at_every_door_of_the_node() -> Result<()> {
    scenario("audithost", 1, |fleet| {
        let world = fleet.party("world")?.clone();
        let near = fleet.attach(1, "near", &[("app", "near")])?;
        let place = fleet.node(1).place();
        let here = [IpAddr::from(place.v4()), place.v6().into()];
        let namespace = fleet.node(1).host().namespace()?;
        let node = Party { name: "n1".to_owned(), namespace, addresses: here.to_vec() };
        let mut servers = Vec::new();
        for (party, port) in [(&node, 8080), (&node, 8081), (&node, 8082), (&world, 3000), (&world, 3001)] {
            servers.push(TcpServer::start(&party.namespace, port, "server")?);
        }
        let there = both(fleet, "world")?;
        let by = |from, to, port, told| Try { from, to, port, told };
        let tries = [
            by(&world, here, 8080, None),
            by(&world, here, 8081, Some(("tc_from_uplink", "front-door", "not-8081"))),
            by(&world, here, 8082, Some(("tc_from_uplink", "front-door", ""))),
            by(&near, here, 8080, None),
            by(&near, here, 8082, Some(("tc_from_endpoint", "front-door", ""))),
            by(&node, there, 3000, Some(("tc_to_uplink", "front-door", "not-3000"))),
            by(&node, there, 3001, None),
        ];
        fleet.apply(&front_door("audit"))?;
        let monitor = Monitor::start(fleet.node(1), &["--audit"])?;
        let dropped = fleet.node(1).dropped("policy_denied")?;
        assert_eq!(outcomes(&tries)?, vec![Allow; 14]);
        assert_told(&monitor, &tries, ("allowed", "dropped"))?;
        assert_eq!(fleet.node(1).dropped("policy_denied")?, dropped, "it was counted");

        fleet.apply(&front_door("enforce"))?;
        let told = |one: &Try<'_>| if one.told.is_some() { [Deny, Deny] } else { [Allow, Allow] };
        assert_eq!(outcomes(&tries)?, tries.iter().flat_map(told).collect::<Vec<_>>());
        Ok(())
    })
}
