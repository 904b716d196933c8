//! The node itself as a subject, from one desired state to another.

use weft_shared::layout::{FailsafeKey, PrefixKey};

use super::*;
use crate::plan::{compile::prefix_key, tables::HostRow, who::masked};

/// Label sets' numbers that the node may have; 0: the controller has not said.
const IDENTITIES: [u32; 3] = [0, 300, 301];

/// A node's host policies and what holds against them.
#[derive(Clone, Debug)]
pub(super) struct Host {
    identity: u32,
    policies: Vec<v1::NodePolicy>,
    failsafe: Vec<v1::NodeFailsafe>,
    free: bool,
}

prop_compose! {
    pub(super) fn host()(
        identity in prop::sample::select(&IDENTITIES[..]),
        policies in vec(policy(), 0..3),
        failsafe in vec((prop::option::of(prop::sample::select(&CIDRS[..])), 80_u32..82), 0..3),
        free in prop::bool::ANY,
    ) -> Host {
        let failsafe = failsafe.into_iter().map(|(cidr, port)| v1::NodeFailsafe {
            protocol: 6,
            first: port,
            last: port,
            direction: v1::Direction::Ingress.into(),
            cidrs: cidr.into_iter().map(str::to_owned).collect(),
        });
        Host { identity, policies, failsafe: failsafe.collect(), free }
    }
}

impl Host {
    pub(super) fn upserts(&self, model: &Model) -> Vec<v1::Upsert> {
        let mut upserts = model.upserts();
        let host_to_endpoint = if self.free { v1::HostToEndpoint::Allow } else { v1::HostToEndpoint::Policy };
        let fleet = v1::NodeFleet {
            host_to_endpoint: host_to_endpoint.into(),
            failsafe: self.failsafe.clone(),
            ..v1::NodeFleet::decode(upserts[0].bytes.clone()).unwrap()
        };
        let own = v1::NodeRoute {
            addresses: vec!["192.0.2.1".to_owned()],
            endpoint_cidrs: vec!["10.200.1.0/24".to_owned()],
            identity: self.identity,
        };
        upserts.push(upsert(ResourceType::Fleet, "fleet".to_owned(), &fleet));
        upserts.push(upsert(ResourceType::Node, "n1".to_owned(), &own));
        for identity in &IDENTITIES[1..] {
            let name = format!("{NODES}/{identity}");
            upserts.push(v1::Upsert {
                r#type: ResourceType::IdentitySetMember.into(),
                name,
                ..v1::Upsert::default()
            });
        }
        for (place, policy) in self.policies.iter().enumerate() {
            let policy =
                v1::NodePolicy { subject_set: NODES.to_owned(), subject_is_nodes: true, ..policy.clone() };
            upserts.push(upsert(ResourceType::Policy, format!("host-{place}"), &policy));
        }
        upserts
    }

    fn desired(&self, model: &Model) -> Desired {
        let mut desired = Desired::default();
        desired.apply(Batch {
            revision: 5,
            identities_through: 300,
            upserts: self.upserts(model),
            in_sync: true,
            ..Batch::default()
        });
        assert_eq!(desired.rejected().next(), None, "the model makes only what is understood");
        desired
    }

    fn is_judged(&self) -> bool {
        self.policies.iter().any(|policy| policy.ingress.is_some())
    }
}

/// Whether the node takes a packet, as the kernel programs find it.
fn takes(tables: &Tables, from: &str, port: u16) -> bool {
    let Some(HostRow { subject, .. }) = tables.host else { return true };
    let address: IpAddr = from.parse().unwrap();
    let failsafe = (0..=128).rev().find_map(|bits| {
        let key = PrefixKey { bits, address: masked(address.into(), bits) };
        tables.failsafe.get(&FailsafeKey::new(Direction::Ingress, key))
    });
    let flow = PortKey::exact(6, port);
    let held = failsafe.and_then(|number| {
        (0..=PortKey::FULL_BITS).rev().find_map(|bits| tables.rulebooks[number].get(&flow.cut(bits)))
    });
    held.is_some_and(|row| row.action == Action::Allow as u32)
        || verdict(tables, subject, from, port) == Action::Allow as u32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn on_the_way_the_node_is_judged_by_the_one_state_or_the_other(
        model in model(),
        (a, b) in (host(), host()),
    ) {
        let mut twin = Twin::default();
        let (before, after) = (a.desired(&model), b.desired(&model));
        twin.write(&steps_of(&twin, &before, before.sets())).unwrap();
        let tables = twin.with(|state| state.tables.clone());
        prop_assert_eq!(tables.host.is_some(), a.is_judged());
        let steps = steps_of(&twin, &after, before.sets());
        let mut end = tables.clone();
        end.apply_all(&steps);
        prop_assert_eq!(end.host.map(|host| host.own_endpoints_free), b.is_judged().then_some(b.free));
        prop_assert!(b.is_judged() || end.failsafe.is_empty());

        let mut now = tables.clone();
        for step in &steps {
            now.apply(step);
            for from in OTHERS.iter().chain(&WORLD) {
                for port in [80, 81, 85, 443] {
                    let taken = takes(&now, from, port);
                    let either = [takes(&tables, from, port), takes(&end, from, port)];
                    prop_assert!(either.contains(&taken), "from {from} to port {port}: {taken} after {step:#?}");
                }
            }
        }
        // I10: whatever the policies say.
        for entry in b.failsafe.iter().filter(|entry| entry.cidrs.is_empty()) {
            let port = u16::try_from(entry.first).unwrap();
            prop_assert!(WORLD.iter().all(|from| takes(&end, from, port)));
        }
    }
}

#[test]
fn a_prefix_of_ipv6_is_of_no_ipv4_address() {
    let failsafe = |cidr: &str| v1::NodeFailsafe {
        protocol: 6,
        first: 80,
        last: 80,
        direction: v1::Direction::Ingress.into(),
        cidrs: vec![cidr.to_owned()],
    };
    let model =
        Model { identities: vec![256; 5], policies: Vec::new(), unmanaged: true, deny_by_default: true };
    let closed = v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        ingress: Some(v1::NodeRuleList::default()),
        default_deny_ingress: true,
        mode: v1::PolicyMode::Enforce.into(),
        ..v1::NodePolicy::default()
    };
    for (cidr, v4, v6) in [("::/0", false, true), ("0.0.0.0/0", true, false), ("::ffff:0:0/96", false, false)]
    {
        let host = Host {
            identity: 300,
            policies: vec![closed.clone()],
            failsafe: vec![failsafe(cidr)],
            free: true,
        };
        let twin = Twin::default();
        let desired = host.desired(&model);
        let mut tables = Tables::default();
        tables.apply_all(&steps_of(&twin, &desired, desired.sets()));
        assert_eq!((takes(&tables, WORLD[0], 80), takes(&tables, WORLD[4], 80)), (v4, v6), "{cidr}");
        assert!(!takes(&tables, WORLD[0], 81));
    }
    assert_eq!(prefix_key("0.0.0.0/0".parse().unwrap()).bits, Address::MAPPED_PREFIX_BITS);
}
