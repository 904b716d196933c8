//! Failsafe entries, one a line.
use weft_proto::v1;

use super::table;

/// `heading`, and a table of the entries; nothing of them is said, too.
pub(crate) fn failsafe(heading: &str, entries: &[v1::Failsafe]) -> String {
    if entries.is_empty() {
        return format!("{heading}: none\n");
    }
    let rows = entries.iter().map(|entry| {
        let direction = match entry.direction() {
            v1::Direction::Ingress => "in",
            v1::Direction::Egress => "out",
            v1::Direction::Unspecified => "",
        };
        let protocol = match (entry.protocol(), entry.protocol_number) {
            (v1::Protocol::Unspecified, Some(number)) => format!("proto/{number}"),
            (named, _) => named.as_str_name().trim_start_matches("PROTOCOL_").to_lowercase(),
        };
        let ports = match (entry.port, entry.end_port) {
            (None, _) => "all".to_owned(),
            (Some(port), None) => port.to_string(),
            (Some(port), Some(end)) => format!("{port}-{end}"),
        };
        let cidrs = if entry.cidrs.is_empty() { "any".to_owned() } else { entry.cidrs.join(",") };
        [direction.to_owned(), protocol, ports, cidrs]
    });
    format!("{heading}:\n{}", table(["DIRECTION", "PROTOCOL", "PORTS", "ADDRESSES"], rows))
}
