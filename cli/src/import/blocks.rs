//! Blocks of addresses. For Kubernetes a block is about addresses, whoever has them; for Weft `cidr` is about those outside
//! of the fleet, and everybody else is in a class. So a block becomes `cidr` and the classes that it covers, and one that
//! covers half a class has no equivalent.
use std::fmt::Write;

use ipnet::IpNet;
use weft_proto::v1::{self, Entity};

use super::{
    Network,
    ranges::{Covers, Ranges},
    view::{Item, View},
};

pub(super) struct Block<'a> {
    pub(super) item: Item<'a>,
    pub(super) cidr: IpNet,
    pub(super) except: Vec<IpNet>,
}

/// What a block is about, in the place that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// Every party with such an address.
    Everyone,
    /// Neither endpoints nor nodes.
    Strangers,
}

impl Block<'_> {
    fn ranges(&self) -> Ranges {
        let mut ranges = Ranges::of(self.cidr);
        for hole in &self.except {
            ranges.remove(&Ranges::of(*hole));
        }
        ranges
    }
}

/// A prefix as Kubernetes reads it: bits beyond its length do not matter.
pub(super) fn prefix<'a>(view: &mut View<'a>, item: Item<'a>) -> Option<IpNet> {
    let text = view.text(item);
    match text.parse::<IpNet>() {
        Ok(IpNet::V6(net)) if net.addr().to_ipv4_mapped().is_some() => {
            view.wrong(item, format!("\"{text}\" is an IPv4 prefix dressed as IPv6"), "write it as IPv4");
            None
        }
        Ok(net) => Some(net.trunc()),
        Err(_) => {
            let message = format!("\"{text}\" is not a prefix");
            view.wrong(item, message, "expected one such as 198.51.100.0/24 or 2001:db8::/32");
            None
        }
    }
}

/// `except` of a block; each is inside of it.
pub(super) fn exceptions<'a>(view: &mut View<'a>, item: Item<'a>, cidr: Option<IpNet>) -> Vec<IpNet> {
    let mut holes = Vec::new();
    for item in view.list(item) {
        let Some(hole) = prefix(view, item) else { continue };
        if cidr.is_some_and(|cidr| !cidr.contains(&hole)) {
            view.wrong(item, format!("{hole} is not inside the block"), "expected a part of it");
        }
        holes.push(hole);
    }
    holes
}

/// The peers that all blocks of one rule are together. `allows`: the rule lets through what it matches.
pub(super) fn peers(view: &mut View<'_>, blocks: &[Block<'_>], about: About, allows: bool) -> Vec<v1::Peer> {
    let Some(first) = blocks.first() else { return Vec::new() };
    // Of strangers an allow takes only those that are surely none of ours.
    let cidrs_only = about == About::Strangers && allows;
    let classes = if cidrs_only {
        Vec::new()
    } else if let Some(network) = &view.options.network {
        classes(view, network, blocks, about, allows)
    } else {
        if view.needs_network.is_none() {
            view.needs_network = Some(view.place(first.item));
        }
        Vec::new()
    };
    let pools = view.options.network.as_ref().map_or(&[][..], |network| &network.pools);
    let inside = |block: &Block<'_>| pools.iter().any(|pool| pool.contains(&block.cidr));
    let cidrs = blocks.iter().filter(|block| !inside(block)).map(|block| v1::Peer {
        cidr: Some(block.cidr.to_string()),
        except: block.except.iter().map(IpNet::to_string).collect(),
        ..v1::Peer::default()
    });
    cidrs.chain(classes.into_iter().map(entity)).collect()
}

pub(super) fn entity(entity: Entity) -> v1::Peer {
    v1::Peer { entity: entity.into(), ..v1::Peer::default() }
}

