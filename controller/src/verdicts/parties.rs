//! Who is compared: the label sets that endpoints and nodes have, the classes, and the parts into which the prefixes that are
//! named cut the rest of the world.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_shared::policy::model::{Class, Direction, Labels, Party, Peer, Policy};

use super::{Bearers, State};

/// A party with a name for people.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) party: Party,
}

/// All that can be judged.
pub(super) fn subjects(bearers: &Bearers) -> Vec<Named> {
    let endpoints = bearers.endpoints.iter().map(|labels| endpoint(labels, false));
    endpoints.chain(bearers.nodes.iter().map(|labels| node("nodes", labels, Class::Host))).collect()
}

/// The other parties of a subject's flows.
pub(super) fn peers(
    states: [&State; 2],
    bearers: &Bearers,
    subject: &Party,
    direction: Direction,
) -> Vec<Named> {
    let mut peers: Vec<Named> = bearers.endpoints.iter().map(|labels| endpoint(labels, false)).collect();
    if subject.class == Class::Host {
        if direction == Direction::Egress {
            peers.extend(bearers.endpoints.iter().map(|labels| endpoint(labels, true)));
        }
    } else {
        peers.extend(bearers.nodes.iter().map(|labels| node("its own node", labels, Class::Host)));
    }
    peers.extend(bearers.nodes.iter().map(|labels| node("nodes", labels, Class::RemoteNode)));
    let unmanaged = Party { class: Class::Unmanaged, labels: Labels::new(), address: None, local: false };
    peers.push(Named { name: "unmanaged addresses".to_owned(), party: unmanaged });
    peers.extend(world(states));
    peers
}

fn endpoint(labels: &Labels, local: bool) -> Named {
    let party = Party { class: Class::Fleet, labels: labels.clone(), address: None, local };
    let name = if local { "its own endpoints" } else { "endpoints" };
    Named { name: format!("{name} {}", text(labels)), party }
}

fn node(name: &str, labels: &Labels, class: Class) -> Named {
    let party = Party { class, labels: labels.clone(), address: None, local: false };
    Named { name: format!("{name} {}", text(labels)), party }
}

fn text(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "without labels".to_owned() } else { pairs.join(",") }
}

/// For each prefix that is named, an address in it and in no longer one.
fn world(states: [&State; 2]) -> Vec<Named> {
    let mut named: BTreeSet<IpNet> = states.into_iter().flat_map(prefixes).collect();
    named.extend([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]);
    let pools: BTreeSet<IpNet> =
        states.into_iter().flat_map(|state| state.config.pools.iter().map(|pool| pool.cidr)).collect();
    let party = |prefix: &IpNet| {
        let address = outside_of_longer(*prefix, named.union(&pools).copied())?;
        let name = match prefix {
            IpNet::V4(net) if net.prefix_len() == 0 => "world (IPv4)".to_owned(),
            IpNet::V6(net) if net.prefix_len() == 0 => "world (IPv6)".to_owned(),
            named => named.to_string(),
        };
        let party =
            Party { class: Class::World, labels: Labels::new(), address: Some(address), local: false };
        Some(Named { name, party })
    };
    let outside_pools = named.iter().filter(|prefix| !pools.iter().any(|pool| pool.contains(*prefix)));
    outside_pools.filter_map(party).collect()
}

fn prefixes(state: &State) -> Vec<IpNet> {
    let peers = state.policies.iter().flat_map(Policy::peers);
    let mut found = Vec::new();
    for peer in peers {
        if let Peer::Cidr { cidr, except } = peer {
            found.push(*cidr);
            found.extend(except);
        }
    }
    found.extend(state.cidr_sets.iter().flat_map(|set| &set.cidrs));
    found.extend(state.config.failsafe.iter().flat_map(|entry| &entry.prefixes));
    found
}

/// The lowest such address; `None`: longer prefixes cover all of it.
fn outside_of_longer(prefix: IpNet, all: impl Iterator<Item = IpNet>) -> Option<IpAddr> {
    let mut longer: Vec<IpNet> =
        all.filter(|other| prefix.contains(other) && other.prefix_len() > prefix.prefix_len()).collect();
    // Of two that begin at one address the shorter comes first, and covers the other.
    longer.sort_by_key(|net| (net.network(), net.prefix_len()));
    let mut candidate = prefix.network();
    for net in longer {
        if net.contains(&candidate) {
            candidate = after(net.broadcast())?;
        }
    }
    prefix.contains(&candidate).then_some(candidate)
}

fn after(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => IpAddr::from(u32::from(v4).checked_add(1)?.to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from(u128::from(v6).checked_add(1)?.to_be_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_part_of_a_prefix_that_no_longer_one_covers_has_an_address() {
        let outside = |prefix: &str, longer: &[&str]| {
            outside_of_longer(net(prefix), longer.iter().map(|text| net(text))).map(|found| found.to_string())
        };
        assert_eq!(outside("10.0.0.0/8", &[]).as_deref(), Some("10.0.0.0"));
        assert_eq!(outside("10.0.0.0/8", &["10.0.0.0/8", "10.0.0.0/9"]).as_deref(), Some("10.128.0.0"));
        assert_eq!(outside("10.0.0.0/31", &["10.0.0.0/32", "10.0.0.1/32"]), None);
        assert_eq!(
            outside("10.0.0.0/30", &["10.0.0.0/31", "10.0.0.0/32", "10.0.0.2/32"]).as_deref(),
            Some("10.0.0.3")
        );
        assert_eq!(outside("::/0", &["8000::/1", "::/1"]), None);
        assert_eq!(outside("255.255.255.255/32", &[]).as_deref(), Some("255.255.255.255"));
    }
}
