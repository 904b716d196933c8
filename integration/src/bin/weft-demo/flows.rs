//! The flows that are tried, with what the policies in `deploy/examples` mean for each, written down by hand.
use anyhow::Result;
use weft_integration::{
    fleet::Fleet,
    traffic::{
        Flow,
        Outcome::{self, Allow, Deny},
        Protocol::{self, Echo, Http, Tcp, Udp},
        try_all,
    },
};

use crate::say;

/// From, to, what, expected, and why. Each is tried over IPv4 and over IPv6.
type Expectation = (&'static str, &'static str, Protocol, Outcome, &'static str);

const EXPECTED: [Expectation; 22] = [
    // Between nodes.
    ("web", "api", Http(8080), Allow, "web egress api, api ingress web"),
    ("web", "api", Tcp(9090), Deny, "api ingress: no rule for the port"),
    ("web", "api", Echo, Allow, "api ingress web"),
    ("web", "db", Udp(8125), Deny, "db denies the front, though statistics are allowed"),
    ("web", "bare", Tcp(7000), Deny, "web egress: no rule for bare"),
    ("api", "web", Http(8080), Deny, "web ingress: the site alone, and api is no address of it"),
    ("api", "bare", Tcp(7000), Allow, "no policy selects bare, api's says nothing of egress"),
    ("bare", "web", Echo, Deny, "web ingress: the site alone"),
    ("bare", "api", Http(8080), Deny, "api ingress: web alone"),
    ("bare", "db", Udp(8125), Allow, "db takes statistics from the fleet"),
    ("bare", "db", Tcp(5432), Deny, "db ingress: api alone"),
    ("db", "bare", Udp(7001), Deny, "db asks nobody"),
    // On one node.
    ("api", "db", Tcp(5432), Allow, "db ingress api"),
    ("api", "db", Tcp(22), Deny, "db ingress: no rule for the port"),
    ("api", "db", Echo, Deny, "db ingress: no rule for echo"),
    ("db", "api", Http(8080), Deny, "db asks nobody"),
    // To and from the world.
    ("web", "world", Http(8080), Allow, "web egress pages"),
    ("web", "world", Udp(5353), Deny, "web egress: no rule for the port"),
    ("db", "world", Echo, Deny, "db asks nobody"),
    ("world", "web", Http(8080), Allow, "web ingress site"),
    ("world", "api", Http(8080), Deny, "api ingress: web alone"),
    ("world", "bare", Udp(7001), Allow, "no policy selects bare"),
];

/// A flow that was tried.
#[derive(Debug)]
pub(crate) struct Tried {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) family: u8,
    pub(crate) protocol: Protocol,
    pub(crate) expected: Outcome,
    pub(crate) observed: Outcome,
    pub(crate) why: &'static str,
}

/// Without policies everything must pass: so what is denied later is denied by policy, and by nothing else.
pub(crate) fn pass_before(fleet: &Fleet) -> Result<bool> {
    let tried = observe(fleet)?;
    let stopped: Vec<_> = tried.iter().filter(|flow| flow.observed != Allow).collect();
    say(&format!("  {} of {} pass", tried.len() - stopped.len(), tried.len()));
    for flow in &stopped {
        say(&format!(
            "  {} to {} {:?} IPv{}: {}",
            flow.from, flow.to, flow.protocol, flow.family, flow.observed
        ));
    }
    Ok(stopped.is_empty())
}

/// Tries all of them at once, with real connections.
pub(crate) fn observe(fleet: &Fleet) -> Result<Vec<Tried>> {
    let mut tried = Vec::new();
    let mut flows = Vec::new();
    for (from, to, protocol, expected, why) in EXPECTED {
        for family in [4, 6] {
            let address = fleet.party(to)?.address(family)?;
            flows.push(Flow { from: fleet.party(from)?.namespace.clone(), to: address, protocol });
            tried.push((from, to, family, protocol, expected.clone(), why));
        }
    }
    let outcomes = try_all(&flows)?;
    let observed =
        tried.into_iter().zip(outcomes).map(|((from, to, family, protocol, expected, why), observed)| {
            Tried { from, to, family, protocol, expected, observed, why }
        });
    Ok(observed.collect())
}
