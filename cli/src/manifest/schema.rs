//! How the messages of `weft.v1` are written in YAML and JSON. The rules are few and hold for every message, so that
//! manifests and schema can't drift apart:
//!
//! - fields in camelCase; the fields of `metadata` stand beside the others, not in a level of their own;
//! - a message that only wraps `items` is written as the bare list, and is there even when the list is empty;
//! - enum values in kebab-case without the enum's name; protocols, selector operators and kinds in the field's spelling;
//! - a CIDR set is referred to by its bare name;
//! - points in time in RFC 3339.
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use weft_proto::v1;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the set is compiled into this binary")]
    DescriptorPool::decode(weft_proto::FILE_DESCRIPTOR_SET)
        .expect("the build script wrote a valid descriptor set")
});

/// A message of `weft.v1` by its name without the package.
pub(crate) fn message(name: &str) -> MessageDescriptor {
    let full = format!("weft.v1.{name}");
    #[expect(clippy::expect_used, reason = "callers name messages of the compiled-in schema")]
    POOL.get_message_by_name(&full).expect("the schema has the message")
}

/// What is special about the way a message is written.
pub(crate) enum Form {
    Fields,
    /// A bare list: the message wraps this repeated field.
    List(FieldDescriptor),
    /// Bare text stands for this field alone, when no other is set.
    Reference(FieldDescriptor),
    Timestamp,
    Duration,
}

pub(crate) fn form(message: &MessageDescriptor) -> Form {
    match message.full_name() {
        "google.protobuf.Timestamp" => Form::Timestamp,
        "google.protobuf.Duration" => Form::Duration,
        "weft.v1.CidrSetReference" => message.get_field_by_name("name").map_or(Form::Fields, Form::Reference),
        _ => {
            let items = message.get_field_by_name("items").filter(FieldDescriptor::is_list);
            items.filter(|_| message.fields().len() == 1).map_or(Form::Fields, Form::List)
        }
    }
}

/// The `metadata` field of a resource, whose own fields stand beside the resource's.
pub(crate) fn metadata(message: &MessageDescriptor) -> Option<FieldDescriptor> {
    let field = message.get_field_by_name("metadata")?;
    matches!(field.kind(), Kind::Message(of) if of.full_name() == "weft.v1.Metadata").then_some(field)
}

/// The fields as written, in order: those of the metadata first.
pub(crate) fn fields(message: &MessageDescriptor) -> Vec<Field> {
    let metadata = metadata(message);
    let mut fields = Vec::new();
    if let Some(parent) = &metadata
        && let Kind::Message(of) = parent.kind()
    {
        fields.extend(of.fields().map(|field| Field { parent: Some(parent.clone()), field }));
    }
    let mut own: Vec<_> = message.fields().filter(|field| Some(field) != metadata.as_ref()).collect();
    own.sort_by_key(FieldDescriptor::number);
    fields.extend(own.into_iter().map(|field| Field { parent: None, field }));
    fields
}

/// The field that is written with this name.
pub(crate) fn field(message: &MessageDescriptor, name: &str) -> Option<Field> {
    let metadata = metadata(message);
    if let Some(field) = message.get_field_by_json_name(name).filter(|field| Some(field) != metadata.as_ref())
    {
        return Some(Field { parent: None, field });
    }
    let parent = metadata?;
    let Kind::Message(of) = parent.kind() else { return None };
    of.get_field_by_json_name(name).map(|field| Field { parent: Some(parent), field })
}

/// A field as written; `parent` is the metadata that it really stands in.
#[derive(Clone)]
pub(crate) struct Field {
    pub(crate) parent: Option<FieldDescriptor>,
    pub(crate) field: FieldDescriptor,
}

/// The kinds of resources: as written after `kind:`, and the field of `Object` that holds one.
pub(crate) fn resources() -> Vec<(String, FieldDescriptor)> {
    let object = message("Object");
    object
        .fields()
        .filter_map(|field| match field.kind() {
            Kind::Message(of) => Some((of.name().to_owned(), field)),
            _ => None,
        })
        .collect()
}

