//! Messages → values for YAML and JSON, by the descriptors: the other direction of `read`.
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value as Proto};
use serde_json::{Map, Value};
use weft_proto::v1;

use super::schema::{self, Field, Form};

/// What becomes of fields that hold their default and can't say whether they were set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defaults {
    /// Left out: manifests say what somebody said.
    Omitted,
    /// Written: results always have the same fields.
    Written,
}

/// An object in the form of a manifest's document.
pub fn object(object: &v1::Object) -> Value {
    value_of_object(&dynamic("Object", object))
}

/// A message of the API that is not a resource (an answer, say): every field that is not optional is there. Durations
/// are numbers of milliseconds, and their names say so.
pub fn answer(name: &str, message: &impl Message) -> Value {
    of_message(&dynamic(name, message), Defaults::Written)
}

fn dynamic(name: &str, message: &impl Message) -> DynamicMessage {
    let mut dynamic = DynamicMessage::new(schema::message(name));
    #[expect(
        clippy::expect_used,
        reason = "the types and the descriptors are generated from the same files"
    )]
    dynamic.transcode_from(message).expect("the message is of the named type");
    dynamic
}

pub(super) fn value_of_object(object: &DynamicMessage) -> Value {
    let mut document = Map::new();
    for (kind, field) in schema::resources() {
        if object.has_field(&field)
            && let Some(resource) = object.get_field(&field).as_message()
        {
            document.insert("kind".to_owned(), Value::String(kind));
            write_fields(resource, Defaults::Omitted, &mut document);
        }
    }
    Value::Object(document)
}

fn write_fields(message: &DynamicMessage, defaults: Defaults, into: &mut Map<String, Value>) {
    for Field { parent, field } in schema::fields(&message.descriptor()) {
        match parent {
            None => write_field(message, &field, defaults, into),
            Some(parent) => {
                if let Some(metadata) = message.get_field(&parent).as_message() {
                    write_field(metadata, &field, Defaults::Omitted, into);
                }
            }
        }
    }
}

fn write_field(
    message: &DynamicMessage,
    field: &FieldDescriptor,
    defaults: Defaults,
    into: &mut Map<String, Value>,
) {
    let written = if field.supports_presence() || defaults == Defaults::Omitted {
        message.has_field(field)
    } else {
        // The unspecified value of an enum has no spelling.
        !matches!(field.kind(), Kind::Enum(_)) || field.is_list() || message.has_field(field)
    };
    if !written {
        return;
    }
    let name = match field.kind() {
        Kind::Message(of) if matches!(schema::form(&of), Form::Duration) => {
            format!("{}Milliseconds", field.json_name())
        }
        _ => field.json_name().to_owned(),
    };
    into.insert(name, of_value(&message.get_field(field), &field.kind(), defaults));
}

fn of_message(message: &DynamicMessage, defaults: Defaults) -> Value {
    let of = message.descriptor();
    if of.full_name() == "weft.v1.Object" {
        return value_of_object(message);
    }
    match schema::form(&of) {
        Form::List(items) => of_value(&message.get_field(&items), &items.kind(), defaults),
        Form::Reference(name)
            if message.fields().all(|(field, _)| field == name) && message.has_field(&name) =>
        {
            of_value(&message.get_field(&name), &Kind::String, defaults)
        }
        Form::Timestamp => timestamp(message),
        Form::Duration => duration_milliseconds(message),
        Form::Fields | Form::Reference(_) => {
            let mut fields = Map::new();
            write_fields(message, defaults, &mut fields);
            Value::Object(fields)
        }
    }
}

fn of_value(value: &Proto, kind: &Kind, defaults: Defaults) -> Value {
    match value {
        Proto::Bool(value) => (*value).into(),
        Proto::I32(value) => (*value).into(),
        Proto::I64(value) => (*value).into(),
        Proto::U32(value) => (*value).into(),
        Proto::U64(value) => (*value).into(),
        Proto::F32(value) => (*value).into(),
        Proto::F64(value) => (*value).into(),
        Proto::String(value) => value.clone().into(),
        Proto::Bytes(value) => format!("{value:x}").into(),
        Proto::EnumNumber(number) => enumerated(*number, kind),
        Proto::Message(message) => of_message(message, defaults),
        Proto::List(items) => items.iter().map(|item| of_value(item, kind, defaults)).collect(),
        Proto::Map(entries) => {
            let mut entries: Vec<_> = entries
                .iter()
                .map(|(key, value)| {
                    (key.as_str().unwrap_or_default().to_owned(), of_value(value, kind, defaults))
                })
                .collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(entries.into_iter().collect())
        }
    }
}

/// A value that this version does not know (from a newer server) shows as its number.
fn enumerated(number: i32, kind: &Kind) -> Value {
    let Kind::Enum(of) = kind else { return number.into() };
    let known = schema::spellings(of).into_iter().find(|(_, known)| *known == number);
    known.map_or_else(|| number.into(), |(name, _)| name.into())
}

fn seconds_and_nanos(message: &DynamicMessage) -> (i64, i32) {
    let seconds = message.get_field_by_name("seconds").and_then(|value| value.as_i64());
    let nanos = message.get_field_by_name("nanos").and_then(|value| value.as_i32());
    (seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

fn timestamp(message: &DynamicMessage) -> Value {
    let (seconds, nanos) = seconds_and_nanos(message);
    prost_types::Timestamp { seconds, nanos }.to_string().into()
}

fn duration_milliseconds(message: &DynamicMessage) -> Value {
    let (seconds, nanos) = seconds_and_nanos(message);
    #[expect(clippy::cast_precision_loss, reason = "exact far beyond any duration that is reported")]
    let milliseconds = seconds as f64 * 1e3 + f64::from(nanos) / 1e6;
    milliseconds.into()
}
