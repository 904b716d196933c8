//! Selectors.

use std::collections::BTreeSet;

use weft_proto::v1::{self, LabelOperator};

use super::{
    super::selector::{Requirement, Selector},
    Errors, FieldError,
    text::{label_key, label_value},
};

/// A selector; `path` is the field's, inside the object.
pub fn selector(message: &v1::Selector, path: &str) -> Result<Selector, Vec<FieldError>> {
    let mut errors = Errors::default();
    let value = selector_of(&mut errors, message, path);
    errors.finish(value)
}

/// The same as a part of an object; one that can select nothing is warned of.
pub(crate) fn selector_of(errors: &mut Errors, message: &v1::Selector, path: &str) -> Option<Selector> {
    let before = errors.errors.len();
    let mut requirements = Vec::new();
    for (key, value) in &message.match_labels {
        let path = format!("{path}.matchLabels.{key}");
        errors.take(label_key(key, &path));
        errors.take(label_value(value, &path));
        requirements.push(Requirement::In { key: key.clone(), values: BTreeSet::from([value.clone()]) });
    }
    for (index, expression) in message.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        requirements.extend(requirement(errors, expression, &path));
    }
    let selector = Selector::new(requirements);
    if errors.errors.len() > before {
        return None;
    }
    if let Some(key) = selector.contradiction() {
        let text = format!("no labels can meet what is demanded of \"{key}\": the selector selects nothing");
        errors.warn(path, text);
    }
    Some(selector)
}

/// As it is sent to those who select themselves: requirements in their order.
impl From<&Selector> for v1::Selector {
    fn from(selector: &Selector) -> Self {
        let expression = |requirement: &Requirement| {
            let (key, operator, values) = match requirement {
                Requirement::In { key, values } => (key, LabelOperator::In, Some(values)),
                Requirement::NotIn { key, values } => (key, LabelOperator::NotIn, Some(values)),
                Requirement::Exists { key } => (key, LabelOperator::Exists, None),
                Requirement::DoesNotExist { key } => (key, LabelOperator::DoesNotExist, None),
            };
            v1::LabelRequirement {
                key: key.clone(),
                operator: operator.into(),
                values: values.into_iter().flatten().cloned().collect(),
            }
        };
        let match_expressions = selector.requirements().map(expression).collect();
        Self { match_expressions, ..Self::default() }
    }
}

fn requirement(errors: &mut Errors, message: &v1::LabelRequirement, path: &str) -> Option<Requirement> {
    errors.take(label_key(&message.key, &format!("{path}.key")))?;
    for (index, value) in message.values.iter().enumerate() {
        errors.take(label_value(value, &format!("{path}.values[{index}]")))?;
    }
    let key = message.key.clone();
    let values: BTreeSet<String> = message.values.iter().cloned().collect();
    let operator = message.operator();
    let wants_values = matches!(operator, LabelOperator::In | LabelOperator::NotIn);
    if wants_values == values.is_empty() && operator != LabelOperator::Unspecified {
        let text = if wants_values {
            "In and NotIn take at least one value"
        } else {
            "Exists and DoesNotExist take no values"
        };
        errors.add(format!("{path}.values"), text);
        return None;
    }
    match operator {
        LabelOperator::In => Some(Requirement::In { key, values }),
        LabelOperator::NotIn => Some(Requirement::NotIn { key, values }),
        LabelOperator::Exists => Some(Requirement::Exists { key }),
        LabelOperator::DoesNotExist => Some(Requirement::DoesNotExist { key }),
        LabelOperator::Unspecified => {
            errors.add(format!("{path}.operator"), "expected In, NotIn, Exists or DoesNotExist");
            None
        }
    }
}
