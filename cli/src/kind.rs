//! Kinds of resources as people type them: `policy`, `policies`, `cidrset`, `CidrSet`, `cidr-set`.
use weft_proto::v1::Kind;

use crate::manifest::nearest;

/// A kind of resource on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KindArgument(pub Kind);

const KINDS: [(Kind, &str, &str); 12] = [
    (Kind::Node, "Node", "nodes"),
    (Kind::Endpoint, "Endpoint", "endpoints"),
    (Kind::Identity, "Identity", "identities"),
    (Kind::CidrSet, "CidrSet", "cidrsets"),
    (Kind::Policy, "Policy", "policies"),
    (Kind::Service, "Service", "services"),
    (Kind::Prefilter, "Prefilter", "prefilters"),
    (Kind::EgressGateway, "EgressGateway", "egressgateways"),
    (Kind::Bundle, "Bundle", "bundles"),
    (Kind::Rollout, "Rollout", "rollouts"),
    (Kind::FleetConfig, "FleetConfig", "fleetconfigs"),
    (Kind::Shaping, "Shaping", "shapings"),
];

/// As written after `kind:` in a manifest.
pub(crate) fn name(kind: Kind) -> &'static str {
    KINDS.iter().find(|(known, ..)| *known == kind).map_or("?", |(_, name, _)| name)
}

/// For sentences: "no policies found".
pub(crate) fn plural(kind: Kind) -> &'static str {
    KINDS.iter().find(|(known, ..)| *known == kind).map_or("?", |(_, _, plural)| plural)
}

/// For clap.
pub(crate) fn parse(text: &str) -> Result<KindArgument, String> {
    let folded = text.replace(['-', '_'], "").to_ascii_lowercase();
    let found =
        KINDS.iter().find(|(_, name, plural)| folded == name.to_ascii_lowercase() || folded == *plural);
    if let Some((kind, ..)) = found {
        return Ok(KindArgument(*kind));
    }
    let near = nearest(text, KINDS.iter().map(|(_, name, _)| *name));
    let near = near.map(|near| format!(", did you mean {near}")).unwrap_or_default();
    let all = KINDS.map(|(_, name, _)| name).join(", ");
    Err(format!("no such kind{near}; kinds: {all}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_taken_in_any_spelling() {
        for text in ["policy", "Policy", "policies", "POLICIES"] {
            assert_eq!(parse(text), Ok(KindArgument(Kind::Policy)), "{text}");
        }
        assert_eq!(parse("cidr-set"), Ok(KindArgument(Kind::CidrSet)));
        assert_eq!(parse("fleet_config"), Ok(KindArgument(Kind::FleetConfig)));
        assert_eq!(parse("identities"), Ok(KindArgument(Kind::Identity)));
        assert!(parse("polices").unwrap_err().contains("did you mean Policy"));
    }

    #[test]
    fn every_kind_of_the_schema_can_be_named() {
        for number in 1..=12 {
            let kind = Kind::try_from(number).unwrap();
            assert_eq!(parse(name(kind)), Ok(KindArgument(kind)));
        }
        assert!(Kind::try_from(13).is_err(), "a new kind needs a name here");
    }
}
