use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::*;

fn upsert(kind: ResourceType, name: &str, message: &impl Message) -> v1::Upsert {
    v1::Upsert {
        r#type: kind.into(),
        name: name.to_owned(),
        requires: Vec::new(),
        bytes: message.encode_to_vec().into(),
    }
}

fn member(name: &str) -> v1::Upsert {
    v1::Upsert {
        r#type: ResourceType::IdentitySetMember.into(),
        name: name.to_owned(),
        ..v1::Upsert::default()
    }
}

fn remove(kind: ResourceType, name: &str) -> v1::Remove {
    v1::Remove { r#type: kind.into(), name: name.to_owned() }
}

fn policy(subject_set: &str) -> v1::NodePolicy {
    v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        subject_set: subject_set.to_owned(),
        mode: v1::PolicyMode::Enforce.into(),
        ..v1::NodePolicy::default()
    }
}

fn batch(revision: u64, upserts: Vec<v1::Upsert>) -> Batch {
    Batch { revision, upserts, in_sync: true, ..Batch::default() }
}

#[test]
fn members_of_a_set_come_and_go_one_by_one() {
    let mut desired = Desired::default();
    desired.apply(batch(1, vec![member("a/b/300"), member("a/b/301")]));
    assert_eq!(desired.sets()["a/b"], BTreeSet::from([300, 301]));

    let removes = vec![remove(ResourceType::IdentitySetMember, "a/b/300")];
    desired.apply(Batch { revision: 2, removes, ..Batch::default() });

    assert_eq!(desired.sets()["a/b"], BTreeSet::from([301]));
    assert_eq!(desired.realised, 2);
}

#[test]
fn cidr_sets_come_change_and_go() {
    let set =
        |cidrs: &[&str]| v1::NodeCidrSet { cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect() };
    let mut desired = Desired::default();
    let sets = vec![
        upsert(ResourceType::CidrSet, "one", &set(&["198.51.100.0/24", "2001:db8::/32"])),
        upsert(ResourceType::CidrSet, "none", &set(&[])),
    ];
    desired.apply(batch(1, sets));
    let texts: Vec<String> = desired.cidr_sets()["one"].iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["198.51.100.0/24", "2001:db8::/32"]);
    assert!(desired.cidr_sets()["none"].is_empty());

    let broken = upsert(ResourceType::CidrSet, "one", &set(&["198.51.100.0"]));
    let removes = vec![remove(ResourceType::CidrSet, "none")];
    desired.apply(Batch { revision: 2, upserts: vec![broken], removes, ..Batch::default() });
    assert_eq!(desired.cidr_sets().keys().collect::<Vec<_>>(), ["one"], "the last good form stays");
    assert_eq!(desired.rejected().map(|rejected| rejected.name).collect::<Vec<_>>(), ["one"]);
}

