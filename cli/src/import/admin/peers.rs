//! Who a rule is about: pods by their namespaces, nodes, and blocks of addresses.
use weft_proto::v1;

use crate::{
    import::{
        blocks::{self, About, Block},
        selector::{self, Meant},
        view::{Fields, Item, View},
    },
    manifest::tree::Value,
};

const NO_NAMES: &str = "Weft judges by address: a name has other addresses at each place and time";

/// `namespaces` and `pods`, each if it is there.
pub(super) fn pods<'a>(view: &mut View<'a>, fields: &mut Fields<'a>) -> Vec<Meant> {
    let mut found = Vec::new();
    if let Some(item) = fields.get("namespaces") {
        found.push(selector::namespaces(view, item));
    }
    if let Some(item) = fields.get("pods") {
        let mut fields = view.fields(item, "pods");
        let namespaces = fields.get("namespaceSelector");
        let meant = namespaces.map_or(Meant::These(Vec::new()), |item| selector::namespaces(view, item));
        let pods = fields.get("podSelector").map(|item| selector::pods(view, item)).unwrap_or_default();
        view.finish(&fields);
        found.push(meant.and(pods));
    }
    found
}

pub(super) fn list<'a>(view: &mut View<'a>, item: Item<'a>, egress: bool, allows: bool) -> v1::PeerList {
    let mut items = Vec::new();
    let mut found = Vec::new();
    for item in view.list(item) {
        let mut fields = view.fields(item, "a peer");
        let meant = pods(view, &mut fields);
        let mut kinds = meant.len();
        items.extend(meant.into_iter().filter_map(Meant::peer));
        if egress {
            if let Some(nodes) = fields.get("nodes") {
                kinds += 1;
                let requirements = selector::nodes(view, nodes);
                items.push(v1::Peer { nodes: Some(selector::selector(requirements)), ..v1::Peer::default() });
            }
            if let Some(networks) = fields.get("networks") {
                kinds += 1;
                for item in view.list(networks) {
                    let cidr = blocks::prefix(view, item);
                    found.extend(cidr.map(|cidr| Block { item, cidr, except: Vec::new() }));
                }
            }
            kinds += usize::from(fields.get("domainNames").is_some());
            view.refuse_fields(&mut fields, &[("domainNames", NO_NAMES)]);
        }
        view.finish(&fields);
        // An unknown field was refused already.
        let known = matches!(&item.node.value, Value::Mapping(entries) if entries.len() == kinds);
        if kinds != 1 && (known || kinds > 1) {
            view.wrong(item, "a peer has exactly one kind", "expected one field");
        }
    }
    items.extend(blocks::peers(view, &found, About::Everyone, allows));
    v1::PeerList { items }
}
