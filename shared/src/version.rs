//! Releases and how far apart they may be. Controllers and nodes one minor version apart work together, so that a fleet
//! is upgraded piece by piece: controllers first, then nodes.
use std::{fmt, str::FromStr};

/// A release, as far as it matters to who it works with: patches never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a version, expected MAJOR.MINOR.PATCH")]
pub struct NotAVersion(String);

/// Where a node stands to its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    Same,
    /// As it is in the middle of an upgrade.
    NodeOlder,
    /// It works, but in the wrong order: the controller may not know what the node reports.
    NodeNewer,
}

/// Too far apart to work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is {node} and the controller {controller}, they work at most one minor version apart: upgrade the {}",
    if node < controller { "node" } else { "controller" })]
pub struct TooFarApart {
    node: Release,
    controller: Release,
}

impl FromStr for Release {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let wrong = || NotAVersion(text.to_owned());
        // What comes after the numbers names a build.
        let numbers = text.split(['-', '+']).next().unwrap_or_default();
        let parts: Vec<u32> =
            numbers.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        match parts[..] {
            [major, minor, _patch] => Ok(Self { major, minor }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Skew {
    pub fn between(node: Release, controller: Release) -> Result<Self, TooFarApart> {
        if node.major != controller.major || node.minor.abs_diff(controller.minor) > 1 {
            return Err(TooFarApart { node, controller });
        }
        Ok(match node.cmp(&controller) {
            std::cmp::Ordering::Equal => Self::Same,
            std::cmp::Ordering::Less => Self::NodeOlder,
            std::cmp::Ordering::Greater => Self::NodeNewer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(node: &str, controller: &str) -> Result<Skew, String> {
        let release = |text: &str| text.parse::<Release>().unwrap();
        Skew::between(release(node), release(controller)).map_err(|error| error.to_string())
    }

    #[test]
    fn one_minor_version_apart_works_and_more_says_which_side_to_upgrade() {
        assert_eq!(between("0.3.0", "0.3.9"), Ok(Skew::Same));
        assert_eq!(between("0.2.7", "0.3.0"), Ok(Skew::NodeOlder));
        assert_eq!(between("0.4.0-rc.1", "0.3.0"), Ok(Skew::NodeNewer));
        let apart = "they work at most one minor version apart";
        assert_eq!(
            between("0.1.0", "0.3.0"),
            Err(format!("the node is 0.1 and the controller 0.3, {apart}: upgrade the node"))
        );
        assert_eq!(
            between("0.5.0", "0.3.0"),
            Err(format!("the node is 0.5 and the controller 0.3, {apart}: upgrade the controller"))
        );
        assert!(between("1.0.0", "0.9.0").is_err(), "a major version is never near");
    }

    #[test]
    fn what_is_not_a_version_is_refused() {
        for text in ["", "1", "1.2", "1.2.x", "v1.2.3", "1.2.3.4", "1.2.99999999999"] {
            assert_eq!(text.parse::<Release>(), Err(NotAVersion(text.to_owned())));
        }
    }
}