#[test]
fn policies_of_every_tier_and_mode_are_held_and_what_holds_against_them() {
    use proptest::strategy::ValueTree as _;
    use weft_shared::policy::{
        arbitrary,
        model::{Failsafe, HostToEndpoint},
        wire,
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let fleet = arbitrary::fleet().new_tree(&mut runner).unwrap().current();
    let forms =
        fleet.policies.iter().map(|policy| wire::node_form(policy, |meant| fleet.cidr_set_names(meant)));
    let forms: BTreeMap<String, NodePolicy> = forms.map(|form| (form.name.clone(), form)).collect();
    let upserts = forms.values().map(|form| upsert(ResourceType::Policy, &form.name, &wire::encode(form)));
    let mut upserts: Vec<v1::Upsert> = upserts.collect();
    let config = v1::NodeFleet {
        host_to_endpoint: v1::HostToEndpoint::Policy.into(),
        failsafe: wire::failsafe_to_node(&Failsafe::defaults()),
        ..v1::NodeFleet::default()
    };
    upserts.push(upsert(ResourceType::Fleet, "fleet", &config));
    let mut desired = Desired::default();
    desired.apply(batch(1, upserts));
    assert_eq!(desired.policies(), &forms);
    let held = desired.fleet().unwrap();
    assert_eq!((held.host_to_endpoint, &held.failsafe), (HostToEndpoint::Policy, &Failsafe::defaults()));
}

#[test]
fn bytes_that_are_no_message_are_rejected_and_the_last_good_form_stays() {
    let mut desired = Desired::default();
    desired.apply(batch(5, vec![upsert(ResourceType::Policy, "p", &policy("good"))]));
    let broken = v1::Upsert {
        r#type: ResourceType::Policy.into(),
        name: "p".to_owned(),
        bytes: vec![0xff, 0xff, 0xff].into(),
        ..v1::Upsert::default()
    };

    desired.apply(batch(6, vec![broken, member("s/300")]));

    assert_eq!(desired.policies()["p"].subject.named(), "good");
    assert!(desired.sets().contains_key("s"), "the rest of the batch is applied");
    let rejected: Vec<_> = desired.rejected().collect();
    assert_eq!((rejected.len(), rejected[0].name.as_str()), (1, "p"));
    assert_eq!(
        (desired.revision, desired.realised),
        (6, 5),
        "the realised revision stops below a rejected resource"
    );

    desired.apply(batch(7, vec![upsert(ResourceType::Policy, "p", &policy("better"))]));

    assert_eq!(desired.rejected().count(), 0);
    assert_eq!((desired.policies()["p"].subject.named().as_str(), desired.realised), ("better", 7));
}

#[test]
fn a_resource_that_requires_what_we_lack_is_rejected_whole() {
    let mut desired = Desired::default();
    let mut wants = upsert(ResourceType::Policy, "p", &policy("s"));
    wants.requires.push("time-travel".to_owned());

    desired.apply(batch(3, vec![wants]));

    assert!(desired.policies().is_empty());
    let rejected: Vec<_> = desired.rejected().collect();
    assert!(rejected[0].reason.contains("time-travel"), "{:?}", rejected[0]);
}

#[test]
fn a_rejected_resource_that_is_removed_is_no_reason_to_stop_any_more() {
    let mut desired = Desired::default();
    let mut wants = upsert(ResourceType::Policy, "p", &policy("s"));
    wants.requires.push("time-travel".to_owned());
    desired.apply(batch(3, vec![wants]));

    let removes = vec![remove(ResourceType::Policy, "p")];
    desired.apply(Batch { revision: 4, removes, in_sync: true, ..Batch::default() });

    assert_eq!((desired.rejected().count(), desired.realised), (0, 4));
}

#[test]
fn a_type_from_a_later_version_is_rejected_and_named() {
    let mut desired = Desired::default();
    let unknown = v1::Upsert { r#type: 999, name: "x".to_owned(), ..v1::Upsert::default() };
    desired.apply(batch(1, vec![unknown]));
    let rejected: Vec<_> = desired.rejected().collect();
    assert_eq!(rejected[0].name, "999/x");
    assert_eq!(desired.realised, 0);
}

#[test]
fn what_a_full_sync_does_not_list_is_gone() {
    let mut desired = Desired::default();
    desired.apply(batch(
        1,
        vec![member("s/300"), member("s/301"), upsert(ResourceType::Policy, "p", &policy("s"))],
    ));
    let listed = BTreeSet::from([Key { kind: ResourceType::IdentitySetMember, name: "s/301".to_owned() }]);

    desired.apply(Batch { listed: Some(listed), ..batch(2, vec![member("s/301")]) });

    assert_eq!(desired.sets()["s"], BTreeSet::from([301]));
    assert!(desired.policies().is_empty());
}

#[test]
fn identities_through_never_goes_back() {
    let mut desired = Desired::default();
    desired.apply(Batch { identities_through: 400, ..batch(1, Vec::new()) });
    desired.apply(Batch { identities_through: 300, ..batch(2, Vec::new()) });
    assert_eq!(desired.identities_through, 400);
}

#[test]
fn nothing_is_realised_before_all_was_sent_once() {
    let mut desired = Desired::default();
    desired.apply(Batch { revision: 9, ..Batch::default() });
    assert_eq!((desired.complete, desired.realised), (false, 0));
    desired.apply(batch(9, Vec::new()));
    assert_eq!((desired.complete, desired.realised), (true, 9));
}

#[test]
fn a_class_that_is_not_said_is_the_one_that_closes() {
    let mut desired = Desired::default();
    let fleet = v1::NodeFleet { pools: vec!["10.200.0.0/16".to_owned()], ..v1::NodeFleet::default() };
    desired.apply(batch(1, vec![upsert(ResourceType::Fleet, "fleet", &fleet)]));
    let class = desired.fleet().map(|fleet| fleet.unknown_pool_address);
    assert_eq!(class, Some(weft_shared::layout::Class::Unmanaged));
}

/// What may be said of a resource, in few numbers.
fn change() -> impl Strategy<Value = (ResourceType, String, Option<v1::Upsert>)> {
    let members = (0_u32..3, 300_u32..303).prop_map(|(set, identity)| format!("s{set}/{identity}"));
    prop_oneof![
        (members, prop::bool::ANY).prop_map(|(name, there)| {
            let upsert = there.then(|| member(&name));
            (ResourceType::IdentitySetMember, name, upsert)
        }),
        ("p[0-2]", prop::option::of("s[0-2]")).prop_map(|(name, subject)| {
            let upsert = subject.map(|subject| upsert(ResourceType::Policy, &name, &policy(&subject)));
            (ResourceType::Policy, name, upsert)
        }),
        (0_u8..3, prop::option::of(300_u32..303)).prop_map(|(last, identity)| {
            let name = format!("10.200.2.{last}");
            let message = |identity| v1::NodeAddress { identity, node: "n2".to_owned() };
            let upsert = identity.map(|identity| upsert(ResourceType::Address, &name, &message(identity)));
            (ResourceType::Address, name, upsert)
        }),
    ]
}

proptest! {
    #[test]
    fn however_changes_are_split_the_state_is_that_of_their_end(
        changes in vec(change(), 0..30),
        ends in vec(prop::bool::ANY, 30),
    ) {
        let mut step_by_step = Desired::default();
        let mut pending = Batch { revision: 1, in_sync: true, ..Batch::default() };
        let mut last: BTreeMap<Key, Option<v1::Upsert>> = BTreeMap::new();
        for ((kind, name, upsert), end) in changes.into_iter().zip(ends) {
            last.insert(Key { kind, name: name.clone() }, upsert.clone());
            // A batch holds one word about a resource, the latest.
            pending.upserts.retain(|other| (other.r#type, &other.name) != (kind.into(), &name));
            pending.removes.retain(|other| (other.r#type, &other.name) != (kind.into(), &name));
            match upsert {
                Some(upsert) => pending.upserts.push(upsert),
                None => pending.removes.push(remove(kind, &name)),
            }
            if end {
                step_by_step.apply(std::mem::take(&mut pending));
            }
        }
        step_by_step.apply(Batch { revision: 9, in_sync: true, ..pending });

        let mut at_once = Desired::default();
        let upserts: Vec<v1::Upsert> = last.into_values().flatten().collect();
        at_once.apply(Batch { revision: 9, upserts, in_sync: true, ..Batch::default() });
        prop_assert_eq!(step_by_step, at_once);
    }
}
