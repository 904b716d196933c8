//! From one desired state to another, step by step: no packet is judged by anything but the one or the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::{collection::vec, prelude::*};
use prost::Message;
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::{Action, Address, Class, Direction, Peer, PolicyRow, PortKey, endpoint_flags},
    policy::compile::IdentitySets,
};

use super::{
    compile::{self, Input, Stale},
    diff::{Sweep, diff},
    narrow::Standing,
    tables::{Step, Tables},
    who::{Lengths, Who},
};
use crate::{
    desired::{
        Batch, Desired, Touched,
        attachments::{Attachment, Attachments},
    },
    kernel::{Datapath, twin::Twin},
};

mod batches;
mod host;
mod narrow;

const OWN: [&str; 2] = ["10.200.1.10", "10.200.1.11"];
const OTHERS: [&str; 3] = ["10.200.2.10", "10.200.2.11", "10.200.2.12"];
const SETS: [&str; 3] = ["a", "b", "c"];
const CIDRS: [&str; 5] =
    ["198.51.0.0/16", "198.51.100.0/24", "198.51.100.7/32", "203.0.113.0/24", "0.0.0.0/0"];
/// Names, and what is in them.
const CIDR_SETS: [(&str, &[&str]); 2] =
    [("offices", &[CIDRS[1], "203.0.113.8/29"]), ("partners", &[CIDRS[2]])];
/// The set of nodes that policies name.
const NODES: &str = "nodes";
const WORLD: [&str; 5] = ["198.51.1.1", "198.51.100.1", "198.51.100.7", "203.0.113.9", "2001:db8::9"];

/// What labels select does not change; which identities exist does.
fn is_member(set: usize, identity: u32) -> bool {
    identity & (1 << set) != 0
}

/// A desired state, in few numbers.
#[derive(Clone, Debug)]
struct Model {
    /// Of own and other endpoints.
    identities: Vec<u32>,
    policies: Vec<v1::NodePolicy>,
    unmanaged: bool,
    deny_by_default: bool,
}

fn peer() -> impl Strategy<Value = v1::node_peer::Peer> {
    use v1::node_peer::Peer;
    prop_oneof![
        prop::sample::select(&SETS[..]).prop_map(|set| Peer::EndpointSet(set.to_owned())),
        (prop::sample::select(&CIDRS[..4]), prop::bool::ANY).prop_map(|(cidr, hole)| {
            let except = if hole && cidr != CIDRS[2] { vec![CIDRS[2].to_owned()] } else { Vec::new() };
            let except = if cidr == CIDRS[3] { Vec::new() } else { except };
            Peer::Cidr(v1::NodeCidr { cidr: cidr.to_owned(), except })
        }),
        Just(Peer::Cidr(v1::NodeCidr { cidr: CIDRS[4].to_owned(), except: vec![CIDRS[1].to_owned()] })),
        Just(Peer::NodeSet(NODES.to_owned())),
        vec(prop::sample::select(&CIDR_SETS[..]), 1..3).prop_map(|names| {
            let names = names.into_iter().map(|(name, _)| name.to_owned()).collect();
            Peer::CidrSets(v1::NodeCidrSets { names })
        }),
        Just(Peer::Cidr(v1::NodeCidr { cidr: "::/0".to_owned(), except: Vec::new() })),
        prop::sample::select(vec![
            v1::Entity::World,
            v1::Entity::Fleet,
            v1::Entity::Unmanaged,
            v1::Entity::RemoteNode,
            v1::Entity::All
        ])
        .prop_map(|entity| Peer::Entity(entity.into())),
    ]
}

