//! A document → an `Object`, by the descriptors. Collects everything that is wrong, not only the first thing, and
//! remembers where each field stands, so that what the server says about a field is shown at its line too.
mod complain;
mod leaf;

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use complain::meant;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Proto};

use super::{
    problem::{Problem, quoted},
    schema::{self, Field, Form},
    source::{Place, Source},
    tree::{Key, Node, Value},
};

pub(crate) struct Reader<'a> {
    source: &'a Arc<Source>,
    /// Of the field being read, in the API's spelling.
    path: String,
    pub(super) places: BTreeMap<String, Place>,
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Arc<Source>) -> Self {
        Self { source, path: String::new(), places: BTreeMap::new(), problems: Vec::new() }
    }

    /// One document, as the `index`th object of a request. None: problems say why.
    pub(super) fn object(&mut self, document: &Node, index: usize) -> Option<DynamicMessage> {
        let Value::Mapping(entries) = &document.value else {
            self.wrong_type(document, "a resource: `kind`, `name` and its fields", None);
            return None;
        };
        let (kind, field) = self.kind(document, entries)?;
        self.path = format!("objects[{index}]");
        self.remember(self.anchor(None, document));
        self.path = format!("objects[{index}].{}", field.json_name());
        self.remember(self.anchor(None, document));
        let Kind::Message(of) = field.kind() else { return None };
        let before = self.problems.len();
        let resource = self.fields(&of, entries, Some("kind"));
        self.require_name(&kind, document, entries);
        if self.problems.len() > before {
            return None;
        }
        let mut object = DynamicMessage::new(schema::message("Object"));
        object.set_field(&field, Proto::Message(resource));
        Some(object)
    }

    fn kind(&mut self, document: &Node, entries: &[(Key, Node)]) -> Option<(String, FieldDescriptor)> {
        let resources = schema::resources();
        let listed = || resources.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let Some((key, node)) = entries.iter().find(|(key, _)| key.text == "kind") else {
            let place = self.place(self.anchor(None, document));
            let problem = Problem::new(place, "this document has no `kind`");
            self.problems
                .push(problem.label("a resource starts here").help(format!("kinds are {}", listed())));
            return None;
        };
        let span = self.anchor(Some(key), node);
        let Value::Scalar { text, .. } = &node.value else {
            self.wrong_type(node, "a kind", Some(key));
            return None;
        };
        if let Some(found) = resources.iter().find(|(name, _)| name == text) {
            return Some(found.clone());
        }
        let near = schema::nearest(text, resources.iter().map(|(name, _)| name.as_str()));
        let problem = Problem::new(self.place(span), format!("unknown kind `{}`", quoted(text)));
        self.problems.push(problem.label(meant(near, "not a kind")).help(format!("kinds are {}", listed())));
        None
    }

    fn fields(
        &mut self,
        of: &MessageDescriptor,
        entries: &[(Key, Node)],
        skip: Option<&str>,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        // The metadata is there for every resource, written or not.
        if let Some(metadata) = schema::metadata(of) {
            message.get_field_mut(&metadata);
        }
        for (key, value) in entries {
            if skip == Some(key.text.as_str()) {
                continue;
            }
            let Some(Field { parent, field }) = schema::field(of, &key.text) else {
                self.unknown_field(of, key);
                continue;
            };
            let outer = self.path.len();
            self.path.push('.');
            self.path.push_str(field.json_name());
            self.remember(self.anchor(Some(key), value));
            if let Some(read) = self.field(&field, key, value) {
                match parent {
                    Some(parent) => {
                        if let Some(inner) = message.get_field_mut(&parent).as_message_mut() {
                            inner.set_field(&field, read);
                        }
                    }
                    None => message.set_field(&field, read),
                }
            }
            self.path.truncate(outer);
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, key: &Key, node: &Node) -> Option<Proto> {
        if field.is_map() {
            return self.map(key, node);
        }
        if field.is_list() {
            return self.list(field, key, node).map(Proto::List);
        }
        self.value(&field.kind(), key, node)
    }

    fn list(&mut self, field: &FieldDescriptor, key: &Key, node: &Node) -> Option<Vec<Proto>> {
        let Value::Sequence(items) = &node.value else {
            self.wrong_type(node, "a list", Some(key));
            return None;
        };
        let mut list = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let outer = self.path.len();
            // Writing to a String never fails.
            let _ = write!(self.path, "[{index}]");
            self.remember(self.anchor(None, item));
            let read = self.value(&field.kind(), key, item);
            self.path.truncate(outer);
            list.extend(read);
        }
        Some(list)
    }

    fn map(&mut self, key: &Key, node: &Node) -> Option<Proto> {
        let Value::Mapping(entries) = &node.value else {
            self.wrong_type(node, "a mapping of text to text", Some(key));
            return None;
        };
        let mut map = std::collections::HashMap::new();
        for (key, value) in entries {
            let outer = self.path.len();
            self.path.push('.');
            self.path.push_str(&key.text);
            self.remember(self.anchor(Some(key), value));
            if let Some(text) = self.text(key, value) {
                map.insert(MapKey::String(key.text.clone()), Proto::String(text));
            }
            self.path.truncate(outer);
        }
        Some(Proto::Map(map))
    }

    fn value(&mut self, kind: &Kind, key: &Key, node: &Node) -> Option<Proto> {
        match kind {
            Kind::String => self.text(key, node).map(Proto::String),
            Kind::Bool => self.boolean(key, node).map(Proto::Bool),
            Kind::Uint32 => self
                .number(key, node, u64::from(u32::MAX))
                .and_then(|n| u32::try_from(n).ok())
                .map(Proto::U32),
            Kind::Uint64 => self.number(key, node, u64::MAX).map(Proto::U64),
            Kind::Enum(of) => {
                let spellings = schema::spellings(of);
                self.one_of(key, node, &spellings).map(Proto::EnumNumber)
            }
            Kind::Message(of) => self.message(of, key, node).map(Proto::Message),
            // A test walks the schema and proves that no resource has a field of another kind.
            _ => {
                self.wrong_type(node, "nothing: manifests can't hold this field", Some(key));
                None
            }
        }
    }

    fn message(&mut self, of: &MessageDescriptor, key: &Key, node: &Node) -> Option<DynamicMessage> {
        let mut message = DynamicMessage::new(of.clone());
        match (schema::form(of), &node.value) {
            (Form::List(items), _) => {
                let list = self.list(&items, key, node)?;
                message.set_field(&items, Proto::List(list));
            }
            (Form::Reference(name), Value::Scalar { .. }) => {
                let text = self.text(key, node)?;
                message.set_field(&name, Proto::String(text));
            }
            (Form::Timestamp, _) => return self.timestamp(of, key, node),
            (Form::Fields | Form::Reference(_), Value::Mapping(entries)) => {
                return Some(self.fields(of, entries, None));
            }
            _ => {
                self.wrong_type(node, "a mapping", Some(key));
                return None;
            }
        }
        Some(message)
    }
}
