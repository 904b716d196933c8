//! Promise: a node reaches its own endpoints freely, unless the fleet's configuration says that policies judge that; then
//! both sides' do, connections that were there included.
use anyhow::Result;
use weft_integration::{
    fleet::{Fleet, scenario},
    traffic::{
        Conversation, Flow, Namespace,
        Outcome::{self, Allow, Deny},
        Protocol::{self, Echo, Tcp},
        TcpServer, try_all,
    },
};
use weft_proto::v1;

fn config(host_to_endpoint: &str) -> String {
    format!(
        "
kind: FleetConfig
name: fleet
pools:
  - {{cidr: 10.200.0.0/16, nodePrefixLength: 24}}
  - {{cidr: 'fd00:77::/48', nodePrefixLength: 64}}
hostToEndpoint: {host_to_endpoint}
"
    )
}

/// Open to nodes at one port: to the own one, and to those with no labels, which are all.
const SERVER: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - {name: own, action: allow, peers: [{entity: host}], ports: [{protocol: TCP, port: 1000}]}
  - {name: nodes, action: allow, peers: [{nodes: {}}], ports: [{protocol: TCP, port: 1001}]}
";
/// Nodes may not begin this.
const NODES: &str = "
kind: Policy
name: nodes
subject: {nodes: {}}
egress:
  - {name: not-1001, action: deny, ports: [{protocol: TCP, port: 1001}]}
  - {name: others, action: allow}
";

/// By a node's own processes.
fn reach(fleet: &Fleet, node: &Namespace, flows: &[(&str, Protocol)]) -> Result<Vec<Outcome>> {
    let mut all = Vec::new();
    for (to, protocol) in flows {
        for family in [4, 6] {
            let to = fleet.party(to)?.address(family)?;
            all.push(Flow { from: node.clone(), to, protocol: *protocol });
        }
    }
    let seen = try_all(&all)?;
    for families in seen.chunks(2) {
        assert_eq!(families[0], families[1], "the families differ: {seen:?}");
    }
    Ok(seen.into_iter().step_by(2).collect())
}

#[test]
fn a_nodes_own_processes_are_judged_at_its_endpoints_where_the_fleet_says_so() -> Result<()> {
    scenario("hosttoep", 1, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let plain = fleet.attach(1, "plain", &[("app", "plain")])?.namespace;
        let node = fleet.node(1).host().namespace()?;
        let mut servers = Vec::new();
        for port in [1000, 1001, 1002] {
            servers.push(TcpServer::start(&server.namespace, port, "server")?);
        }
        servers.push(TcpServer::start(&plain, 1001, "plain")?);
        let flows = [
            ("server", Tcp(1000)),
            ("server", Tcp(1001)),
            ("server", Tcp(1002)),
            ("server", Echo),
            ("plain", Tcp(1001)),
        ];
        fleet.apply(SERVER)?;
        assert_eq!(reach(fleet, &node, &flows)?, vec![Allow; 5], "nothing is said");
        let mut talks = Vec::new();
        for family in [4, 6] {
            let address = server.address(family)?;
            talks.push(Conversation::establish(&node, &server.namespace, address, 1003)?);
        }
        for talk in &talks {
            talk.passes_after(talk.mark())?;
        }

        fleet.apply(&config("policy"))?;
        for talk in &talks {
            talk.is_silent()?;
        }
        assert_eq!(
            reach(fleet, &node, &flows)?,
            [Allow, Allow, Deny, Deny, Allow],
            "by the endpoint's policy"
        );
        fleet.apply(NODES)?;
        assert_eq!(fleet.node(1).status()?.node_judged, [i32::from(v1::Direction::Egress)]);
        assert_eq!(reach(fleet, &node, &flows)?, [Allow, Deny, Deny, Deny, Deny], "by the node's as well");

        fleet.apply(&config("allow"))?;
        assert_eq!(reach(fleet, &node, &flows)?, vec![Allow; 5], "allowed again");
        // (The connections may be over: a sender on the node itself is told of each drop, and its TCP gives up soon.)
        Ok(())
    })
}
