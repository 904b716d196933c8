//! Looking at a document: its fields one by one, each remembered, so that those which nobody asked for are refused.
use std::sync::Arc;

use crate::{
    import::Options,
    manifest::{
        Place, Problem, Reader, Source, nearest, quoted,
        tree::{Key, Node, Value},
    },
};

/// A value, and the key that it stands under.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) name: &'a Key,
    pub(super) node: &'a Node,
    /// One of several under the key.
    in_list: bool,
}

impl<'a> Item<'a> {
    pub(super) fn new(name: &'a Key, node: &'a Node) -> Self {
        Self { name, node, in_list: false }
    }

    /// Whether nothing at all is written in it.
    pub(super) fn is_empty(&self) -> bool {
        match &self.node.value {
            Value::Sequence(items) => items.is_empty(),
            Value::Mapping(entries) => entries.is_empty(),
            Value::Scalar { .. } => false,
        }
    }
}

/// The fields of a mapping. What is null is absent, as it is for Kubernetes.
pub(super) struct Fields<'a> {
    /// What has these fields, for messages.
    noun: &'static str,
    entries: &'a [(Key, Node)],
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(noun: &'static str, entries: &'a [(Key, Node)]) -> Self {
        Self { noun, entries, asked: Vec::new() }
    }

    pub(super) fn get(&mut self, name: &'static str) -> Option<Item<'a>> {
        self.asked.push(name);
        let (key, node) = self.entries.iter().find(|(key, _)| key.text == name)?;
        (!node.is_null()).then(|| Item::new(key, node))
    }

    /// Fields that say nothing about verdicts.
    pub(super) fn leave(&mut self, names: &[&'static str]) {
        self.asked.extend_from_slice(names);
    }
}

/// One source being looked at.
pub(super) struct View<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) options: &'a Options,
    pub(super) needs_network: Option<Place>,
}

impl<'a> View<'a> {
    pub(super) fn new(source: &'a Arc<Source>, options: &'a Options) -> Self {
        Self { reader: Reader::new(source), options, needs_network: None }
    }

    pub(super) fn place(&self, item: Item<'_>) -> Place {
        let key = (!item.in_list).then_some(item.name);
        self.reader.place(self.reader.anchor(key, item.node))
    }

    pub(super) fn place_of_node(&self, node: &Node) -> Place {
        self.reader.place(self.reader.anchor(None, node))
    }

    /// What the policy means cannot be said in Weft.
    pub(super) fn refuse(&mut self, item: Item<'_>, message: impl Into<String>, help: &str) {
        let place = self.place(item);
        self.push(Problem::new(place, message).label("cannot be carried over").help(help));
    }

    /// What is written here is no such policy.
    pub(super) fn wrong(&mut self, item: Item<'_>, message: impl Into<String>, label: &str) {
        let place = self.place(item);
        self.push(Problem::new(place, message).label(label));
    }

    pub(super) fn push(&mut self, problem: Problem) {
        self.reader.problems.push(problem);
    }

    /// Each of these fields that is there is refused: they have no equivalent, because `help`.
    pub(super) fn refuse_fields(&mut self, fields: &mut Fields<'a>, refused: &[(&'static str, &str)]) {
        for (name, help) in refused {
            // Also an empty one: whoever wrote it meant something.
            if let Some(item) = fields.get(name) {
                let place = self.reader.place(item.name.span);
                let message = format!("`{name}` has no equivalent");
                self.push(Problem::new(place, message).label("cannot be carried over").help(*help));
            }
        }
    }

    pub(super) fn fields(&mut self, item: Item<'a>, noun: &'static str) -> Fields<'a> {
        let Value::Mapping(entries) = &item.node.value else {
            self.reader.wrong_type(item.node, "a mapping", Some(item.name));
            return Fields::new(noun, &[]);
        };
        Fields::new(noun, entries)
    }

    /// Refuses the fields that were not asked for.
    pub(super) fn finish(&mut self, fields: &Fields<'a>) {
        for (key, _) in fields.entries {
            if fields.asked.contains(&key.text.as_str()) {
                continue;
            }
            let near = nearest(&key.text, fields.asked.iter().copied());
            let label =
                near.map_or_else(|| "not a field".to_owned(), |near| format!("did you mean `{near}`?"));
            let place = self.reader.place(key.span);
            let problem = Problem::new(place, format!("unknown field `{}`", quoted(&key.text))).label(label);
            self.push(problem.help(format!(
                "import knows these fields of {}: {}",
                fields.noun,
                fields.asked.join(", ")
            )));
        }
    }

    pub(super) fn list(&mut self, item: Item<'a>) -> Vec<Item<'a>> {
        let Value::Sequence(items) = &item.node.value else {
            self.reader.wrong_type(item.node, "a list", Some(item.name));
            return Vec::new();
        };
        let items: Vec<_> = items.iter().map(|node| Item { name: item.name, node, in_list: true }).collect();
        for nothing in items.iter().filter(|item| item.node.is_null()) {
            let place = self.reader.place(item.name.span);
            self.push(
                Problem::new(place, format!("an item of `{}` is nothing", nothing.name.text))
                    .help("write {} where an empty item is meant"),
            );
        }
        items.into_iter().filter(|item| !item.node.is_null()).collect()
    }

    pub(super) fn text(&mut self, item: Item<'a>) -> String {
        self.reader.text(item.name, item.node).unwrap_or_default()
    }

    pub(super) fn boolean(&mut self, item: Item<'a>) -> bool {
        self.reader.boolean(item.name, item.node).unwrap_or_default()
    }

    pub(super) fn number(&mut self, item: Item<'a>, max: u32) -> u32 {
        let number = self.reader.number(item.name, item.node, max.into());
        number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
    }

    /// One of the words; the first stands in for a wrong one.
    pub(super) fn one_of<T: Copy>(&mut self, item: Item<'a>, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(item);
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let place = self.place(item);
            let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let near = nearest(&text, names.iter().copied());
            let label = near
                .map_or_else(|| "not one of the values".to_owned(), |near| format!("did you mean `{near}`?"));
            let message = format!("`{}` can't be `{}`", item.name.text, quoted(&text));
            self.push(
                Problem::new(place, message)
                    .label(label)
                    .help(format!("expected one of {}", names.join(", "))),
            );
        }
        found
    }

    pub(super) fn missing(&mut self, place: Place, what: &str, field: &str) {
        self.push(Problem::new(place, format!("{what} has no `{field}`")));
    }
}
