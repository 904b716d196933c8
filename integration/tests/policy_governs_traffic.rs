//! Promise: what policies say is what packets meet: both families, on one node, between nodes, and with the world.
use anyhow::Result;
use weft_integration::{
    fleet::{Fleet, scenario},
    traffic::{
        Flow,
        Outcome::{self, Allow, Deny},
        Protocol::{self, Echo, Tcp, Udp},
        TcpServer, UdpServer, try_all,
    },
};

const POLICY: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - name: friend
    action: allow
    peers: [{endpoints: {matchLabels: {app: friend}}}]
    ports:
      - {protocol: TCP, port: 1000, endPort: 1001}
      - {protocol: ICMP, type: 8}
      - {protocol: ICMPv6, type: 128}
  - name: outside
    action: allow
    peers: [{entity: world}]
    ports: [{protocol: UDP, port: 2000}]
  - name: not-1001
    action: deny
    ports: [{protocol: TCP, port: 1001}]
egress:
  - name: outside
    action: allow
    peers: [{cidr: 192.0.2.0/24}, {cidr: '2001:db8:77::/64'}]
    ports: [{protocol: TCP, port: 3000}]
";

/// From, to, what, and the verdict under the policy; without it everything is allowed.
const FLOWS: [(&str, &str, Protocol, Outcome); 15] = [
    ("friend-near", "server", Tcp(1000), Allow),
    ("friend-far", "server", Tcp(1000), Allow),
    ("friend-near", "server", Tcp(1001), Deny),
    ("friend-far", "server", Tcp(1001), Deny),
    ("friend-near", "server", Tcp(1002), Deny),
    ("friend-near", "server", Echo, Allow),
    ("friend-far", "server", Echo, Allow),
    ("friend-far", "server", Udp(2000), Deny),
    ("stranger", "server", Tcp(1000), Deny),
    ("stranger", "server", Echo, Deny),
    ("world", "server", Udp(2000), Allow),
    ("world", "server", Tcp(1000), Deny),
    ("server", "world", Tcp(3000), Allow),
    ("server", "world", Udp(2000), Deny),
    ("server", "stranger", Tcp(1000), Deny),
];

fn observed(fleet: &Fleet) -> Result<Vec<(String, Outcome)>> {
    let mut names = Vec::new();
    let mut flows = Vec::new();
    for (from, to, protocol, _) in FLOWS {
        for family in [4, 6] {
            names.push(format!("{from} → {to} {protocol:?} IPv{family}"));
            let from = fleet.party(from)?.namespace.clone();
            flows.push(Flow { from, to: fleet.party(to)?.address(family)?, protocol });
        }
    }
    Ok(names.into_iter().zip(try_all(&flows)?).collect())
}

fn expected(verdict: impl Fn(Outcome) -> Outcome) -> Vec<Outcome> {
    FLOWS.into_iter().flat_map(|(_, _, _, expected)| [verdict(expected.clone()), verdict(expected)]).collect()
}

fn assert_outcomes(seen: &[(String, Outcome)], expected: &[Outcome]) {
    let differing: Vec<_> = seen
        .iter()
        .zip(expected)
        .filter(|((_, seen), expected)| seen != *expected)
        .map(|((flow, seen), expected)| format!("{flow}: expected {expected}, observed {seen}"))
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
}

#[test]
fn every_flow_is_allowed_without_policies_and_judged_by_them_once_applied_and_free_again_once_deleted()
-> Result<()> {
    scenario("policy", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?.namespace;
        fleet.attach(1, "friend-near", &[("app", "friend")])?;
        fleet.attach(2, "friend-far", &[("app", "friend")])?;
        let stranger = fleet.attach(2, "stranger", &[("app", "stranger")])?.namespace;
        let world = fleet.party("world")?.namespace.clone();
        let mut tcp = Vec::new();
        for (namespace, port) in
            [(&server, 1000), (&server, 1001), (&server, 1002), (&stranger, 1000), (&world, 3000)]
        {
            tcp.push(TcpServer::start(namespace, port, "server")?);
        }
        let _udp = [UdpServer::start(&server, 2000)?, UdpServer::start(&world, 2000)?];

        assert_outcomes(&observed(fleet)?, &expected(|_| Allow));
        fleet.apply(POLICY)?;
        assert_outcomes(&observed(fleet)?, &expected(|verdict| verdict));
        fleet.weft(&["delete", "policy", "server", "--wait"])?.success()?;
        assert_outcomes(&observed(fleet)?, &expected(|_| Allow));
        Ok(())
    })
}
