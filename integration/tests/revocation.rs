//! Promise: a connection that a policy no longer allows stops with its next packet once the policy is realised.
use anyhow::{Context as _, Result};
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

fn assert_silent(talks: &[Conversation]) -> Result<()> {
    for (number, talk) in talks.iter().enumerate() {
        talk.is_silent().with_context(|| format!("connection {number}"))?;
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