/// The metadata of an object, and its kind as written.
pub(crate) fn metadata_of(object: &v1::Object) -> Option<(&'static str, &v1::Metadata)> {
    use v1::object::Kind as K;
    let (kind, metadata) = match object.kind.as_ref()? {
        K::Node(it) => ("Node", &it.metadata),
        K::Endpoint(it) => ("Endpoint", &it.metadata),
        K::Identity(it) => ("Identity", &it.metadata),
        K::CidrSet(it) => ("CidrSet", &it.metadata),
        K::Policy(it) => ("Policy", &it.metadata),
        K::Service(it) => ("Service", &it.metadata),
        K::Prefilter(it) => ("Prefilter", &it.metadata),
        K::EgressGateway(it) => ("EgressGateway", &it.metadata),
        K::Bundle(it) => ("Bundle", &it.metadata),
        K::Rollout(it) => ("Rollout", &it.metadata),
        K::FleetConfig(it) => ("FleetConfig", &it.metadata),
        K::Shaping(it) => ("Shaping", &it.metadata),
    };
    Some((kind, metadata.as_ref()?))
}

/// The values of an enum as written, with their numbers. The unspecified value is never written.
pub(crate) fn spellings(of: &EnumDescriptor) -> Vec<(String, i32)> {
    let prefix = format!("{}_", screaming(of.name()));
    of.values()
        .filter(|value| value.number() != 0)
        .map(|value| {
            let bare = value.name().strip_prefix(&prefix).unwrap_or(value.name());
            (spelling(of.name(), bare), value.number())
        })
        .collect()
}

fn spelling(of: &str, bare: &str) -> String {
    match of {
        "Protocol" => bare.replace('V', "v"),
        "LabelOperator" | "Kind" => bare.split('_').map(capitalised).collect(),
        _ => bare.to_ascii_lowercase().replace('_', "-"),
    }
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    format!("{first}{}", rest.to_ascii_lowercase())
}

/// `RoutingMode` → `ROUTING_MODE`.
fn screaming(name: &str) -> String {
    let mut out = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

/// The candidate that was most likely meant, if one is near enough.
pub(crate) fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |text: &str| text.replace(['_', '-', ' '], "").to_ascii_lowercase();
    let given = fold(given);
    candidates
        .map(|candidate| (distance(&given, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(message_name: &str, field: &str) -> Vec<String> {
        let field = message(message_name).get_field_by_name(field).unwrap();
        let Kind::Enum(of) = field.kind() else { panic!("{field:?} is an enum") };
        spellings(&of).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn enum_values_are_written_as_people_of_the_field_write_them() {
        assert_eq!(values("Port", "protocol"), ["TCP", "UDP", "SCTP", "ICMP", "ICMPv6"]);
        assert_eq!(values("LabelRequirement", "operator"), ["In", "NotIn", "Exists", "DoesNotExist"]);
        assert_eq!(values("Peer", "entity"), ["host", "remote-node", "fleet", "unmanaged", "world", "all"]);
        assert_eq!(values("SourceRanges", "action"), ["allow", "deny"]);
        assert_eq!(values("AppliedObject", "kind").first().map(String::as_str), Some("Node"));
        assert!(values("AppliedObject", "kind").contains(&"FleetConfig".to_owned()));
    }

    #[test]
    fn every_kind_of_the_api_is_a_kind_of_manifest_with_metadata() {
        let resources = resources();
        let names: Vec<_> = resources.iter().map(|(name, _)| name.clone()).collect();
        let mut kinds = values("AppliedObject", "kind");
        assert_eq!(
            {
                kinds.sort();
                kinds
            },
            {
                let mut names = names;
                names.sort();
                names
            }
        );
        for (name, field) in resources {
            let Kind::Message(of) = field.kind() else { unreachable!() };
            assert!(metadata(&of).is_some(), "{name}");
        }
    }

    #[test]
    fn the_fields_of_metadata_never_hide_a_field_of_a_resource() {
        for (kind, field) in resources() {
            let Kind::Message(of) = field.kind() else { unreachable!() };
            let mut names: Vec<_> = fields(&of).iter().map(|f| f.field.json_name().to_owned()).collect();
            names.push("kind".to_owned());
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{kind}: {names:?}");
        }
    }

    #[test]
    fn the_nearest_name_forgives_case_separators_and_a_slip() {
        let names = ["ingress", "egress", "defaultDeny", "subject"];
        assert_eq!(nearest("default_deny", names.into_iter()), Some("defaultDeny"));
        assert_eq!(nearest("ingres", names.into_iter()), Some("ingress"));
        assert_eq!(nearest("spec", names.into_iter()), None);
    }
}
