//! What no host policy can stop, as rulebooks of prefixes: of those that an address is in, the longest says everything. The
//! fleet's entries are among it, and what a link needs and is confined by address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    super::{
        model::{Action, Direction, Failsafe, LISTENER_DISCOVERY},
        ports,
    },
    Rulebook,
};
use crate::layout::{PolicyRow, PortKey};

/// By the node's direction and a prefix of the other party. Both families' whole is among them.
pub type FailsafeBooks = BTreeMap<(Direction, IpNet), Arc<Rulebook>>;

/// The rulebooks of these entries, and of [`LISTENER_DISCOVERY`]. A row that allows is about what an entry holds open.
pub fn failsafe_books(entries: &[Failsafe]) -> FailsafeBooks {
    let mut books = FailsafeBooks::new();
    for direction in Direction::ALL {
        let entries = entries.iter().chain(&*LISTENER_DISCOVERY);
        let entries: Vec<&Failsafe> = entries.filter(|entry| entry.direction == direction).collect();
        let prefixes = by_prefix(&entries);
        let mut known: BTreeMap<BTreeSet<usize>, Arc<Rulebook>> = BTreeMap::new();
        for prefix in prefixes.keys() {
            let around = std::iter::successors(Some(*prefix), IpNet::supernet);
            let holding: BTreeSet<usize> =
                around.filter_map(|prefix| prefixes.get(&prefix)).flatten().copied().collect();
            let book = known.entry(holding).or_insert_with_key(|holding| Arc::new(book(&entries, holding)));
            books.insert((direction, *prefix), Arc::clone(book));
        }
    }
    books
}

/// The places of the entries that name a prefix; those that name none are about the whole of both families.
fn by_prefix(entries: &[&Failsafe]) -> BTreeMap<IpNet, BTreeSet<usize>> {
    let everyone = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let mut prefixes: BTreeMap<IpNet, BTreeSet<usize>> = BTreeMap::new();
    for (place, entry) in entries.iter().enumerate() {
        // Addresses of IPv4 dressed as IPv6 are nobody's, and would be taken for what they are dressed from.
        let named = entry.prefixes.iter().map(IpNet::trunc).filter(|prefix| !is_dressed(prefix));
        for whole in everyone {
            prefixes.entry(whole).or_default().extend(entry.prefixes.is_empty().then_some(place));
        }
        for prefix in named {
            prefixes.entry(prefix).or_default().insert(place);
        }
    }
    prefixes
}

fn is_dressed(prefix: &IpNet) -> bool {
    /// RFC 4291 §2.5.5.2.
    const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    IpNet::V6(MAPPED).contains(prefix)
}

fn book(entries: &[&Failsafe], holding: &BTreeSet<usize>) -> Rulebook {
    let mut book = Rulebook::from([(PortKey::EVERYTHING, PolicyRow::of(Action::Deny, 0))]);
    for entry in holding.iter().filter_map(|place| entries.get(*place)) {
        for (port, bits) in ports::prefixes(entry.first, entry.last) {
            // At most 16.
            let bits = PortKey::PROTOCOL_BITS + u8::try_from(bits).unwrap_or(16);
            let key = PortKey { bits, protocol: entry.protocol, port };
            book.insert(key, PolicyRow::of(Action::Allow, 0));
        }
    }
    book
}