fn rules() -> impl Strategy<Value = Option<v1::NodeRuleList>> {
    let port = prop_oneof![Just((80, 80)), Just((80, 90)), Just((1, 65535))]
        .prop_map(|(first, last)| v1::NodePortRange { protocol: 6, first, last });
    let rule = (prop::bool::ANY, prop::option::of(vec(peer(), 0..3)), prop::option::of(vec(port, 0..2)))
        .prop_map(|(allow, peers, ports)| v1::NodeRule {
            name: "r".to_owned(),
            action: if allow { v1::Action::Allow } else { v1::Action::Deny }.into(),
            peers: peers.map(|peers| v1::NodePeerList {
                items: peers.into_iter().map(|peer| v1::NodePeer { peer: Some(peer) }).collect(),
            }),
            ports: ports.map(|items| v1::NodePortList { items }),
        });
    prop::option::of(vec(rule, 0..3).prop_map(|items| v1::NodeRuleList { items }))
}

fn policy() -> impl Strategy<Value = v1::NodePolicy> {
    (prop::sample::select(&SETS[..]), rules(), prop::bool::ANY).prop_map(
        |(subject, ingress, default_deny_ingress)| v1::NodePolicy {
            tier: v1::Tier::Application.into(),
            subject_set: subject.to_owned(),
            default_deny_ingress: default_deny_ingress && ingress.is_some(),
            ingress,
            mode: v1::PolicyMode::Enforce.into(),
            ..v1::NodePolicy::default()
        },
    )
}

prop_compose! {
    fn model()(
        identities in vec(256_u32..264, OWN.len() + OTHERS.len()),
        policies in vec(policy(), 0..4),
        unmanaged in prop::bool::ANY,
        deny_by_default in prop::bool::weighted(0.2),
    ) -> Model {
        Model { identities, policies, unmanaged, deny_by_default }
    }
}

fn upsert(kind: ResourceType, name: String, message: &impl Message) -> v1::Upsert {
    v1::Upsert { r#type: kind.into(), name, requires: Vec::new(), bytes: message.encode_to_vec().into() }
}

impl Model {
    fn upserts(&self) -> Vec<v1::Upsert> {
        let unknown = if self.unmanaged { v1::Entity::Unmanaged } else { v1::Entity::Fleet };
        let default = if self.deny_by_default { v1::DefaultAction::Deny } else { v1::DefaultAction::Allow };
        let fleet = v1::NodeFleet {
            pools: vec!["10.200.0.0/16".to_owned()],
            default_action: default.into(),
            unknown_pool_address: unknown.into(),
            ..v1::NodeFleet::default()
        };
        let mut upserts = vec![upsert(ResourceType::Fleet, "fleet".to_owned(), &fleet)];
        for (name, last) in [("n1", 1), ("n2", 2)] {
            let route = v1::NodeRoute {
                addresses: vec![format!("192.0.2.{last}")],
                endpoint_cidrs: vec![format!("10.200.{last}.0/24")],
                identity: 0,
            };
            upserts.push(upsert(ResourceType::Node, name.to_owned(), &route));
        }
        let members: BTreeSet<(usize, u32)> = (0..SETS.len())
            .flat_map(|set| self.identities.iter().map(move |identity| (set, *identity)))
            .filter(|(set, identity)| is_member(*set, *identity))
            .collect();
        for (set, identity) in members {
            let name = format!("{}/{identity}", SETS[set]);
            upserts.push(v1::Upsert {
                r#type: ResourceType::IdentitySetMember.into(),
                name,
                ..v1::Upsert::default()
            });
        }
        for (index, policy) in self.policies.iter().enumerate() {
            upserts.push(upsert(ResourceType::Policy, format!("p{index}"), policy));
        }
        for (name, cidrs) in CIDR_SETS {
            let message = v1::NodeCidrSet { cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect() };
            upserts.push(upsert(ResourceType::CidrSet, name.to_owned(), &message));
        }
        for (address, identity) in OTHERS.iter().zip(&self.identities[OWN.len()..]) {
            let message = v1::NodeAddress { identity: *identity, node: "n2".to_owned() };
            upserts.push(upsert(ResourceType::Address, (*address).to_owned(), &message));
        }
        for (index, identity) in self.identities[..OWN.len()].iter().enumerate() {
            let message = v1::NodeEndpoint { identity: *identity, open: true, ..v1::NodeEndpoint::default() };
            upserts.push(upsert(ResourceType::Endpoint, format!("w{index}"), &message));
        }
        upserts
    }

    fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        desired.apply(Batch {
            revision: 5,
            identities_through: 300,
            upserts: self.upserts(),
            in_sync: true,
            ..Batch::default()
        });
        assert_eq!(desired.rejected().next(), None, "the model makes only what is understood");
        desired
    }
}

