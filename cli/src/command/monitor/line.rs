//! One event, one line.
use std::{
    fmt::Write as _,
    io::{IsTerminal, stdout},
};

use serde_json::json;
use weft_proto::v1;

use crate::{
    failure::Failure,
    manifest,
    output::{Format, count, labels, note, print},
};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

pub(super) fn event(format: Format, event: &v1::FlowEvent) -> String {
    match format {
        Format::Table => human(event, stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()),
        Format::Json => format!("{}\n", manifest::answer("FlowEvent", event)),
        Format::Yaml => format!("---\n{}", manifest::document(&manifest::answer("FlowEvent", event))),
    }
}

/// Results on stdout for machines; people are told beside.
pub(super) fn lost(format: Format, lost: &v1::MonitorLost) -> Result<(), Failure> {
    let value = || json!({"lost": {"inKernel": lost.in_kernel, "inStream": lost.in_stream}});
    match format {
        Format::Table => {
            if lost.in_kernel > 0 {
                note(&format!("lost: {}, the kernel's buffer was full", events(lost.in_kernel)));
            }
            if lost.in_stream > 0 {
                note(&format!("lost: {}, read too slowly", events(lost.in_stream)));
            }
            Ok(())
        }
        Format::Json => print(&format!("{}\n", value())),
        Format::Yaml => print(&format!("---\n{}", manifest::document(&value()))),
    }
}

fn events(number: u64) -> String {
    count(number, "event", "events")
}

fn human(event: &v1::FlowEvent, colours: bool) -> String {
    let allowed = event.verdict() == v1::FlowVerdict::Allowed;
    let (word, colour) = if allowed { ("allowed", GREEN) } else { ("dropped", RED) };
    let word = if colours { format!("{colour}{word}{PLAIN}") } else { word.to_owned() };
    let mut line = format!("{}  {word}", time(event));
    let protocol = protocol(event.protocol_number);
    let (source, destination) = (end(event.source.as_ref()), end(event.destination.as_ref()));
    if !(source.is_empty() && destination.is_empty()) {
        let (from, to) = ports(event);
        // Writing to a string can't fail.
        let _ = write!(line, "  {protocol:<6}  {source}{from} → {destination}{to}");
    }
    let rules: Vec<_> = event.rules.iter().map(rule).collect();
    let why =
        if allowed { rules.join("; ") } else { [&[event.reason.clone()][..], &rules].concat().join("; ") };
    let at = if event.endpoint.is_empty() { String::new() } else { format!(" of {}", event.endpoint) };
    let _ = write!(line, "  {why}  at {}{at}", event.point);
    if event.packets > 1 {
        let _ = write!(line, "  {} packets", event.packets);
    }
    if let Some(audit) = &event.audit {
        let would = if audit.verdict() == v1::FlowVerdict::Allowed { "allowed" } else { "dropped" };
        let by = audit.rule.as_ref().map(rule).unwrap_or_default();
        let _ = write!(line, "  audit: would be {would} by {by}");
    }
    line.push('\n');
    line
}

/// Of the day, UTC, to the millisecond.
fn time(event: &v1::FlowEvent) -> String {
    let at = event.at.unwrap_or_default();
    let text = prost_types::Timestamp { nanos: 0, ..at }.to_string();
    let clock = text.split_once('T').map_or("", |(_, clock)| clock.trim_end_matches('Z'));
    format!("{clock}.{:03}", at.nanos / 1_000_000)
}

/// `web(app=web) 10.200.1.2`, as much as is known.
fn end(party: Option<&v1::FlowParty>) -> String {
    let Some(party) = party else { return String::new() };
    let labels = if party.labels.is_empty() { String::new() } else { format!("({})", labels(&party.labels)) };
    let who = match (party.endpoint.as_str(), party.entity.as_str(), party.identity) {
        ("", "", 0) => String::new(),
        ("", "", _) if !labels.is_empty() => String::new(),
        ("", "", identity) => format!("identity:{identity}"),
        ("", entity, _) => entity.to_owned(),
        (endpoint, ..) => endpoint.to_owned(),
    };
    let address =
        if party.address.contains(':') { format!("[{}]", party.address) } else { party.address.clone() };
    format!("{who}{labels} {address}").trim().to_owned()
}

fn ports(event: &v1::FlowEvent) -> (String, String) {
    match event.protocol_number {
        6 | 17 | 132 => (format!(":{}", event.source_port), format!(":{}", event.destination_port)),
        1 | 58 => {
            let (kind, code) = (event.destination_port >> 8, event.destination_port & 0xff);
            (String::new(), format!(" type {kind} code {code}"))
        }
        _ => (String::new(), String::new()),
    }
}

fn protocol(number: u32) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("proto/{other}"),
    }
}

/// Which way, and what decided.
pub(crate) fn rule(rule: &v1::FlowRule) -> String {
    let direction = match rule.direction() {
        v1::Direction::Ingress => "ingress",
        v1::Direction::Egress => "egress",
        v1::Direction::Unspecified => "",
    };
    match (rule.policy.as_str(), rule.rule.as_str()) {
        ("", _) => format!("{direction}: no policy"),
        (policy, "") => format!("{direction}: policy {policy}, default deny"),
        (policy, rule) => format!("{direction}: policy {policy}, rule {rule}"),
    }
}

#[cfg(test)]
mod tests;
