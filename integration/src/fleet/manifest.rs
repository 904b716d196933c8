//! Parts of services' manifests.
use std::net::IpAddr;

use crate::traffic::Transport;

/// A service's frontends: each of the addresses at each of the ports, by each of the transports.
pub fn frontends(addresses: &[&str], ports: &[u16], kind: &str, transports: &[Transport]) -> String {
    let mut all = String::from("frontends:");
    for (address, port) in addresses.iter().flat_map(|address| ports.iter().map(move |port| (address, port)))
    {
        for protocol in transports.iter().copied().map(Transport::name) {
            let frontend =
                format!("\n  - {{address: '{address}', port: {port}, protocol: {protocol}, type: {kind}}}");
            all.push_str(&frontend);
        }
    }
    all
}

/// A service's backends: these addresses at this port, each with its state.
pub fn backends<'a>(all: impl IntoIterator<Item = (IpAddr, &'a str)>, port: u16) -> String {
    let backend =
        |(address, state): (IpAddr, &str)| format!("{{address: '{address}', port: {port}, state: {state}}}");
    let all: Vec<_> = all.into_iter().map(backend).collect();
    format!("backends: [{}]", all.join(", "))
}
