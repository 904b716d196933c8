//! `toPorts` without what is inside of the connection, and `icmps`.
use weft_proto::v1::{self, Protocol};

use crate::{
    import::{
        ports::{self, PROTOCOLS},
        view::{Fields, Item, View},
    },
    manifest::tree::Value,
};

const L7: &str = "Weft judges addresses, labels and ports, not what is said inside of a connection";

/// What `toPorts` lists. `deny`: of a rule that denies, which has no more than ports.
pub(super) fn to_ports<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<v1::Port> {
    let mut found = Vec::new();
    for item in view.list(item) {
        let mut fields = view.fields(item, "toPorts");
        match fields.get("ports") {
            Some(item) if !item.is_empty() => {
                for item in view.list(item) {
                    found.extend(port(view, item));
                }
            }
            _ => view.wrong(item, "these `toPorts` name no port", "expected `ports`"),
        }
        if fields.get("rules").is_some_and(|item| !item.is_empty()) {
            view.refuse_fields(&mut fields, &[("rules", L7)]);
        }
        let refused = [("terminatingTLS", L7), ("originatingTLS", L7), ("serverNames", L7), ("listener", L7)];
        view.refuse_fields(&mut fields, &refused);
        view.finish(&fields);
    }
    found
}

fn port<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<v1::Port> {
    let mut fields = view.fields(item, "a port");
    let protocols = protocols(view, &mut fields);
    let Some(first) = fields.get("port") else {
        view.wrong(item, "this port has no `port`", "here");
        return Vec::new();
    };
    let text = view.text(first);
    if text.len() > 1 && text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()) {
        view.wrong(first, format!("port {text} is octal"), "expected decimal digits without a leading zero");
    }
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit());
    let Ok(number) = text.parse::<u16>() else {
        match numeric {
            // Whatever else is wrong with it was said where it was read.
            true if text.is_empty() => {}
            true => view.wrong(first, format!("port {text} is out of range"), "expected 0 to 65535"),
            false => ports::refuse_name(view, first, &text),
        }
        fields.leave(&["endPort"]);
        view.finish(&fields);
        return Vec::new();
    };
    // Absent and 0: no range.
    let end = fields.get("endPort").filter(|item| !is_zero(item));
    let every = number == 0;
    if every && protocols.len() > 1 {
        let help = "write the protocol, or leave `toPorts` out where every protocol is meant";
        view.refuse(first, "port 0 of any protocol may mean every protocol", help);
    }
    let first = (!every).then_some(u32::from(number));
    let end = end.and_then(|item| ports::end(view, item, first));
    view.finish(&fields);
    protocols.iter().map(|protocol| ports::port(*protocol, first, end)).collect()
}

fn is_zero(item: &Item<'_>) -> bool {
    matches!(&item.node.value, Value::Scalar { text, plain: true } if text == "0")
}

/// Any protocol, which is also what absence means: all that have ports.
fn protocols<'a>(view: &mut View<'a>, fields: &mut Fields<'a>) -> Vec<Protocol> {
    let all = PROTOCOLS.map(|(_, protocol)| protocol).to_vec();
    let Some(item) = fields.get("protocol") else { return all };
    let word = view.text(item);
    if word.eq_ignore_ascii_case("any") {
        return all;
    }
    if let Some((_, protocol)) = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word)) {
        return vec![*protocol];
    }
    let help = "import knows TCP, UDP, SCTP and ANY; ICMP by type is `icmps`";
    view.refuse(item, format!("the protocol `{word}` has no ports"), help);
    Vec::new()
}

/// Types of ICMP by number or by name.
pub(super) fn icmps<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<v1::Port> {
    let mut found = Vec::new();
    for item in view.list(item) {
        let mut fields = view.fields(item, "icmps");
        match fields.get("fields") {
            Some(item) if !item.is_empty() => {
                for item in view.list(item) {
                    found.extend(icmp(view, item));
                }
            }
            _ => view.wrong(item, "these `icmps` name no type", "expected `fields`"),
        }
        view.finish(&fields);
    }
    found
}

fn icmp<'a>(view: &mut View<'a>, item: Item<'a>) -> Option<v1::Port> {
    let mut fields = view.fields(item, "a type of ICMP");
    let families = [("IPv4", Protocol::Icmp), ("IPv6", Protocol::Icmpv6)];
    let family = fields.get("family");
    let protocol = family.map_or(Some(Protocol::Icmp), |item| view.one_of(item, &families));
    let Some(kind) = fields.get("type") else {
        view.wrong(item, "this field of `icmps` has no `type`", "here");
        return None;
    };
    view.finish(&fields);
    let r#type = match &kind.node.value {
        Value::Scalar { text, plain: true }
            if text.starts_with(|first: char| first.is_ascii_digit() || first == '-') =>
        {
            view.number(kind, u8::MAX.into())
        }
        _ => {
            let word = view.text(kind);
            let names: &[(&str, u32)] = match protocol {
                Some(Protocol::Icmpv6) => &ICMPV6_TYPES,
                _ => &ICMP_TYPES,
            };
            match word.parse::<u8>() {
                // In quotes.
                Ok(number) => number.into(),
                Err(_) => view.one_of(kind, names)?,
            }
        }
    };
    Some(v1::Port { protocol: protocol?.into(), r#type: Some(r#type), ..v1::Port::default() })
}

/// As Cilium calls them; numbers of the IANA registry "ICMP Type Numbers".
const ICMP_TYPES: [(&str, u32); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// The registry "ICMPv6 type Numbers".
const ICMPV6_TYPES: [(&str, u32); 13] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
];