fn attachments() -> Attachments {
    let endpoints = OWN.iter().enumerate().map(|(index, address)| {
        let ifindex = 10 + u32::try_from(index).unwrap();
        let attachment = Attachment {
            name: format!("w{index}"),
            instance: String::new(),
            labels: BTreeMap::new(),
            interface: format!("weft{index:08x}"),
            ifindex,
            netns: String::new(),
            ours: true,
            peer: true,
            container_id: String::new(),
            address4: Some(address.parse().unwrap()),
            address6: None,
            mac: [2, 0, 0, 0, 0, 1],
            gateway_mac: [2, 0, 0, 0, 0, 2],
            ingress_bits_per_second: None,
            egress_bits_per_second: None,
            accepted: Some(1),
            lent_identity: None,
        };
        (attachment.name.clone(), attachment)
    });
    Attachments { boot_id: String::new(), endpoints: endpoints.collect(), ..Attachments::default() }
}

/// All the steps from what the kernel holds to the model, as the daemon takes them.
fn steps_to(twin: &Twin, model: &Model, former: &Model) -> Vec<Step> {
    steps_of(twin, &model.desired(), former.desired().sets())
}

fn input<'a>(desired: &'a Desired, attachments: &'a Attachments, former_sets: &'a IdentitySets) -> Input<'a> {
    Input {
        node: "n1",
        own_addresses: &[],
        host_addresses: &[],
        desired,
        attachments,
        departures: false,
        former_sets,
    }
}

fn steps_of(twin: &Twin, desired: &Desired, former_sets: &IdentitySets) -> Vec<Step> {
    let attachments = attachments();
    let input = input(desired, &attachments, former_sets);
    let mut now = twin.with(|state| state.tables.clone());
    let mut all = Vec::new();
    let mut unfinished = true;
    for stale in [Stale::Keep, Stale::Drop] {
        let compiled = compile::compile(input, &now, stale);
        let steps = diff(&now, &compiled.tables, Sweep::Remove);
        assert!(unfinished || steps.is_empty(), "a second pass that was not announced: {steps:#?}");
        unfinished = compiled.unfinished;
        now.apply_all(&steps);
        all.extend(steps);
    }
    all
}

/// As the kernel programs judge, from an interface's endpoint row on.
fn verdict(tables: &Tables, slot: u32, from: &str, port: u16) -> u32 {
    told(tables, slot, from, port).map_or(Action::Deny as u32, |row| row.action)
}

fn told(tables: &Tables, slot: u32, from: &str, port: u16) -> Option<PolicyRow> {
    let address: IpAddr = from.parse().unwrap();
    let Peer { identity, class, .. } = Who::new(tables, &Lengths::of([tables])).is(Address::from(address));
    tables.row(slot, Direction::Ingress, (identity, Class::from_number(class)?), (6, port))
}

/// The verdict on a packet to an own endpoint; closed endpoints drop all.
fn judge(tables: &Tables, ifindex: u32, from: &str, port: u16) -> u32 {
    let Some(endpoint) = tables.endpoints.get(&ifindex) else { return Action::Deny as u32 };
    if endpoint.flags & endpoint_flags::OPEN == 0 {
        return Action::Deny as u32;
    }
    verdict(tables, endpoint.subject, from, port)
}

