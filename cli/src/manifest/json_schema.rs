//! JSON Schema (2020-12) of the manifests, for editors. Walks the same description of the messages that `read` walks, so
//! that the two can't drift apart. What a schema can't say (a field given twice, the spelling of a number) only `read`
//! refuses.
use std::collections::BTreeMap;

use prost_reflect::{Cardinality, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::schema::{self, Field, Form};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of one kind's manifests, as written after `kind:`; of every kind's without one. `None`: no such kind.
pub fn json_schema(kind: Option<&str>) -> Option<Value> {
    let mut kinds = schema::resources();
    kinds.retain(|(name, _)| kind.is_none_or(|only| only == name));
    let mut definitions = Definitions::default();
    for (name, field) in &kinds {
        if let Kind::Message(of) = field.kind() {
            definitions.resource(name, &of);
        }
    }
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    let mut document = Map::new();
    document.insert("$schema".to_owned(), DIALECT.into());
    match kinds.as_slice() {
        [] => return None,
        [(name, _)] => {
            document.insert("title".to_owned(), format!("Weft {name}").into());
            document.insert("$ref".to_owned(), format!("#/$defs/{name}").into());
        }
        all => {
            document.insert("title".to_owned(), "Weft manifest".into());
            document.insert("type".to_owned(), "object".into());
            // Without it, an editor that finds no match shows the problems of every kind.
            document.insert("required".to_owned(), json!(["kind"]));
            document
                .insert("oneOf".to_owned(), all.iter().map(|(name, _)| reference(name)).collect::<Value>());
        }
    }
    document.insert("$defs".to_owned(), Value::Object(definitions.found.into_iter().collect()));
    Some(Value::Object(document))
}

/// The schemas of messages by their names.
#[derive(Default)]
struct Definitions {
    found: BTreeMap<String, Value>,
}

impl Definitions {
    fn resource(&mut self, kind: &str, of: &MessageDescriptor) {
        let mut properties = Map::new();
        properties.insert("kind".to_owned(), json!({ "const": kind }));
        self.properties(of, &mut properties);
        // As `read` demands of every resource.
        if let Some(name) = properties.get_mut("name") {
            name["minLength"] = 1.into();
        }
        let mut resource = object(of, properties);
        resource["required"] = json!(["kind", "name"]);
        self.found.insert(of.name().to_owned(), resource);
    }

    fn properties(&mut self, of: &MessageDescriptor, into: &mut Map<String, Value>) {
        for Field { field, .. } in schema::fields(of) {
            let mut value = self.field(&field);
            if let Some(text) = comment(&field.parent_file(), field.path()) {
                describe(&mut value, text);
            }
            into.insert(field.json_name().to_owned(), value);
        }
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map() {
            return json!({ "type": "object", "additionalProperties": { "type": "string" } });
        }
        let value = self.value(&field.kind());
        if field.cardinality() == Cardinality::Repeated {
            json!({ "type": "array", "items": value })
        } else {
            value
        }
    }

    fn value(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::String => json!({ "type": "string" }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Uint32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
            Kind::Uint64 => json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
            Kind::Enum(of) => {
                let names: Vec<_> = schema::spellings(of).into_iter().map(|(name, _)| name).collect();
                json!({ "enum": names })
            }
            Kind::Message(of) => self.message(of),
            // `read` takes nothing for it either.
            _ => json!(false),
        }
    }

    fn message(&mut self, of: &MessageDescriptor) -> Value {
        match schema::form(of) {
            Form::List(items) => json!({ "type": "array", "items": self.value(&items.kind()) }),
            Form::Timestamp => json!({ "type": "string", "format": "date-time" }),
            Form::Duration => json!(false),
            Form::Reference(_) => json!({ "anyOf": [{ "type": "string" }, self.reference(of)] }),
            Form::Fields => self.reference(of),
        }
    }

    fn reference(&mut self, of: &MessageDescriptor) -> Value {
        let name = of.name().to_owned();
        if !self.found.contains_key(&name) {
            // Before its fields: a message may hold itself.
            self.found.insert(name.clone(), Value::Null);
            let mut properties = Map::new();
            self.properties(of, &mut properties);
            self.found.insert(name.clone(), object(of, properties));
        }
        json!({ "$ref": format!("#/$defs/{name}") })
    }
}

fn object(of: &MessageDescriptor, properties: Map<String, Value>) -> Value {
    let mut object = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    object["properties"] = properties.into();
    if let Some(text) = comment(&of.parent_file(), of.path()) {
        describe(&mut object, text);
    }
    object
}

fn describe(schema: &mut Value, text: String) {
    if let Value::Object(fields) = schema {
        fields.insert("description".to_owned(), text.into());
    }
}

/// What the proto file says above a message or field, in one line.
fn comment(file: &FileDescriptor, path: &[i32]) -> Option<String> {
    let info = file.file_descriptor_proto().source_code_info.as_ref()?;
    let location = info.location.iter().find(|location| location.path == path)?;
    let text = location.leading_comments.as_deref()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

#[cfg(test)]
pub(super) mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::manifest::{
        Source,
        scalar::{Plain, classify},
        tree::{self, Node},
    };

    /// What is wrong with documents by the schema; nothing where they are no YAML that manifests may use.
    pub(crate) fn refusals(text: &str) -> Option<Vec<String>> {
        let validator = jsonschema::validator_for(&json_schema(None).unwrap()).unwrap();
        let source = Arc::new(Source { name: "schema.yaml".to_owned(), text: text.to_owned() });
        let documents = tree::documents(&source).ok()?;
        let errors = |document: &Node| {
            let value = json_of(document);
            validator.iter_errors(&value).map(|error| error.to_string()).collect::<Vec<_>>()
        };
        Some(documents.iter().flat_map(errors).collect())
    }

    /// A document as an editor reads it.
    fn json_of(node: &Node) -> Value {
        match &node.value {
            tree::Value::Scalar { text, plain: true } => match classify(text) {
                Plain::Null => Value::Null,
                Plain::Bool => text.eq_ignore_ascii_case("true").into(),
                Plain::Number => number(text),
                Plain::Text => text.clone().into(),
            },
            tree::Value::Scalar { text, .. } => text.clone().into(),
            tree::Value::Sequence(items) => items.iter().map(json_of).collect(),
            tree::Value::Mapping(entries) => {
                let entry = |(key, value): &(tree::Key, Node)| (key.text.clone(), json_of(value));
                Value::Object(entries.iter().map(entry).collect())
            }
        }
    }

    fn number(text: &str) -> Value {
        let hexadecimal = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let whole = hexadecimal.map(Value::from).or_else(|| text.parse::<i64>().ok().map(Value::from));
        whole.unwrap_or_else(|| text.parse::<f64>().unwrap().into())
    }

    #[test]
    fn every_example_and_every_manifest_of_the_documents_fits_the_schema() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut texts = Vec::new();
        for directory in ["deploy/examples", "deploy/examples/later"] {
            for entry in root.join(directory).read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    texts.push(std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let documents = root.join("docs").read_dir().unwrap().map(|entry| entry.unwrap().path());
        for path in documents.chain([root.join("README.md")]) {
            let text = std::fs::read_to_string(path).unwrap();
            let fenced = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
            // Kubernetes' own manifests have an apiVersion.
            let ours = fenced.filter(|block| block.contains("kind: ") && !block.contains("apiVersion: "));
            texts.extend(ours.map(str::to_owned));
        }
        assert!(texts.len() > 4, "the examples are found");
        for text in texts {
            assert_eq!(refusals(&text), Some(vec![]), "\n{text}");
        }
    }

    #[test]
    fn every_kind_has_a_schema_of_its_own_and_no_other_word_does() {
        for (kind, _) in schema::resources() {
            let schema = json_schema(Some(&kind)).unwrap();
            let validator = jsonschema::validator_for(&schema).unwrap();
            assert!(validator.is_valid(&json!({"kind": kind, "name": "x"})), "{kind}");
            assert!(!validator.is_valid(&json!({"kind": kind})), "{kind}");
            assert!(!validator.is_valid(&json!({"kind": "Other", "name": "x"})), "{kind}");
        }
        assert_eq!(json_schema(Some("Pod")), None);
        assert!(jsonschema::meta::is_valid(&json_schema(None).unwrap()));
    }

    #[test]
    fn fields_are_described_by_the_comments_of_the_proto_files() {
        let schema = json_schema(Some("Policy")).unwrap();
        let rule = &schema["$defs"]["Rule"]["properties"];
        assert_eq!(rule["peers"]["description"], "Absent: every peer. Present and empty: none.");
        assert_eq!(rule["action"]["enum"], json!(["allow", "deny", "pass"]));
        assert!(schema["$defs"]["Policy"]["properties"]["name"]["description"].is_string());
    }
}
