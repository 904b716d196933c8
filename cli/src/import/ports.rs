//! Ports of protocols that have them.
use weft_proto::v1::{self, Protocol};

use super::view::{Fields, Item, View};

pub(super) const PROTOCOLS: [(&str, Protocol); 3] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];

const NAMED: &str = "Weft has no names of ports, because the endpoints behind one rule may mean different numbers: \
                     write the number";

/// One port, a range, or (without `port`) all of the protocol.
pub(super) fn port(protocol: Protocol, port: Option<u32>, end_port: Option<u32>) -> v1::Port {
    // A range of one is one.
    let end_port = end_port.filter(|end| Some(*end) != port);
    v1::Port { protocol: protocol.into(), port, end_port, ..v1::Port::default() }
}

pub(super) fn list(ports: Vec<v1::Port>) -> v1::PortList {
    v1::PortList { items: ports }
}

/// TCP where none is written.
pub(super) fn protocol<'a>(view: &mut View<'a>, fields: &mut Fields<'a>) -> Protocol {
    let item = fields.get("protocol");
    item.and_then(|item| view.one_of(item, &PROTOCOLS)).unwrap_or(Protocol::Tcp)
}

/// 1 to 65535.
pub(super) fn number<'a>(view: &mut View<'a>, item: Item<'a>) -> u32 {
    let before = view.reader.problems.len();
    let number = view.number(item, u16::MAX.into());
    if number == 0 && view.reader.problems.len() == before {
        view.wrong(item, "a port is not 0", "expected 1 to 65535");
    }
    number
}

/// The last port of a range that begins with `first`.
pub(super) fn end<'a>(view: &mut View<'a>, item: Item<'a>, first: Option<u32>) -> Option<u32> {
    let Some(first) = first else {
        view.wrong(
            item,
            format!("`{}` goes with the first port", item.name.text),
            "no first port is written",
        );
        return None;
    };
    let last = number(view, item);
    if last != 0 && last < first {
        view.wrong(item, format!("{last} is below port {first}"), "expected the end of a range");
    }
    Some(last)
}

pub(super) fn refuse_name(view: &mut View<'_>, item: Item<'_>, name: &str) {
    view.refuse(item, format!("named port `{name}`"), NAMED);
}
