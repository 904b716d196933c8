//! One rule: whom it is about, and which ports.
use ipnet::IpNet;
use weft_proto::v1::{self, Action};

use super::{
    entities,
    labels::{self, Selected},
    ports,
};
use crate::import::{
    blocks::{self, About, Block},
    view::{Item, View},
};

/// The words of a direction.
pub(super) struct Side {
    pub(super) allow: &'static str,
    pub(super) deny: &'static str,
    endpoints: &'static str,
    cidr: &'static str,
    cidr_set: &'static str,
    entities: &'static str,
    refused: &'static [(&'static str, &'static str)],
}

const REQUIRES: &str =
    "it narrows every other rule of the endpoint, which no rule of Weft does; Cilium itself gave it up";
const NODES: &str = "whether the own node is one of them differs between versions of Cilium: use entities, or \
                     `nodes` of Weft";
const GROUPS: &str = "groups are asked of a cloud provider: write their prefixes";
const AUTHENTICATION: &str = "Weft does not authenticate connections";

pub(super) static INGRESS: Side = Side {
    allow: "ingress",
    deny: "ingressDeny",
    endpoints: "fromEndpoints",
    cidr: "fromCIDR",
    cidr_set: "fromCIDRSet",
    entities: "fromEntities",
    refused: &[
        ("fromRequires", REQUIRES),
        ("fromNodes", NODES),
        ("fromGroups", GROUPS),
        ("authentication", AUTHENTICATION),
    ],
};

pub(super) static EGRESS: Side = Side {
    allow: "egress",
    deny: "egressDeny",
    endpoints: "toEndpoints",
    cidr: "toCIDR",
    cidr_set: "toCIDRSet",
    entities: "toEntities",
    refused: &[
        ("toRequires", REQUIRES),
        ("toNodes", NODES),
        ("toGroups", GROUPS),
        ("toServices", "a policy of Weft judges the backend: select the endpoints behind the service"),
        ("toFQDNs", "Weft judges by address: a name has other addresses at each place and time"),
        ("authentication", AUTHENTICATION),
    ],
};

/// The rule, unless it matches nothing and only closes the direction.
pub(super) fn read<'a>(
    view: &mut View<'a>,
    item: Item<'a>,
    side: &'static Side,
    action: Action,
    namespace: Option<&str>,
) -> Option<v1::Rule> {
    let mut fields = view.fields(item, if action == Action::Deny { side.deny } else { side.allow });
    let names = [side.endpoints, side.cidr, side.cidr_set, side.entities, "toPorts", "icmps"];
    let lists = names.map(|name| fields.get(name));
    for empty in lists.iter().flatten().filter(|item| item.is_empty()) {
        let help = "versions of Cilium differ in whether it matches nothing or everything: leave it out for \
                    everything, and the rule out for nothing";
        view.refuse(*empty, format!("`{}` is empty", empty.name.text), help);
    }
    view.refuse_fields(&mut fields, side.refused);
    view.finish(&fields);
    let [endpoints, cidr, cidr_set, entities, to_ports, icmps] = lists;
    let mut kinds = [endpoints, cidr, cidr_set, entities].into_iter().flatten();
    if let (Some(first), Some(second)) = (kinds.next(), kinds.next()) {
        let message = format!("`{}` beside `{}`", second.name.text, first.name.text);
        view.wrong(second, message, "Cilium takes one of them in a rule");
    }
    if let (Some(_), Some(icmps)) = (to_ports, icmps) {
        view.wrong(icmps, "`icmps` beside `toPorts`", "Cilium takes one of them in a rule");
    }
    let mut peers = None;
    if let Some(item) = endpoints {
        peers = Some(endpoint_peers(view, item, action, namespace));
    }
    if let Some(item) = cidr {
        let items = view.list(item);
        let blocks: Vec<_> = items.into_iter().filter_map(|item| plain_block(view, item)).collect();
        peers = Some(blocks::peers(view, &blocks, About::Strangers, action == Action::Allow));
    }
    if let Some(item) = cidr_set {
        let items = view.list(item);
        let blocks: Vec<_> = items.into_iter().filter_map(|item| block(view, item)).collect();
        peers = Some(blocks::peers(view, &blocks, About::Strangers, action == Action::Allow));
    }
    if let Some(item) = entities {
        let items = view.list(item);
        peers = Some(items.into_iter().flat_map(|item| entities::read(view, item, action)).collect());
    }
    let ports = match (to_ports, icmps) {
        (Some(item), _) => Some(ports::to_ports(view, item)),
        (None, Some(item)) => Some(ports::icmps(view, item)),
        (None, None) => None,
    };
    if peers.is_none() && ports.is_none() {
        return None;
    }
    Some(v1::Rule {
        action: action.into(),
        peers: peers.map(|items| v1::PeerList { items }),
        ports: ports.map(|items| v1::PortList { items }),
        ..v1::Rule::default()
    })
}

fn endpoint_peers<'a>(
    view: &mut View<'a>,
    item: Item<'a>,
    action: Action,
    namespace: Option<&str>,
) -> Vec<v1::Peer> {
    let mut peers = Vec::new();
    for item in view.list(item) {
        match labels::peer(view, item, namespace) {
            Selected::Endpoints(meant) => peers.extend(meant.peer()),
            Selected::Class(class) => peers.append(&mut entities::peers(class, action)),
        }
    }
    peers
}

/// Of `fromCIDR`: a prefix, or an address alone.
fn plain_block<'a>(view: &mut View<'a>, item: Item<'a>) -> Option<Block<'a>> {
    let text = view.text(item);
    let address = text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let cidr = match address {
        Some(IpNet::V6(net)) if net.addr().to_ipv4_mapped().is_some() => blocks::prefix(view, item),
        Some(net) => Some(net),
        None => blocks::prefix(view, item),
    };
    cidr.map(|cidr| Block { item, cidr, except: Vec::new() })
}

/// Of `fromCIDRSet`.
fn block<'a>(view: &mut View<'a>, item: Item<'a>) -> Option<Block<'a>> {
    let mut fields = view.fields(item, "a CIDR rule");
    let cidr = fields.get("cidr");
    let parsed = cidr.and_then(|cidr| blocks::prefix(view, cidr));
    let except = fields.get("except").map(|item| blocks::exceptions(view, item, parsed)).unwrap_or_default();
    let group = "import does not read CiliumCIDRGroups: write a CidrSet, and `cidrSet` in the policy";
    let grouped = fields.get("cidrGroupRef").is_some() || fields.get("cidrGroupSelector").is_some();
    view.refuse_fields(&mut fields, &[("cidrGroupRef", group), ("cidrGroupSelector", group)]);
    view.finish(&fields);
    if cidr.is_none() && !grouped {
        view.wrong(item, "this CIDR rule has no `cidr`", "here");
    }
    Some(Block { item: cidr?, cidr: parsed?, except })
}
