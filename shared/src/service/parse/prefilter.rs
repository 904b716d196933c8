//! Prefilters.

use std::net::{IpAddr, Ipv4Addr};

use weft_proto::v1;

use super::{super::model::Prefilter, frontend};
use crate::policy::{
    model::Selector,
    parse::{Errors, FieldError, FieldWarning, metadata, selector::selector_of, text::prefix},
};

/// A prefilter, and what of it can hardly be meant. One that lists nothing drops nothing yet.
pub fn prefilter(message: &v1::Prefilter) -> Result<(Prefilter, Vec<FieldWarning>), Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata(&mut errors, message.metadata.as_ref());
    // Absent: all nodes.
    let nodes = match &message.nodes {
        Some(selector) => selector_of(&mut errors, selector, "nodes"),
        None => Some(Selector::default()),
    };
    let texts = message.cidrs.iter().enumerate();
    let cidrs =
        texts.filter_map(|(index, text)| errors.take(cidr(text, &format!("cidrs[{index}]")))).collect();
    let senders = message.arp_senders.iter().enumerate();
    let arp_senders = senders
        .filter_map(|(index, text)| errors.take(sender(text, &format!("arpSenders[{index}]"))))
        .collect();
    let prefilter = name.zip(nodes).map(|(name, nodes)| Prefilter { name, nodes, cidrs, arp_senders });
    errors.finish_with_warnings(prefilter)
}

fn cidr(text: &str, path: &str) -> Result<ipnet::IpNet, FieldError> {
    let net = prefix(text, path)?;
    if net.prefix_len() == 0 {
        return Err(FieldError::new(path, format!("{net} is everybody: expected a longer prefix")));
    }
    Ok(net)
}

fn sender(text: &str, path: &str) -> Result<Ipv4Addr, FieldError> {
    match frontend::address(text, path)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(FieldError::new(
            path,
            format!("{address} is IPv6, which has no ARP: expected an IPv4 address"),
        )),
    }
}
