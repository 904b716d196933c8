//! Promise: connections that are there follow every change with their next packet, both ways and in both families: labels
//! that change, an address that another endpoint gets, a CIDR set that shrinks. (Policies that are revoked: `revocation`.)
use anyhow::{Context as _, Result};
use weft_integration::{
    fleet::{Fleet, Party, scenario},
    traffic::{Conversation, Namespace},
};

/// Endpoints with these labels are all that clients may talk with.
fn clients_talk_with(apps: &str) -> String {
    format!(
        "
kind: Policy
name: client
subject: {{endpoints: {{matchLabels: {{app: client}}}}}}
ingress:
  - {{action: allow, peers: [{{endpoints: {{matchExpressions: [{{key: app, operator: In, values: [{apps}]}}]}}}}]}}
egress:
  - {{action: allow, peers: [{{endpoints: {{matchExpressions: [{{key: app, operator: In, values: [{apps}]}}]}}}}]}}
"
    )
}

/// Connections that each begins to the other, in both families. `port` is the first of theirs.
fn talk(one: &Party, other: &Party, port: u16) -> Result<Vec<Conversation>> {
    let mut talks = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        for (family, number) in [4, 6].into_iter().zip(port..) {
            let address = to.address(family)?;
            talks.push(Conversation::establish(&from.namespace, &to.namespace, address, number)?);
        }
    }
    Ok(talks)
}

fn all_pass(talks: &[Conversation]) -> Result<()> {
    each(talks, |talk| talk.passes_after(talk.mark()))
}

fn all_are_silent(talks: &[Conversation]) -> Result<()> {
    each(talks, Conversation::is_silent)
}

fn each(talks: &[Conversation], is: impl Fn(&Conversation) -> Result<()>) -> Result<()> {
    for (number, talk) in talks.iter().enumerate() {
        is(talk).with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

/// A server on the first node, and its connections with a client there and with one on another node.
fn with_clients(fleet: &mut Fleet) -> Result<(Party, Vec<Conversation>)> {
    let server = fleet.attach(1, "server", &[("app", "server")])?;
    let near = fleet.attach(1, "near", &[("app", "client")])?;
    let far = fleet.attach(2, "far", &[("app", "client")])?;
    fleet.apply(&clients_talk_with("server"))?;
    let mut talks = talk(&near, &server, 1000)?;
    talks.extend(talk(&far, &server, 1010)?);
    all_pass(&talks)?;
    Ok((server, talks))
}

/// Detaches an endpoint of the first node and gives its addresses to one with another name or other labels.
fn replace(fleet: &Fleet, old: &Party, name: &str, app: &str, namespace: &Namespace) -> Result<()> {
    let node = fleet.node(1);
    node.weft(&["endpoint", "rm", &old.name])?.success()?;
    let (v4, v6) = (old.address(4)?.to_string(), old.address(6)?.to_string());
    let (netns, label) = (format!("/run/netns/{}", namespace.name()), format!("app={app}"));
    let add = ["endpoint", "add", name, "--netns", &netns, "--address", &v4, "--address", &v6];
    node.weft(&[&add[..], &["--label", &label, "--wait"]].concat())?.success()?;
    Ok(())
}

#[test]
fn a_connection_with_a_workload_whose_labels_change_is_judged_by_the_new_ones() -> Result<()> {
    scenario("relabel", 2, |fleet| {
        let (server, talks) = with_clients(fleet)?;

        // The same workload, with its sockets.
        replace(fleet, &server, "server", "stranger", &server.namespace)?;
        all_are_silent(&talks)?;

        fleet.apply(&clients_talk_with("server, stranger"))?;
        all_pass(&talks)
    })
}

#[test]
fn a_connection_to_an_address_that_another_endpoint_got_is_judged_by_who_has_it_now() -> Result<()> {
    scenario("moved", 2, |fleet| {
        let (server, talks) = with_clients(fleet)?;

        let newcomer = fleet.bare_namespace("newcomer")?;
        replace(fleet, &server, "newcomer", "stranger", &newcomer)?;
        // Nothing reaches the newcomer, which would answer what it knows nothing of with a reset.
        all_are_silent(&talks)?;

        fleet.apply(&clients_talk_with("server, stranger"))?;
        each(&talks, Conversation::ends)
    })
}

/// What the server and the world may say to each other is what the set has.
const PARTNERS_ONLY: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - {action: allow, peers: [{cidrSet: partners}]}
egress:
  - {action: allow, peers: [{cidrSet: partners}]}
";
/// The world's addresses are in the second half.
const PARTNERS: &str = "
kind: CidrSet
name: partners
cidrs: [198.51.100.0/24, 192.0.2.0/24, '2001:db8:1::/48', '2001:db8:77::/64']
";
const FEWER_PARTNERS: &str = "
kind: CidrSet
name: partners
cidrs: [198.51.100.0/24, '2001:db8:1::/48']
";

#[test]
fn a_connection_with_an_address_that_a_cidr_set_loses_stops_and_goes_on_when_it_is_back() -> Result<()> {
    scenario("shrunk", 1, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let world = fleet.party("world")?.clone();
        fleet.apply(&format!("{PARTNERS}---{PARTNERS_ONLY}"))?;
        let talks = talk(&world, &server, 1000)?;
        all_pass(&talks)?;
        fleet.apply(FEWER_PARTNERS)?;
        all_are_silent(&talks)?;
        fleet.apply(PARTNERS)?;
        all_pass(&talks)
    })
}
