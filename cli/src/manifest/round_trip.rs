//! Every field of every resource: YAML → message → YAML and message → YAML → message give back what went in. The fields
//! are found by walking the schema, so a field that is added tomorrow is tested tomorrow.
use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Proto};
use weft_proto::v1;

use super::{schema, source::Source, *};

fn read(yaml: &str) -> v1::Object {
    let source = Source { name: "test.yaml".to_owned(), text: yaml.to_owned() };
    let manifests = parse([source]).unwrap_or_else(|problems| panic!("{problems:#?}\n{yaml}"));
    assert_eq!(manifests.objects.len(), 1, "{yaml}");
    manifests.objects.into_iter().next().unwrap()
}

fn assert_round_trip(given: &v1::Object) {
    let yaml = document(&object(given));
    let back = read(&yaml);
    assert_eq!(&back, given, "\n{yaml}");
    assert_eq!(document(&object(&back)), yaml);
}

fn object_of(kind: &FieldDescriptor, resource: DynamicMessage) -> v1::Object {
    let mut object = DynamicMessage::new(schema::message("Object"));
    object.set_field(kind, Proto::Message(resource));
    object.transcode_to().unwrap()
}

/// A resource with nothing but a name.
fn named(of: &MessageDescriptor) -> DynamicMessage {
    let mut resource = DynamicMessage::new(of.clone());
    let metadata = schema::metadata(of).unwrap();
    let inner = resource.get_field_mut(&metadata).as_message_mut().unwrap();
    inner.set_field_by_name("name", Proto::String("sample".to_owned()));
    resource
}

fn message_of(field: &FieldDescriptor) -> MessageDescriptor {
    let Kind::Message(of) = field.kind() else { panic!("{} is a message", field.full_name()) };
    of
}

/// Each way that a field can be there: empty, with each value of an enum, with each field of a message alone and all at
/// once, with one and two items.
fn samples(field: &FieldDescriptor) -> Vec<Proto> {
    if field.is_map() {
        let entry =
            |key: &str, value: &str| (MapKey::String(key.to_owned()), Proto::String(value.to_owned()));
        return vec![Proto::Map(HashMap::from([
            entry("app", "web"),
            entry("weft.example/build", "12"),
            entry("empty", ""),
        ]))];
    }
    let singles = samples_of_kind(&field.kind());
    if field.is_list() {
        let mut lists: Vec<_> = singles.iter().map(|single| Proto::List(vec![single.clone()])).collect();
        lists.push(Proto::List(singles));
        return lists;
    }
    singles
}

fn samples_of_kind(kind: &Kind) -> Vec<Proto> {
    match kind {
        Kind::String => ["sample", "8080", "true", "10.0.0.0/8", "fd00::/64", "on", " \"odd\": #\\\n\t😀"]
            .map(|text| Proto::String(text.to_owned()))
            .to_vec(),
        Kind::Bool => vec![Proto::Bool(true)],
        Kind::Uint32 => vec![Proto::U32(1), Proto::U32(u32::MAX)],
        Kind::Uint64 => vec![Proto::U64(1), Proto::U64(u64::MAX)],
        Kind::Enum(of) => {
            schema::spellings(of).into_iter().map(|(_, number)| Proto::EnumNumber(number)).collect()
        }
        Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => {
            let mut time = DynamicMessage::new(of.clone());
            time.set_field_by_name("seconds", Proto::I64(1_795_000_000));
            time.set_field_by_name("nanos", Proto::I32(250_000_000));
            vec![Proto::Message(time)]
        }
        Kind::Message(of) => messages(of).into_iter().map(Proto::Message).collect(),
        other => {
            panic!("manifests can't hold a {other:?}; teach read and write, or keep it out of resources")
        }
    }
}

