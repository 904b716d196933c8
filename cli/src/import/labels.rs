//! Labels of a resource.
use std::collections::BTreeMap;

use weft_shared::policy::parse;

use super::view::{Item, View};
use crate::manifest::tree::Value;

/// Keys and values in the syntax of labels.
pub(super) struct LabelMap(pub(super) BTreeMap<String, String>);

impl LabelMap {
    pub(super) fn read<'a>(view: &mut View<'a>, item: Item<'a>) -> Self {
        let Value::Mapping(entries) = &item.node.value else {
            view.reader.wrong_type(item.node, "a mapping of text to text", Some(item.name));
            return Self(BTreeMap::new());
        };
        let mut labels = BTreeMap::new();
        for (key, node) in entries {
            let entry = Item::new(key, node);
            let one = BTreeMap::from([(key.text.clone(), view.text(entry))]);
            if let Err(errors) = parse::labels(&one, "labels") {
                for error in errors {
                    view.wrong(entry, error.message, "not a label");
                }
            }
            labels.extend(one);
        }
        Self(labels)
    }
}
