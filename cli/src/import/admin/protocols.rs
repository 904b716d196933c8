//! `ports` of v1alpha1, and `protocols` of v1alpha2.
use weft_proto::v1::{self, Protocol};

use crate::import::{
    ports,
    view::{Fields, Item, View},
};

/// `portNumber`, `portRange`, `namedPort`.
pub(super) fn ports<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<v1::Port> {
    let mut found = Vec::new();
    for item in some(view, item) {
        let mut fields = view.fields(item, "a port");
        let mut kinds = 0;
        if let Some(item) = fields.get("portNumber") {
            kinds += 1;
            let mut fields = view.fields(item, "portNumber");
            let protocol = ports::protocol(view, &mut fields);
            let port = wanted(view, &mut fields, item, "port").map(|item| ports::number(view, item));
            view.finish(&fields);
            found.push(ports::port(protocol, port, None));
        }
        if let Some(item) = fields.get("portRange") {
            kinds += 1;
            let mut fields = view.fields(item, "portRange");
            let protocol = ports::protocol(view, &mut fields);
            found.push(range(view, &mut fields, item, protocol));
            view.finish(&fields);
        }
        kinds += named(view, &mut fields, "namedPort");
        view.finish(&fields);
        exactly_one(view, item, kinds);
    }
    found
}

/// `tcp`, `udp`, `sctp`, `destinationNamedPort`.
pub(super) fn protocols<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<v1::Port> {
    let mut found = Vec::new();
    for item in some(view, item) {
        let mut fields = view.fields(item, "a protocol");
        let mut kinds = 0;
        for (name, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)] {
            let Some(item) = fields.get(name) else { continue };
            kinds += 1;
            let mut fields = view.fields(item, "a protocol");
            if let Some(item) = wanted(view, &mut fields, item, "destinationPort") {
                found.push(destination(view, item, protocol));
            }
            view.finish(&fields);
        }
        kinds += named(view, &mut fields, "destinationNamedPort");
        view.finish(&fields);
        exactly_one(view, item, kinds);
    }
    found
}

fn destination<'a>(view: &mut View<'a>, item: Item<'a>, protocol: Protocol) -> v1::Port {
    let mut fields = view.fields(item, "a destinationPort");
    let number = fields.get("number").map(|item| ports::number(view, item));
    let range = fields.get("range").map(|item| {
        let mut fields = view.fields(item, "a range");
        let port = range(view, &mut fields, item, protocol);
        view.finish(&fields);
        port
    });
    view.finish(&fields);
    match (number, range) {
        (number @ Some(_), None) => ports::port(protocol, number, None),
        (None, Some(range)) => range,
        _ => {
            view.wrong(item, "a destinationPort is either `number` or `range`", "expected one of them");
            ports::port(protocol, None, None)
        }
    }
}

fn range<'a>(view: &mut View<'a>, fields: &mut Fields<'a>, item: Item<'a>, protocol: Protocol) -> v1::Port {
    let start = wanted(view, fields, item, "start").map(|item| ports::number(view, item));
    let end = wanted(view, fields, item, "end").and_then(|item| ports::end(view, item, start));
    ports::port(protocol, start, end)
}

/// The items, of which there is at least one: an empty list might be read as none and as all.
fn some<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<Item<'a>> {
    if item.is_empty() {
        view.wrong(item, format!("`{}` is empty", item.name.text), "leave it out where every port is meant");
    }
    view.list(item)
}

fn wanted<'a>(
    view: &mut View<'a>,
    fields: &mut Fields<'a>,
    of: Item<'a>,
    name: &'static str,
) -> Option<Item<'a>> {
    let item = fields.get(name);
    if item.is_none() {
        view.wrong(of, format!("`{}` has no `{name}`", of.name.text), "here");
    }
    item
}

fn named<'a>(view: &mut View<'a>, fields: &mut Fields<'a>, name: &'static str) -> usize {
    let Some(item) = fields.get(name) else { return 0 };
    let text = view.text(item);
    ports::refuse_name(view, item, &text);
    1
}

fn exactly_one(view: &mut View<'_>, item: Item<'_>, kinds: usize) {
    if kinds > 1 || (kinds == 0 && item.is_empty()) {
        view.wrong(item, "expected exactly one kind of port", "here");
    }
}