fn messages(of: &MessageDescriptor) -> Vec<DynamicMessage> {
    let empty = DynamicMessage::new(of.clone());
    let mut all = empty.clone();
    let mut out = vec![empty.clone()];
    for field in of.fields() {
        for sample in samples(&field) {
            let mut one = empty.clone();
            one.set_field(&field, sample.clone());
            out.push(one);
            all.set_field(&field, sample);
        }
    }
    out.push(all);
    out.into_iter().map(with_metadata).collect()
}

/// A message that has metadata always has it, as the store gives it.
fn with_metadata(mut message: DynamicMessage) -> DynamicMessage {
    use prost_reflect::ReflectMessage as _;
    if let Some(metadata) = schema::metadata(&message.descriptor()) {
        message.get_field_mut(&metadata);
    }
    message
}

#[test]
fn every_field_of_every_resource_survives_the_way_to_yaml_and_back() {
    let mut walked = 0;
    for (_, kind) in schema::resources() {
        let of = message_of(&kind);
        assert_round_trip(&object_of(&kind, named(&of)));
        let mut all = named(&of);
        for schema::Field { parent, field } in schema::fields(&of) {
            for sample in samples(&field) {
                let mut resource = named(&of);
                for resource in [&mut resource, &mut all] {
                    let holder = match &parent {
                        Some(parent) => resource.get_field_mut(parent).as_message_mut().unwrap(),
                        None => resource,
                    };
                    holder.set_field(&field, sample.clone());
                }
                assert_round_trip(&object_of(&kind, resource));
                walked += 1;
            }
        }
        assert_round_trip(&object_of(&kind, all));
    }
    assert!(walked > 200, "the walk must reach the whole schema, it reached {walked} samples");
}

/// A field's name in a manifest can be found again by its place.
#[test]
fn every_field_has_a_place_under_the_path_that_the_api_gives_it() {
    for (_, kind) in schema::resources() {
        let of = message_of(&kind);
        for schema::Field { parent, field } in schema::fields(&of) {
            let Some(sample) = samples(&field).pop() else { continue };
            let mut resource = named(&of);
            let holder = match &parent {
                Some(parent) => resource.get_field_mut(parent).as_message_mut().unwrap(),
                None => &mut resource,
            };
            holder.set_field(&field, sample);
            let yaml = document(&object(&object_of(&kind, resource)));
            let manifests = parse([Source { name: "test.yaml".to_owned(), text: yaml.clone() }]).unwrap();
            let inner = parent.map_or_else(String::new, |parent| format!("{}.", parent.name()));
            let path = format!("objects[0].{}.{inner}{}", kind.json_name(), field.name());
            let (line, _) = manifests.place(&path).unwrap_or_else(|| panic!("{path}\n{yaml}")).position();
            let text = yaml.lines().nth(line - 1).unwrap();
            assert!(text.starts_with(field.json_name()), "{path} is not at line {line}: {text}\n{yaml}");
        }
    }
}

#[test]
fn present_and_empty_is_not_absent() {
    let absent = read("kind: Policy\nname: p\n");
    let empty = read("kind: Policy\nname: p\negress: []\nsubject: {endpoints: {}}\n");
    assert_ne!(absent, empty);
    let yaml = document(&object(&empty));
    assert_eq!(yaml, "kind: Policy\nname: p\nsubject:\n  endpoints: {}\negress: []\n");
    let Some(v1::object::Kind::Policy(policy)) = empty.kind else { panic!("a policy") };
    assert_eq!(policy.egress, Some(v1::RuleList::default()));
    assert_eq!(policy.ingress, None);
}

