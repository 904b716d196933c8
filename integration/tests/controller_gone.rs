//! Promise: without a controller nodes go on enforcing what they have realised, across restarts of their daemons, and
//! follow again once it is back.
use anyhow::Result;
use weft_integration::{
    fleet::{Fleet, scenario},
    limits::READY,
    traffic::{
        Flow,
        Outcome::{self, Allow, Deny},
        Protocol, TcpServer, try_all,
    },
    wait,
};

const POLICY: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - name: client
    action: allow
    peers: [{endpoints: {matchLabels: {app: client}}}]
    ports: [{protocol: TCP, port: 1000}]
";
const CLOSED: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress: []
";

fn verdicts(fleet: &Fleet) -> Result<Vec<Outcome>> {
    let server = fleet.party("server")?;
    let mut flows = Vec::new();
    for (from, port) in [("client", 1000), ("client", 1001), ("stranger", 1000)] {
        for family in [4, 6] {
            let from = fleet.party(from)?.namespace.clone();
            flows.push(Flow { from, to: server.address(family)?, protocol: Protocol::Tcp(port) });
        }
    }
    try_all(&flows)
}

#[test]
fn verdicts_stay_while_the_controller_is_gone_and_follow_it_when_it_is_back() -> Result<()> {
    scenario("nocontroller", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?.namespace;
        fleet.attach(2, "client", &[("app", "client")])?;
        fleet.attach(1, "stranger", &[("app", "stranger")])?;
        let _servers =
            [TcpServer::start(&server, 1000, "server")?, TcpServer::start(&server, 1001, "server")?];
        fleet.apply(POLICY)?;
        let expected = [Allow, Allow, Deny, Deny, Deny, Deny];
        assert_eq!(verdicts(fleet)?, expected);

        fleet.controller_mut().kill()?;
        assert_eq!(verdicts(fleet)?, expected, "without a controller");

        for node in [1, 2] {
            fleet.node_mut(node).kill()?;
            fleet.node_mut(node).run()?;
            let restarted = fleet.node(node);
            wait::until_true("the daemon answers", READY, || Ok(restarted.status().is_ok()))?;
        }
        assert_eq!(verdicts(fleet)?, expected, "after restarts of the daemons without a controller");

        fleet.controller_mut().run()?;
        fleet.wait_for_controller()?;
        fleet.wait_for_nodes()?;
        assert_eq!(verdicts(fleet)?, expected, "with the controller back");
        fleet.apply(CLOSED)?;
        assert_eq!(verdicts(fleet)?, [Deny, Deny, Deny, Deny, Deny, Deny], "a change after that");
        Ok(())
    })
}

#[test]
fn an_endpoint_of_known_labels_is_ready_without_a_controller_and_others_get_their_reason() -> Result<()> {
    scenario("credit", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        fleet.attach(1, "client", &[("app", "client")])?;
        let _servers = [
            TcpServer::start(&server.namespace, 1000, "server")?,
            TcpServer::start(&server.namespace, 1001, "server")?,
        ];
        fleet.apply(POLICY)?;
        fleet.controller_mut().kill()?;

        // A second of the same labels, and the successor of one that has gone.
        fleet.node(1).weft(&["endpoint", "rm", "client"])?.success()?;
        let client = fleet.attach(1, "client-2", &[("app", "client")])?;
        let from = |address, port| Flow {
            from: client.namespace.clone(),
            to: address,
            protocol: Protocol::Tcp(port),
        };
        let mut flows = Vec::new();
        for family in [4, 6] {
            flows.extend([1000, 1001].map(|port| server.address(family).map(|to| from(to, port))));
        }
        let flows: Vec<Flow> = flows.into_iter().collect::<Result<_>>()?;
        assert_eq!(try_all(&flows)?, [Allow, Deny, Allow, Deny], "as its labels' policy says");
        let stranger = fleet.bare_namespace("stranger")?;
        let netns = format!("/run/netns/{}", stranger.name());
        let add =
            ["endpoint", "add", "stranger", "--netns", &netns, "--label", "app=stranger", "--timeout", "2s"];
        let answer = fleet.node(1).weft(&add)?;
        assert_eq!(answer.code, Some(3), "{answer:?}");
        assert!(answer.stderr.contains("no controller can be reached"), "{answer:?}");

        fleet.controller_mut().run()?;
        fleet.wait_for_controller()?;
        fleet.wait_for_nodes()?;
        wait::until_true("the controller takes the endpoint in", READY, || {
            Ok(fleet.weft(&["get", "endpoint", "client-2"])?.code == Some(0))
        })?;
        assert_eq!(try_all(&flows)?, [Allow, Deny, Allow, Deny], "with the controller back");
        Ok(())
    })
}