fn classes(
    view: &mut View<'_>,
    network: &Network,
    blocks: &[Block<'_>],
    about: About,
    allows: bool,
) -> Vec<Entity> {
    let union = Union::of(blocks);
    let mut classes = Vec::new();
    match union.of_all(&network.pools) {
        Covers::Whole if about == About::Everyone => classes.extend([Entity::Fleet, Entity::Unmanaged]),
        Covers::Whole => classes.push(Entity::Unmanaged),
        Covers::Nothing => {}
        Covers::Part => refuse_cut(view, &network.pools, blocks, &union),
    }
    if about == About::Strangers {
        return classes;
    }
    // A node is met at an address of a family that endpoints have.
    let families = |wanted: &IpNet| network.pools.iter().any(|pool| is_v4(pool) == is_v4(wanted));
    let everything: Vec<IpNet> = [[0; 4].into(), [0_u16; 8].into()]
        .into_iter()
        .filter_map(|address: std::net::IpAddr| IpNet::new(address, 0).ok())
        .filter(families)
        .collect();
    let nodes =
        network.nodes.as_ref().map(|nodes| nodes.iter().copied().filter(families).collect::<Vec<_>>());
    let covered = match &nodes {
        _ if union.of_all(&everything) == Covers::Whole => Some(Covers::Whole),
        Some(nodes) => Some(union.of_all(nodes)),
        None => None,
    };
    match covered {
        Some(Covers::Whole) => classes.extend([Entity::Host, Entity::RemoteNode]),
        Some(Covers::Nothing) => {}
        Some(Covers::Part) => refuse_some_nodes(view, blocks, &nodes.unwrap_or_default()),
        // An allow that leaves nodes out is narrower than it was; a deny would be, too.
        None if allows => {}
        None => {
            view.refuse(
                blocks[0].item,
                format!("`{}` may be about nodes", blocks[0].cidr),
                "say which addresses nodes have with --nodes CIDR…",
            );
        }
    }
    classes
}

const fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// What all blocks hold together.
struct Union {
    v4: Ranges,
    v6: Ranges,
}

impl Union {
    fn of(blocks: &[Block<'_>]) -> Self {
        let mut union = Self { v4: Ranges::default(), v6: Ranges::default() };
        for block in blocks {
            let family = if is_v4(&block.cidr) { &mut union.v4 } else { &mut union.v6 };
            family.add(&block.ranges());
        }
        union
    }

    fn of_one(&self, prefix: IpNet) -> Covers {
        let family = if is_v4(&prefix) { &self.v4 } else { &self.v6 };
        family.covers(&Ranges::of(prefix))
    }

    /// Of no prefixes at all it holds nothing.
    fn of_all(&self, prefixes: &[IpNet]) -> Covers {
        let each = |covers| prefixes.iter().all(|prefix| self.of_one(*prefix) == covers);
        if each(Covers::Nothing) {
            Covers::Nothing
        } else if each(Covers::Whole) {
            Covers::Whole
        } else {
            Covers::Part
        }
    }
}

fn refuse_cut(view: &mut View<'_>, pools: &[IpNet], blocks: &[Block<'_>], union: &Union) {
    let named = |covers| {
        pools.iter().filter(|pool| union.of_one(**pool) == covers).map(IpNet::to_string).collect::<Vec<_>>()
    };
    let (cut, left) = (named(Covers::Part), named(Covers::Nothing));
    for block in blocks {
        let ranges = block.ranges();
        let meets = pools.iter().any(|pool| {
            is_v4(pool) == is_v4(&block.cidr) && ranges.covers(&Ranges::of(*pool)) != Covers::Nothing
        });
        if !meets {
            continue;
        }
        let mut message = format!("`{}`", block.cidr);
        // Writing to a String never fails.
        let _ = match (cut.as_slice(), left.as_slice()) {
            ([], left) => write!(message, " covers a pool of the fleet, but not {}", left.join(" and ")),
            (cut, _) => write!(message, " cuts through the pool {}", cut.join(" and ")),
        };
        let help = if cut.is_empty() {
            "`entity: fleet` is every endpoint at every address: cover all pools in this rule, or name only those \
             that are used with --pools"
        } else {
            "inside the pools Weft knows endpoints by their labels: cover each pool whole or not at all, and select \
             endpoints by labels"
        };
        view.refuse(block.item, message, help);
    }
}

fn refuse_some_nodes(view: &mut View<'_>, blocks: &[Block<'_>], nodes: &[IpNet]) {
    for block in blocks {
        let ranges = block.ranges();
        let met = nodes.iter().find(|node| {
            is_v4(node) == is_v4(&block.cidr) && ranges.covers(&Ranges::of(**node)) != Covers::Nothing
        });
        if let Some(node) = met {
            let message = format!("`{}` covers {node}, but not every node", block.cidr);
            view.refuse(block.item, message, "select nodes by their labels, or cover all or none");
        }
    }
}
