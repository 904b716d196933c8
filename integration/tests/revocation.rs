//! Promise: a connection that a policy no longer allows stops with its next packet once the policy is realised.
use anyhow::{Result, ensure};
use weft_integration::{
    fleet::{Fleet, Party, scenario},
    traffic::Conversation,
};

const ALLOW: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - {name: client, action: allow, peers: [{endpoints: {matchLabels: {app: client}}}]}
";
const CLOSE_INGRESS: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress: []
";
const CLOSE_CLIENTS_EGRESS: &str = "
kind: Policy
name: client
subject: {endpoints: {matchLabels: {app: client}}}
egress: []
";
/// Written by each side after the policy was realised; none may arrive.
const MESSAGES: u64 = 200;

fn talks(fleet: &Fleet, clients: &[Party], server: &Party) -> Result<Vec<Conversation>> {
    fleet.apply(ALLOW)?;
    let mut talks = Vec::new();
    for client in clients {
        for family in [4, 6] {
            let port = 1000 + u16::try_from(talks.len())?;
            let address = server.address(family)?;
            talks.push(Conversation::establish(&client.namespace, &server.namespace, address, port)?);
        }
    }
    for talk in &talks {
        talk.passes_after(talk.mark())?;
    }
    Ok(talks)
}

/// Nothing that either side writes from now on arrives.
fn assert_silent(talks: &[Conversation]) -> Result<()> {
    for (number, talk) in talks.iter().enumerate() {
        let mark = talk.mark();
        talk.speaks_after(mark, MESSAGES)?;
        ensure!(
            talk.passed_since(mark) == (false, false),
            "connection {number} goes on: {:?}",
            talk.passed_since(mark)
        );
    }
    Ok(())
}

#[test]
fn established_connections_stop_both_ways_on_one_node_and_between_nodes() -> Result<()> {
    scenario("revoke", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let clients =
            [fleet.attach(1, "near", &[("app", "client")])?, fleet.attach(2, "far", &[("app", "client")])?];

        let ingress = talks(fleet, &clients, &server)?;
        fleet.apply(CLOSE_INGRESS)?;
        assert_silent(&ingress)?;
        fleet.apply(ALLOW)?;
        for talk in &ingress {
            talk.passes_after(talk.mark())?;
        }
        drop(ingress);

        let egress = talks(fleet, &clients, &server)?;
        fleet.apply(CLOSE_CLIENTS_EGRESS)?;
        assert_silent(&egress)
    })
}
