//! Label selectors. The labels of a pod, of its namespace and of nodes are three worlds in Kubernetes; here endpoints have
//! those of the first two, and keys keep them apart.
use weft_proto::v1::{self, LabelOperator, LabelRequirement};
use weft_shared::policy::{model::IdentityLabels, parse};

use super::{
    namespaces::NAME_LABEL,
    view::{Item, View},
};
use crate::manifest::tree::Value;

const OPERATORS: [(&str, LabelOperator); 4] = [
    ("In", LabelOperator::In),
    ("NotIn", LabelOperator::NotIn),
    ("Exists", LabelOperator::Exists),
    ("DoesNotExist", LabelOperator::DoesNotExist),
];

/// A requirement as written, and where.
pub(super) struct Written<'a> {
    pub(super) item: Item<'a>,
    pub(super) requirement: LabelRequirement,
}

/// Which endpoints are meant. All requirements hold for them.
#[derive(Debug, Clone)]
pub(super) enum Meant {
    These(Vec<LabelRequirement>),
    /// No namespace of `--namespaces` is selected.
    None,
}

impl Meant {
    pub(super) fn and(self, mut more: Vec<LabelRequirement>) -> Self {
        match self {
            Self::These(mut requirements) => {
                requirements.append(&mut more);
                Self::These(requirements)
            }
            Self::None => Self::None,
        }
    }

    /// A peer for those that are meant, if any are.
    pub(super) fn peer(self) -> Option<v1::Peer> {
        match self {
            Self::These(requirements) => {
                Some(v1::Peer { endpoints: Some(selector(requirements)), ..v1::Peer::default() })
            }
            Self::None => None,
        }
    }
}

/// What a `LabelSelector` demands, word for word; nothing of everything.
pub(super) fn written<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<Written<'a>> {
    let mut fields = view.fields(item, "a selector");
    let mut found = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        match &labels.node.value {
            Value::Mapping(entries) => {
                for (key, node) in entries {
                    let item = Item::new(key, node);
                    let values = vec![view.text(item)];
                    let key = key.text.clone();
                    let requirement = LabelRequirement { key, operator: LabelOperator::In.into(), values };
                    found.push(Written { item, requirement });
                }
            }
            _ => view.reader.wrong_type(labels.node, "a mapping of text to text", Some(labels.name)),
        }
    }
    if let Some(expressions) = fields.get("matchExpressions") {
        for item in view.list(expressions) {
            found.extend(expression(view, item));
        }
    }
    view.refuse_fields(
        &mut fields,
        &[
            ("sameLabels", "a selector of Weft compares labels with values, not with the other end's labels"),
            (
                "notSameLabels",
                "a selector of Weft compares labels with values, not with the other end's labels",
            ),
        ],
    );
    view.finish(&fields);
    found
}

fn expression<'a>(view: &mut View<'a>, item: Item<'a>) -> Option<Written<'a>> {
    let mut fields = view.fields(item, "a requirement");
    let key = fields.get("key").map(|key| view.text(key));
    let operator = fields.get("operator");
    let values = match fields.get("values") {
        Some(values) => view.list(values).into_iter().map(|value| view.text(value)).collect(),
        None => Vec::new(),
    };
    view.finish(&fields);
    let (Some(key), Some(operator)) = (key, operator) else {
        view.wrong(item, "a requirement has `key` and `operator`", "one is missing");
        return None;
    };
    let operator = view.one_of(operator, &OPERATORS)?;
    Some(Written { item, requirement: LabelRequirement { key, operator: operator.into(), values } })
}

/// Of pods, by their own labels.
pub(super) fn pods<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<LabelRequirement> {
    let written = written(view, item);
    written.into_iter().map(|written| pod_label(view, written)).collect()
}

/// A requirement on a label of pods.
pub(super) fn pod_label(view: &mut View<'_>, written: Written<'_>) -> LabelRequirement {
    let label = &view.options.namespace_label;
    let key = &written.requirement.key;
    let is_namespaces =
        key.strip_prefix(label.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if is_namespaces {
        let message = format!("the pods' own label `{key}` would be taken for one of their namespace");
        view.refuse(written.item, message, "give the namespace another label with --namespace-label");
    }
    checked(view, written)
}

/// Of all pods of the namespaces with such labels.
pub(super) fn namespaces<'a>(view: &mut View<'a>, item: Item<'a>) -> Meant {
    let written = written(view, item);
    if written.is_empty() {
        return Meant::These(Vec::new());
    }
    if let Some(known) = &view.options.namespaces {
        let requirements: Vec<_> = written.iter().map(|written| written.requirement.clone()).collect();
        for one in &written {
            well_formed(view, one);
        }
        let values = known.matching(&requirements);
        if values.is_empty() {
            return Meant::None;
        }
        let key = view.options.namespace_label.clone();
        return Meant::These(vec![LabelRequirement { key, operator: LabelOperator::In.into(), values }]);
    }
    Meant::These(written.into_iter().map(|written| namespace_label(view, written)).collect())
}

/// A requirement on a label of namespaces.
pub(super) fn namespace_label(view: &mut View<'_>, mut written: Written<'_>) -> LabelRequirement {
    let label = &view.options.namespace_label;
    let key = &written.requirement.key;
    written.requirement.key = if key == NAME_LABEL { label.clone() } else { format!("{label}.{key}") };
    checked(view, written)
}

/// Of nodes.
pub(super) fn nodes<'a>(view: &mut View<'a>, item: Item<'a>) -> Vec<LabelRequirement> {
    let written = written(view, item);
    written.into_iter().map(|written| checked(view, written)).collect()
}

/// In this namespace.
pub(super) fn in_namespace(view: &View<'_>, name: &str) -> LabelRequirement {
    let key = view.options.namespace_label.clone();
    LabelRequirement { key, operator: LabelOperator::In.into(), values: vec![name.to_owned()] }
}

/// The requirement, if Weft can hold it.
pub(super) fn checked(view: &mut View<'_>, written: Written<'_>) -> LabelRequirement {
    let key = &written.requirement.key;
    if IdentityLabels::VOLATILE.contains(&key.as_str()) {
        let message = format!("the label `{key}` makes no identity, so no selector sees it");
        let help =
            format!("select by another label: {} change too often", IdentityLabels::VOLATILE.join(", "));
        view.refuse(written.item, message, &help);
    }
    well_formed(view, &written);
    written.requirement
}

/// Whether it is a requirement on a label at all.
pub(super) fn well_formed(view: &mut View<'_>, written: &Written<'_>) {
    let requirements = vec![written.requirement.clone()];
    let message = v1::Selector { match_expressions: requirements, ..v1::Selector::default() };
    if let Err(errors) = parse::selector(&message, "") {
        for error in errors {
            view.wrong(written.item, error.message, "not a requirement on labels");
        }
    }
}

/// As people write it: one value of a label in `matchLabels`, everything else in `matchExpressions`.
pub(super) fn selector(requirements: Vec<LabelRequirement>) -> v1::Selector {
    let mut selector = v1::Selector::default();
    for requirement in requirements {
        let single = requirement.operator() == LabelOperator::In && requirement.values.len() == 1;
        match selector.match_labels.get(&requirement.key) {
            None if single => {
                selector.match_labels.insert(requirement.key, requirement.values.concat());
            }
            // Said before.
            Some(value) if single && *value == requirement.values[0] => {}
            _ if selector.match_expressions.contains(&requirement) => {}
            _ => selector.match_expressions.push(requirement),
        }
    }
    selector
}
