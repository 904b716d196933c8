//! Shapings on this node: what the controllers say becomes rates of endpoints and of cgroups. Pure.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use weft_proto::v1::{self, node_shaping::Meant};
use weft_shared::{
    policy::{
        model::Selector,
        parse::{FieldError, selector},
    },
    service::model::Rates,
};

use crate::desired::attachments::Attachment;

/// Who is shaped, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaping {
    pub shaped: Shaped,
    pub rates: Rates,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shaped {
    Endpoints(Selector),
    /// At a path below the root of the node's cgroups.
    Cgroup(PathBuf),
}

/// Shapings by their names.
pub type Desired = BTreeMap<String, Shaping>;

impl TryFrom<&v1::NodeShaping> for Shaping {
    type Error = FieldError;

    fn try_from(sent: &v1::NodeShaping) -> Result<Self, FieldError> {
        let shaped = match &sent.meant {
            Some(Meant::Endpoints(meant)) => {
                // An error is enough to reject it.
                let parsed = selector(meant, "endpoints").map_err(|mut errors| errors.swap_remove(0))?;
                Shaped::Endpoints(parsed)
            }
            Some(Meant::Cgroup(path)) => Shaped::Cgroup(below(path)?),
            None => return Err(FieldError::new("meant", "expected endpoints or a cgroup")),
        };
        let some = |bits: u64| (bits != 0).then_some(bits);
        let rates = Rates {
            connection: some(sent.connection_rate),
            ingress: some(sent.ingress_rate),
            egress: some(sent.egress_rate),
        };
        Ok(Self { shaped, rates })
    }
}

/// A path that leads nowhere else.
fn below(text: &str) -> Result<PathBuf, FieldError> {
    let path = Path::new(text);
    if path.components().all(|component| matches!(component, Component::Normal(_))) {
        return Ok(path.to_owned());
    }
    Err(FieldError::new(
        "cgroup",
        format!("\"{text}\": expected a path below the root of the node's cgroups"),
    ))
}

/// Rates as the kernel has them: bytes a second, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRates {
    pub connection: u32,
    pub ingress: u64,
    pub egress: u64,
}

impl From<Rates> for ByteRates {
    fn from(rates: Rates) -> Self {
        // A rate that is too low to be one is still no freedom.
        let bytes = |bits: Option<u64>| bits.map_or(0, |bits| (bits / 8).max(1));
        Self {
            // All ones is what takes a socket's rate away.
            connection: u32::try_from(bytes(rates.connection)).unwrap_or(u32::MAX).min(u32::MAX - 1),
            ingress: bytes(rates.ingress),
            egress: bytes(rates.egress),
        }
    }
}

/// Of an endpoint: the least of those that select it, and of what it was attached with.
pub fn of_endpoint(desired: &Desired, attachment: &Attachment) -> ByteRates {
    let own = Rates {
        connection: None,
        ingress: attachment.ingress_bits_per_second,
        egress: attachment.egress_bits_per_second,
    };
    let selecting = desired.values().filter(|shaping| match &shaping.shaped {
        Shaped::Endpoints(selector) => selector.matches(&attachment.labels),
        Shaped::Cgroup(_) => false,
    });
    selecting.fold(own, |rates, shaping| rates.and(shaping.rates)).into()
}

/// Rates of connections, in bytes a second, by the paths of the cgroups.
pub fn of_cgroups(desired: &Desired) -> BTreeMap<PathBuf, u32> {
    let mut least: BTreeMap<PathBuf, Rates> = BTreeMap::new();
    for shaping in desired.values() {
        if let Shaped::Cgroup(path) = &shaping.shaped {
            let rates = least.entry(path.clone()).or_default();
            *rates = rates.and(shaping.rates);
        }
    }
    let rates = least.into_iter().map(|(path, rates)| (path, ByteRates::from(rates).connection));
    rates.filter(|(_, rate)| *rate != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaping(meant: Meant, connection: u64, egress: u64) -> Shaping {
        let sent = v1::NodeShaping {
            meant: Some(meant),
            connection_rate: connection,
            ingress_rate: 0,
            egress_rate: egress,
        };
        Shaping::try_from(&sent).expect("it is right")
    }

    fn endpoints(labels: &[(&str, &str)]) -> Meant {
        let match_labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Meant::Endpoints(v1::Selector { match_labels: match_labels.collect(), ..v1::Selector::default() })
    }

    fn attachment(labels: &[(&str, &str)], egress: Option<u64>) -> Attachment {
        Attachment {
            name: "web".to_owned(),
            instance: String::new(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            interface: "weft1".to_owned(),
            ifindex: 7,
            netns: String::new(),
            ours: true,
            peer: true,
            container_id: String::new(),
            address4: None,
            address6: None,
            mac: [0; 6],
            gateway_mac: [0; 6],
            ingress_bits_per_second: None,
            egress_bits_per_second: egress,
            accepted: None,
            lent_identity: None,
        }
    }

    #[test]
    fn the_least_rate_of_each_kind_counts() {
        let desired = Desired::from([
            ("all".to_owned(), shaping(endpoints(&[]), 8_000_000, 80_000_000)),
            ("web".to_owned(), shaping(endpoints(&[("app", "web")]), 16_000_000, 8_000_000)),
            ("db".to_owned(), shaping(endpoints(&[("app", "db")]), 800_000, 800_000)),
            ("node".to_owned(), shaping(Meant::Cgroup(String::new()), 64_000, 0)),
        ]);
        let web = of_endpoint(&desired, &attachment(&[("app", "web")], None));
        assert_eq!(web, ByteRates { connection: 1_000_000, ingress: 0, egress: 1_000_000 });
        let limited = of_endpoint(&desired, &attachment(&[("app", "web")], Some(80_000)));
        assert_eq!(limited.egress, 10_000, "what it was attached with is less");
        assert_eq!(of_endpoint(&Desired::new(), &attachment(&[], None)), ByteRates::default());
    }

    #[test]
    fn cgroups_have_the_least_rate_of_their_path() {
        let cgroup = |path: &str, rate| shaping(Meant::Cgroup(path.to_owned()), rate, 0);
        let desired = Desired::from([
            ("a".to_owned(), cgroup("system.slice", 8_000_000)),
            ("b".to_owned(), cgroup("system.slice", 800_000)),
            ("c".to_owned(), cgroup("", 80_000_000)),
            ("d".to_owned(), shaping(endpoints(&[]), 64_000, 0)),
        ]);
        let expected = BTreeMap::from([("".into(), 10_000_000), ("system.slice".into(), 100_000)]);
        assert_eq!(of_cgroups(&desired), expected);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for meant in [None, Some(Meant::Cgroup("/etc".to_owned())), Some(Meant::Cgroup("a/../..".to_owned()))]
        {
            let sent = v1::NodeShaping { meant, connection_rate: 1, ..v1::NodeShaping::default() };
            assert!(Shaping::try_from(&sent).is_err(), "{sent:?}");
        }
    }

    #[test]
    fn no_rate_of_connections_is_taken_for_none() {
        let most = ByteRates::from(Rates { connection: Some(u64::MAX), ..Rates::default() });
        assert_eq!(most.connection, u32::MAX - 1);
        assert_eq!(ByteRates::from(Rates { egress: Some(1), ..Rates::default() }).egress, 1);
    }
}
