//! Addresses of endpoints, out of the node's prefixes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use siphasher::sip::SipHasher13;

/// Addresses of a prefix that are tried; more than a node has endpoints.
const CANDIDATES_MAX: u128 = 1 << 16;
/// The network's address and the first one are nobody's.
const RESERVED_FIRST: u128 = 2;

/// The addresses of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("this node has no endpoint prefixes yet: no controller has given it any")]
    NoPrefixes,
    #[error("addresses[{index}]: \"{text}\" is not an address")]
    NotAnAddress { index: usize, text: String },
    #[error("addresses[{index}]: {address} is outside of this node's endpoint prefixes {prefixes}")]
    Outside { index: usize, address: IpAddr, prefixes: String },
    #[error(
        "addresses[{index}]: {address} is reserved: the first and last addresses of {prefix} are nobody's"
    )]
    Reserved { index: usize, address: IpAddr, prefix: IpNet },
    #[error("addresses[{index}]: {address} is taken by the endpoint {by}")]
    Taken { index: usize, address: IpAddr, by: String },
    #[error("addresses[{index}]: more than one address of its family")]
    SecondOfFamily { index: usize },
    #[error("no address of {prefix} is free")]
    Exhausted { prefix: IpNet },
}

/// What is taken here, and by whom.
pub type Taken = BTreeMap<IpAddr, String>;

/// Checks the addresses asked for; where none are, gives one of each family that the node has prefixes of.
pub fn choose(
    name: &str,
    requested: &[String],
    prefixes: &[IpNet],
    taken: &Taken,
) -> Result<Addresses, AddressError> {
    if prefixes.is_empty() {
        return Err(AddressError::NoPrefixes);
    }
    if !requested.is_empty() {
        return check(requested, prefixes, taken);
    }
    let mut found = Addresses::default();
    for v4 in [true, false] {
        let mut of_family = prefixes.iter().filter(|prefix| prefix.addr().is_ipv4() == v4);
        let Some(first) = of_family.clone().next() else { continue };
        match of_family.find_map(|prefix| free(name, *prefix, taken)) {
            Some(IpAddr::V4(address)) => found.v4 = Some(address),
            Some(IpAddr::V6(address)) => found.v6 = Some(address),
            None => return Err(AddressError::Exhausted { prefix: *first }),
        }
    }
    Ok(found)
}

fn check(requested: &[String], prefixes: &[IpNet], taken: &Taken) -> Result<Addresses, AddressError> {
    let mut found = Addresses::default();
    for (index, text) in requested.iter().enumerate() {
        let not_an_address = |_| AddressError::NotAnAddress { index, text: text.clone() };
        let address: IpAddr = text.parse().map_err(not_an_address)?;
        let Some(prefix) = prefixes.iter().find(|prefix| prefix.contains(&address)) else {
            let prefixes = prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(AddressError::Outside { index, address, prefixes });
        };
        if !usable(prefix).contains(&(number(address) - number(prefix.network()))) {
            return Err(AddressError::Reserved { index, address, prefix: *prefix });
        }
        if let Some(by) = taken.get(&address) {
            return Err(AddressError::Taken { index, address, by: by.clone() });
        }
        let second = match address {
            IpAddr::V4(address) => found.v4.replace(address).is_some(),
            IpAddr::V6(address) => found.v6.replace(address).is_some(),
        };
        if second {
            return Err(AddressError::SecondOfFamily { index });
        }
    }
    Ok(found)
}

/// Begins at a place that the name gives: the same endpoint gets the same address again where it is free, and an address
/// just given up is seldom given to another, of whom others may still think as the former.
fn free(name: &str, prefix: IpNet, taken: &Taken) -> Option<IpAddr> {
    let range = usable(&prefix);
    let count = range.end.saturating_sub(range.start).min(CANDIDATES_MAX);
    if count == 0 {
        return None;
    }
    let begin = u128::from(SipHasher13::new().hash(name.as_bytes())) % count;
    let offsets = (0..count).map(|step| range.start + (begin + step) % count);
    let mut candidates = offsets.map(|offset| address(prefix, offset));
    candidates.find(|candidate| !taken.contains_key(candidate))
}

/// Offsets that endpoints may have. IPv4: without the last one, the broadcast address.
fn usable(prefix: &IpNet) -> std::ops::Range<u128> {
    let size =
        1_u128.checked_shl(u32::from(prefix.max_prefix_len() - prefix.prefix_len())).unwrap_or(u128::MAX);
    let end = if prefix.addr().is_ipv4() { size.saturating_sub(1) } else { size };
    RESERVED_FIRST..end.max(RESERVED_FIRST)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(prefix: IpNet, offset: u128) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(network) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            Ipv4Addr::from(u32::from(network).wrapping_add(offset)).into()
        }
        IpAddr::V6(network) => Ipv6Addr::from(u128::from(network).wrapping_add(offset)).into(),
    }
}

#[cfg(test)]
mod tests;