/// The verdict of a program that looks into the tables at four moments. That the packet's own endpoint stays the same is for
/// epochs to see to.
fn judge_at([who, of_class, own, row]: [&Tables; 4], ifindex: u32, from: &str, port: u16) -> u32 {
    let judged = || {
        let endpoint = who.endpoints.get(&ifindex).filter(|own| own.flags & endpoint_flags::OPEN != 0)?;
        let address: IpAddr = from.parse().unwrap();
        let Peer { identity, class, .. } = Who::new(who, &Lengths::of([who])).is(Address::from(address));
        // A copy of the tables in which the subject's row is that of its moment, and the peers' that of theirs.
        let subject = of_class.subjects.get(&endpoint.subject)?;
        let number = own.rulebook(subject, Direction::Ingress, identity, Class::from_number(class)?);
        let rulebook = row.rulebooks.get(&number)?;
        let flow = PortKey::exact(6, port);
        (0..=PortKey::FULL_BITS).rev().find_map(|bits| rulebook.get(&flow.cut(bits)))
    };
    judged().map_or(Action::Deny as u32, |row: &PolicyRow| row.action)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn on_the_way_every_packet_is_judged_by_the_one_state_or_the_other(a in model(), mut b in model()) {
        // Who somebody is stays; what is thought of them changes.
        b.identities.clone_from(&a.identities);
        let mut twin = Twin::default();
        twin.write(&steps_to(&twin, &a, &a)).unwrap();
        let before = twin.with(|state| state.tables.clone());
        let steps = steps_to(&twin, &b, &a);
        let mut after = before.clone();
        after.apply_all(&steps);

        let mut now = before.clone();
        for step in &steps {
            now.apply(step);
            for ifindex in [10, 11] {
                for from in OWN.iter().chain(&OTHERS).chain(&WORLD) {
                    for port in [80, 85, 443] {
                        let judged = judge(&now, ifindex, from, port);
                        let either = [judge(&before, ifindex, from, port), judge(&after, ifindex, from, port)];
                        prop_assert!(either.contains(&judged), "from {from} to port {port} of {ifindex}: {judged}, \
                            neither of {either:?}, after {step:#?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nor_is_a_packet_that_is_judged_while_the_tables_change(
        a in model(),
        mut b in model(),
        moments in vec(any::<[prop::sample::Index; 4]>(), 40),
    ) {
        b.identities.clone_from(&a.identities);
        let mut twin = Twin::default();
        twin.write(&steps_to(&twin, &a, &a)).unwrap();
        let mut now = twin.with(|state| state.tables.clone());
        let mut life = vec![(0, now.clone())];
        let mut grace = 0;
        for step in steps_to(&twin, &b, &a) {
            now.apply(&step);
            grace += usize::from(step == Step::Settle);
            life.push((grace, now.clone()));
        }
        let (before, after) = (&life[0].1, &life[life.len() - 1].1);
        for moments in moments {
            // Who the peer is, the rulebook of its class, its own row, the rulebook's row: one after the other, and no
            // program goes on through a grace period.
            let mut moments = moments.map(|index| index.index(life.len()));
            moments.sort_unstable();
            if life[moments[0]].0 != life[moments[3]].0 {
                continue;
            }
            let [who, of_class, own, row] = moments.map(|moment| &life[moment].1);
            for ifindex in [10, 11] {
                for from in OWN.iter().chain(&OTHERS).chain(&WORLD) {
                    for port in [80, 85, 443] {
                        let judged = judge_at([who, of_class, own, row], ifindex, from, port);
                        let either = [judge(before, ifindex, from, port), judge(after, ifindex, from, port)];
                        prop_assert!(either.contains(&judged), "from {from} to port {port} of {ifindex}: {judged}, neither \
                            of {either:?}, at {moments:?} of {}", life.len());
                    }
                }
            }
        }
    }

    #[test]
    fn when_labels_change_too_nothing_is_allowed_that_neither_state_allows(a in model(), b in model()) {
        let mut twin = Twin::default();
        twin.write(&steps_to(&twin, &a, &a)).unwrap();
        let before = twin.with(|state| state.tables.clone());
        let steps = steps_to(&twin, &b, &a);
        let mut after = before.clone();
        after.apply_all(&steps);
        // The new policy on who the peer was, and on who the subject was.
        let former_peers = on_the_way(&a, &b, &a.identities);
        let former_subjects = [0, 1].map(|own| {
            let mut identities = b.identities.clone();
            identities[own] = a.identities[own];
            on_the_way(&a, &b, &identities)
        });

        let mut now = before.clone();
        for step in &steps {
            now.apply(step);
            for (index, ifindex) in [10, 11].into_iter().enumerate() {
                for from in OWN.iter().chain(&OTHERS).chain(&WORLD) {
                    if OWN.get(index) == Some(from) {
                        continue;
                    }
                    let mixtures = [&before, &after, &former_peers, &former_subjects[index]];
                    let may = mixtures.iter().any(|tables| {
                        subjects(&before, &after, ifindex)
                            .iter()
                            .any(|subject| verdict(tables, *subject, from, 80) == Action::Allow as u32)
                    });
                    let allowed = judge(&now, ifindex, from, 80) == Action::Allow as u32;
                    prop_assert!(may || !allowed, "from {from} to {ifindex} opens after {step:#?}");
                }
            }
        }
    }

    #[test]
    fn any_state_is_reached_from_any_other_and_then_nothing_is_left_to_do(a in model(), b in model()) {
        let mut twin = Twin::default();
        twin.write(&steps_to(&twin, &a, &a)).unwrap();
        twin.write(&steps_to(&twin, &b, &a)).unwrap();
        prop_assert_eq!(steps_to(&twin, &b, &b), Vec::new());
        // The verdicts are those of a kernel that never held anything else.
        let mut fresh = Twin::default();
        fresh.write(&steps_to(&fresh, &b, &b)).unwrap();
        let (late, fresh) = (twin.with(|state| state.tables.clone()), fresh.with(|state| state.tables.clone()));
        for ifindex in [10, 11] {
            for from in OWN.iter().chain(&OTHERS).chain(&WORLD) {
                for port in [80, 85, 443] {
                    prop_assert_eq!(judge(&late, ifindex, from, port), judge(&fresh, ifindex, from, port));
                }
            }
        }
    }
}

/// Slots that the interface's endpoint has before and after.
fn subjects(before: &Tables, after: &Tables, ifindex: u32) -> Vec<u32> {
    [before, after]
        .iter()
        .filter_map(|tables| tables.endpoints.get(&ifindex))
        .map(|row| row.subject)
        .collect()
}

/// The second model's policies while endpoints have these identities; slots as the first model left them.
fn on_the_way(first: &Model, second: &Model, identities: &[u32]) -> Tables {
    let mut twin = Twin::default();
    let between = Model { identities: identities.to_vec(), ..second.clone() };
    twin.write(&steps_to(&twin, first, first)).unwrap();
    twin.write(&steps_to(&twin, &between, first)).unwrap();
    twin.with(|state| state.tables.clone())
}

#[test]
fn without_the_whole_word_of_a_controller_what_runs_is_left_as_it_is() {
    let model =
        Model { identities: vec![256; 5], policies: Vec::new(), unmanaged: false, deny_by_default: false };
    let mut twin = Twin::default();
    twin.write(&steps_to(&twin, &model, &model)).unwrap();
    let running = twin.with(|state| state.tables.clone());
    let (desired, attachments) = (Desired::default(), attachments());
    let input = input(&desired, &attachments, desired.sets());

    let compiled = compile::compile(input, &running, Stale::Keep);

    assert_eq!(diff(&running, &compiled.tables, Sweep::Keep), Vec::new());
}
