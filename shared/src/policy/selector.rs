//! Label selectors, with the meaning they have in Kubernetes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    hash::Hasher as _,
};

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// Labels of an endpoint, a node or a resource.
pub type Labels = BTreeMap<String, String>;

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key is there with one of the values.
    In {
        key: String,
        values: BTreeSet<String>,
    },
    /// The key is not there, or has none of the values.
    NotIn {
        key: String,
        values: BTreeSet<String>,
    },
    Exists {
        key: String,
    },
    DoesNotExist {
        key: String,
    },
}

impl Requirement {
    /// The label that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::In { key, .. }
            | Self::NotIn { key, .. }
            | Self::Exists { key }
            | Self::DoesNotExist { key } => key,
        }
    }

    /// Whether labels meet it.
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In { key, values } => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn { key, values } => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists { key } => labels.contains_key(key),
            Self::DoesNotExist { key } => !labels.contains_key(key),
        }
    }
}

/// All requirements must hold; none at all selects everything. Sorted and without repeats, so that selectors which are
/// written differently but say the same requirements are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: BTreeSet<Requirement>,
}

impl Selector {
    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Self { requirements: requirements.into_iter().collect() }
    }

    /// What must hold.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter()
    }

    /// Whether labels meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }

    /// A label that everything it selects has, with one of these values: what an index can find it by. `None`: no label is
    /// demanded by value.
    pub fn anchor(&self) -> Option<(&str, &BTreeSet<String>)> {
        let by_value = self.requirements.iter().filter_map(|requirement| match requirement {
            Requirement::In { key, values } => Some((key.as_str(), values)),
            _ => None,
        });
        by_value.min_by_key(|(_, values)| values.len())
    }

    /// A key of which so much is demanded that no labels can meet it; then the selector selects nothing.
    pub fn contradiction(&self) -> Option<&str> {
        let keys: BTreeSet<&str> = self.requirements.iter().map(Requirement::key).collect();
        keys.into_iter().find(|key| self.is_contradicted(key))
    }

    fn is_contradicted(&self, key: &str) -> bool {
        let mut allowed: Option<BTreeSet<&str>> = None;
        let mut refused: BTreeSet<&str> = BTreeSet::new();
        let (mut must_be_there, mut must_not_be_there) = (false, false);
        for requirement in self.requirements.iter().filter(|requirement| requirement.key() == key) {
            match requirement {
                Requirement::In { values, .. } => {
                    must_be_there = true;
                    let values = values.iter().map(String::as_str);
                    allowed = Some(match &allowed {
                        None => values.collect(),
                        Some(allowed) => values.filter(|value| allowed.contains(value)).collect(),
                    });
                }
                Requirement::NotIn { values, .. } => refused.extend(values.iter().map(String::as_str)),
                Requirement::Exists { .. } => must_be_there = true,
                Requirement::DoesNotExist { .. } => must_not_be_there = true,
            }
        }
        (must_be_there && must_not_be_there) || allowed.is_some_and(|allowed| allowed.is_subset(&refused))
    }

    /// Name of the identity set that this selector makes: a frozen hash (SipHash-1-3, 128 bits, key 0) of its canonical
    /// text, in hexadecimal. Equal selectors have equal names on every controller and node, of every version.
    pub fn set_name(&self) -> String {
        let mut hasher = SipHasher13::new();
        hasher.write(self.canonical().as_bytes());
        format!("{:032x}", hasher.finish128().as_u128())
    }

    fn canonical(&self) -> String {
        let mut text = String::new();
        for requirement in &self.requirements {
            let (operator, key, values) = match requirement {
                Requirement::In { key, values } => ("in", key, Some(values)),
                Requirement::NotIn { key, values } => ("notin", key, Some(values)),
                Requirement::Exists { key } => ("exists", key, None),
                Requirement::DoesNotExist { key } => ("absent", key, None),
            };
            let _ = write!(text, "{operator} {key}");
            for value in values.into_iter().flatten() {
                // Label syntax has neither '=' nor line ends, so two texts are equal only for equal requirements.
                let _ = write!(text, "={value}");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn values(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let key = || "app".to_owned();
        let web = labels(&[("app", "web")]);
        let none = labels(&[]);
        let within = Requirement::In { key: key(), values: values(&["web", "api"]) };
        assert!(within.holds(&web) && !within.holds(&none));
        let outside = Requirement::NotIn { key: key(), values: values(&["web"]) };
        assert!(!outside.holds(&web) && outside.holds(&none));
        assert!(
            Requirement::Exists { key: key() }.holds(&web)
                && !Requirement::Exists { key: key() }.holds(&none)
        );
        let absent = Requirement::DoesNotExist { key: key() };
        assert!(!absent.holds(&web) && absent.holds(&none));
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert!(Selector::default().matches(&labels(&[])));
        assert!(Selector::default().matches(&labels(&[("a", "b")])));
    }

    #[test]
    fn a_selector_that_no_labels_can_meet_names_the_key() {
        let key = || "app".to_owned();
        let is = |list: &[&str]| Requirement::In { key: key(), values: values(list) };
        let is_not = |list: &[&str]| Requirement::NotIn { key: key(), values: values(list) };
        let (exists, absent) = (Requirement::Exists { key: key() }, Requirement::DoesNotExist { key: key() });
        let impossible = [
            vec![is(&["web"]), is_not(&["web", "api"])],
            vec![is(&["web"]), is(&["api"])],
            vec![is(&["web"]), absent.clone()],
            vec![exists.clone(), absent.clone()],
            vec![is(&["web", "api"]), is(&["web", "db"]), is_not(&["web"])],
        ];
        for requirements in impossible {
            assert_eq!(Selector::new(requirements.clone()).contradiction(), Some("app"), "{requirements:?}");
        }
        let possible = [
            vec![],
            vec![is(&["web", "api"]), is_not(&["web"])],
            vec![is_not(&["web"]), absent],
            vec![is_not(&["web"]), exists.clone()],
            vec![exists, Requirement::DoesNotExist { key: "env".to_owned() }],
        ];
        for requirements in possible {
            assert_eq!(Selector::new(requirements.clone()).contradiction(), None, "{requirements:?}");
        }
    }

    #[test]
    fn set_names_are_frozen_and_differ_by_meaning() {
        let web = Selector::new([Requirement::In { key: "app".into(), values: values(&["web"]) }]);
        let not_web = Selector::new([Requirement::NotIn { key: "app".into(), values: values(&["web"]) }]);
        assert_eq!(web.set_name(), web.clone().set_name());
        assert_ne!(web.set_name(), not_web.set_name());
        assert_eq!(Selector::default().set_name(), "b91c5ed031fb33032134935d61d9b40d");
    }
}