#[test]
fn the_manifest_of_the_policy_reference_reads_as_it_is_meant() {
    let object = read(
        "\
kind: Policy
name: api-from-web
tier: application
subject: {endpoints: {matchLabels: {app: api}}}
ingress:
  - name: web
    action: allow
    peers:
      - endpoints: {matchLabels: {app: web}}
      - nodes: {matchLabels: {role: gateway}}
      - cidr: 198.51.100.0/24
        except: [198.51.100.7/32]
      - cidrSet: partners
      - cidrSet: {matchLabels: {who: partner}}
      - entity: remote-node
    ports:
      - {protocol: TCP, port: 8080, endPort: 8090}
      - {protocol: ICMPv6, type: 128}
egress: []
defaultDeny: {ingress: true, egress: false}
mode: enforce
",
    );
    let Some(v1::object::Kind::Policy(policy)) = &object.kind else { panic!("a policy") };
    assert_eq!(policy.tier(), v1::Tier::Application);
    assert_eq!(policy.default_deny, Some(v1::DefaultDeny { ingress: Some(true), egress: Some(false) }));
    let rule = &policy.ingress.as_ref().unwrap().items[0];
    assert_eq!(rule.action(), v1::Action::Allow);
    let peers = &rule.peers.as_ref().unwrap().items;
    assert_eq!(peers[2].cidr.as_deref(), Some("198.51.100.0/24"));
    assert_eq!(peers[3].cidr_set.as_ref().unwrap().name.as_deref(), Some("partners"));
    assert_eq!(peers[4].cidr_set.as_ref().unwrap().match_labels["who"], "partner");
    assert_eq!(peers[5].entity(), v1::Entity::RemoteNode);
    let ports = &rule.ports.as_ref().unwrap().items;
    assert_eq!(
        (ports[0].protocol(), ports[0].port, ports[0].end_port),
        (v1::Protocol::Tcp, Some(8080), Some(8090))
    );
    assert_eq!(
        (ports[1].protocol(), ports[1].r#type, ports[1].port),
        (v1::Protocol::Icmpv6, Some(128), None)
    );
    assert_round_trip(&object);
}

#[test]
fn several_documents_keep_their_order_and_empty_ones_do_not_count() {
    let text = "---\nkind: CidrSet\nname: b\n---\n# only a comment\n---\nkind: CidrSet\nname: a\n...\n";
    let manifests = parse([Source { name: "x".to_owned(), text: text.to_owned() }]).unwrap();
    let names: Vec<_> = manifests.objects.iter().map(|o| metadata_of(o).unwrap().1.name.clone()).collect();
    assert_eq!(names, ["b", "a"]);
    let (line, column) = manifests.place("objects[1].cidrSet.metadata.name").unwrap().position();
    assert_eq!((line, column), (8, 7));
}

#[test]
fn an_answer_always_has_the_same_fields_and_its_durations_are_milliseconds() {
    let took = Some(prost_types::Duration { seconds: 1, nanos: 500_000 });
    let value = answer("WaitRealisedResponse", &v1::WaitRealisedResponse { took, ..Default::default() });
    let expected = serde_json::json!({"nodes": 0, "realised": 0, "waitingFor": [], "done": false, "tookMilliseconds": 1000.5});
    assert_eq!(value, expected);
    let names: BTreeSet<_> =
        answer("NodeSummary", &v1::NodeSummary::default()).as_object().unwrap().keys().cloned().collect();
    assert!(
        names.contains("rejections") && names.contains("connected") && !names.contains("lastSeen"),
        "{names:?}"
    );
}

proptest! {
    #[test]
    fn any_text_survives_the_way_to_yaml_and_back(key in "[ -~]{1,12}|\\PC{1,6}", value in "[ -~]{0,16}|\\PC{0,8}|.{0,8}|[0-9eExo_.:+-]{0,8}") {
        let metadata = v1::Metadata { name: "n".to_owned(), labels: [(key, value)].into(), ..Default::default() };
        let set = v1::CidrSet { metadata: Some(metadata), ..Default::default() };
        assert_round_trip(&v1::Object { kind: Some(v1::object::Kind::CidrSet(set)) });
    }

    #[test]
    fn no_text_at_all_makes_the_reader_panic(text in "[a-z:\\-\\[\\]{}&*!|>'\"#%@`,? \n\t~0-9]{0,60}|.{0,40}") {
        let _ = parse([Source { name: "any".to_owned(), text: text.clone() }]);
        let _ = parse([Source { name: "any".to_owned(), text: format!("kind: Policy\nname: é\n{text}") }]);
    }
}
