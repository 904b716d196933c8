//! Shapings.

use std::ops::RangeInclusive;

use weft_proto::v1;

use super::super::model::{Rates, Shaped, Shaping};
use crate::policy::parse::{Errors, FieldError, FieldWarning, metadata, selector::selector_of};

const UNITS: [(&str, u64); 4] = [("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000), ("bit", 1)];

const LEAST: (u64, &str) = (64_000, "64kbit");
/// What `SO_MAX_PACING_RATE` takes where programs set it: 32 bits of bytes a second.
const CONNECTION_MOST: (u64, &str) = (34_000_000_000, "34Gbit");
const ENDPOINT_MOST: (u64, &str) = (100_000_000_000, "100Gbit");

/// Names of one path.
const CGROUP_NAMES_MAX: usize = 8;
/// Bytes of one name (`NAME_MAX`).
const CGROUP_NAME_BYTES: RangeInclusive<usize> = 1..=255;

/// A shaping, and what of it can hardly be meant.
pub fn shaping(message: &v1::Shaping) -> Result<(Shaping, Vec<FieldWarning>), Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata(&mut errors, message.metadata.as_ref());
    let shaped = shaped(&mut errors, message);
    let rates = rates(&mut errors, message);
    if let Some(Shaped::Nodes { .. }) = shaped {
        for (field, given) in [("ingressRate", &message.ingress_rate), ("egressRate", &message.egress_rate)] {
            if !given.is_empty() {
                errors.add(field, "is of endpoints: processes of nodes have a connectionRate alone");
            }
        }
    }
    let shaping = (|| Some(Shaping { name: name?, shaped: shaped?, rates: rates? }))();
    errors.finish_with_warnings(shaping)
}

fn shaped(errors: &mut Errors, message: &v1::Shaping) -> Option<Shaped> {
    match (&message.endpoints, &message.nodes) {
        (Some(endpoints), None) => {
            if !message.cgroup.is_empty() {
                errors.add("cgroup", "is of nodes: endpoints are selected by their labels");
            }
            selector_of(errors, endpoints, "endpoints").map(Shaped::Endpoints)
        }
        (None, Some(nodes)) => {
            let nodes = selector_of(errors, nodes, "nodes");
            let cgroup = errors.take(cgroup(&message.cgroup));
            nodes.zip(cgroup).map(|(nodes, cgroup)| Shaped::Nodes { nodes, cgroup })
        }
        (Some(_), Some(_)) => {
            errors.add("nodes", "expected either endpoints or nodes");
            None
        }
        (None, None) => {
            errors.add("endpoints", "expected a selector of endpoints, or of nodes");
            None
        }
    }
}

fn rates(errors: &mut Errors, message: &v1::Shaping) -> Option<Rates> {
    let mut rate = |text: &str, field: &str, most| match text {
        "" => Some(None),
        text => errors.take(rate(text, field, most)).map(Some),
    };
    let connection = rate(&message.connection_rate, "connectionRate", CONNECTION_MOST);
    let ingress = rate(&message.ingress_rate, "ingressRate", ENDPOINT_MOST);
    let egress = rate(&message.egress_rate, "egressRate", ENDPOINT_MOST);
    let rates = Rates { connection: connection?, ingress: ingress?, egress: egress? };
    if rates == Rates::default() {
        errors.add("connectionRate", "expected at least one of connectionRate, ingressRate and egressRate");
        return None;
    }
    Some(rates)
}

/// Bits a second.
fn rate(text: &str, path: &str, (most, most_text): (u64, &str)) -> Result<u64, FieldError> {
    let (least, least_text) = LEAST;
    let expected = format!(
        "expected a whole number and bit, kbit, Mbit or Gbit, such as 100Mbit, from {least_text} to {most_text}"
    );
    let parsed = UNITS.iter().find_map(|(unit, bits)| {
        let number = text.strip_suffix(unit)?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(*bits)
    });
    let within = parsed.filter(|bits| (least..=most).contains(bits));
    within.ok_or_else(|| FieldError::new(path, format!("\"{text}\": {expected}")))
}

/// Empty: the root.
fn cgroup(text: &str) -> Result<String, FieldError> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let is_name = |name: &str| {
        CGROUP_NAME_BYTES.contains(&name.len()) && name != "." && name != ".." && !name.contains('\0')
    };
    let names = text.split('/');
    if names.clone().count() > CGROUP_NAMES_MAX || !names.clone().all(is_name) {
        let expected = format!(
            "expected a path below the root of the node's cgroups, such as system.slice/backup.service, of at most \
             {CGROUP_NAMES_MAX} names"
        );
        return Err(FieldError::new("cgroup", format!("\"{text}\": {expected}")));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_endpoints() -> v1::Shaping {
        v1::Shaping {
            metadata: Some(v1::Metadata { name: "batch".to_owned(), ..v1::Metadata::default() }),
            endpoints: Some(v1::Selector::default()),
            connection_rate: "20Mbit".to_owned(),
            ..v1::Shaping::default()
        }
    }

    fn of_nodes() -> v1::Shaping {
        let nodes = Some(v1::Selector::default());
        v1::Shaping {
            endpoints: None,
            nodes,
            cgroup: "system.slice/backup.service".to_owned(),
            ..of_endpoints()
        }
    }

    fn wrong(message: &v1::Shaping) -> String {
        let errors = shaping(message).expect_err("it is wrong");
        errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn rates_are_bits_a_second_by_powers_of_a_thousand() {
        for (text, bits) in
            [("64000bit", 64_000), ("64kbit", 64_000), ("100Mbit", 100_000_000), ("34Gbit", 34_000_000_000)]
        {
            let message = v1::Shaping { connection_rate: text.to_owned(), ..of_endpoints() };
            let (parsed, _) = shaping(&message).expect("it is right");
            assert_eq!(parsed.rates, Rates { connection: Some(bits), ..Rates::default() });
        }
        let most = v1::Shaping { egress_rate: "100Gbit".to_owned(), ..of_endpoints() };
        assert_eq!(shaping(&most).expect("it is right").0.rates.egress, Some(100_000_000_000));
    }

    #[test]
    fn what_is_no_rate_is_named_with_what_was_expected() {
        let texts = [
            "100", "Mbit", "1.5Mbit", "-1Mbit", "+1Mbit", "1 Mbit", "100mbit", "100MBit", "63kbit", "35Gbit",
        ];
        for text in texts.into_iter().chain(["18446744073709551615Gbit"]) {
            let message = v1::Shaping { connection_rate: text.to_owned(), ..of_endpoints() };
            let expected = format!(
                "connectionRate: \"{text}\": expected a whole number and bit, kbit, Mbit or Gbit, such as 100Mbit, from 64kbit to 34Gbit"
            );
            assert_eq!(wrong(&message), expected);
        }
        let message = v1::Shaping { ingress_rate: "101Gbit".to_owned(), ..of_endpoints() };
        assert!(wrong(&message).starts_with("ingressRate: \"101Gbit\""));
    }

    #[test]
    fn a_shaping_is_of_endpoints_or_of_nodes_and_has_a_rate() {
        let nobody = v1::Shaping { endpoints: None, ..of_endpoints() };
        assert_eq!(wrong(&nobody), "endpoints: expected a selector of endpoints, or of nodes");
        let both = v1::Shaping { nodes: Some(v1::Selector::default()), ..of_endpoints() };
        assert_eq!(wrong(&both), "nodes: expected either endpoints or nodes");
        let none = v1::Shaping { connection_rate: String::new(), ..of_endpoints() };
        let expected = "connectionRate: expected at least one of connectionRate, ingressRate and egressRate";
        assert_eq!(wrong(&none), expected);
        let cgroup = v1::Shaping { cgroup: "user.slice".to_owned(), ..of_endpoints() };
        assert_eq!(wrong(&cgroup), "cgroup: is of nodes: endpoints are selected by their labels");
        let egress = v1::Shaping { egress_rate: "1Mbit".to_owned(), ..of_nodes() };
        assert_eq!(
            wrong(&egress),
            "egressRate: is of endpoints: processes of nodes have a connectionRate alone"
        );
    }

    #[test]
    fn a_cgroup_is_below_the_root() {
        let (parsed, _) = shaping(&of_nodes()).expect("it is right");
        let Shaped::Nodes { cgroup, .. } = parsed.shaped else { panic!("{parsed:?}") };
        assert_eq!(cgroup, "system.slice/backup.service");
        for path in ["/system.slice", "system.slice/", "a//b", "..", "a/../b", "./a", "1/2/3/4/5/6/7/8/9"] {
            let message = v1::Shaping { cgroup: path.to_owned(), ..of_nodes() };
            assert!(wrong(&message).starts_with(&format!("cgroup: \"{path}\": expected a path below")));
        }
    }
}
