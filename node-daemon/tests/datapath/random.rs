//! A node of a random fleet: what its controller sends it, the whole way into the kernel, and what is said of a flow that the
//! programs judge otherwise than the rules do.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use weft_noded::{
    desired::{
        Batch, Desired, Key,
        attachments::{Attachment, Attachments},
    },
    plan::{
        compile::{Input, Stale, compile},
        diff::{Sweep, diff},
        tables::Tables,
    },
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::{Event, Reason},
    policy::{
        arbitrary::{self, Fleet},
        case,
        compile::{IdentitySets, rule_number},
        model::{Action, Direction, HostToEndpoint, Labels, Peer, Policy, Selector},
        oracle, wire,
    },
};

use crate::{
    harness::Datapath,
    world::{self, gateway_mac, mac},
};

const FIRST_IDENTITY: u32 = 256;
const FIRST_NODE_IDENTITY: u32 = 1000;

/// Of endpoints with the label set of this place.
pub(crate) fn endpoint_identity(place: usize) -> u32 {
    FIRST_IDENTITY + u32::try_from(place).expect("few label sets")
}

/// Of nodes with these labels.
pub(crate) fn node_identity(labels: &Labels) -> u32 {
    let place = arbitrary::node_label_sets().iter().position(|set| set == labels).expect("one of them");
    FIRST_NODE_IDENTITY + u32::try_from(place).expect("few label sets")
}

/// The whole state of a node, to which its neighbours and endpoints are added.
pub(crate) struct Sent(Vec<v1::Upsert>);

impl Sent {
    /// The configuration, the policies, and what they name.
    pub(crate) fn of(random: &Fleet) -> Self {
        let mut sent = Self(Vec::new());
        let fleet = v1::NodeFleet {
            pools: arbitrary::POOLS.map(str::to_owned).to_vec(),
            default_action: match random.config.default_action {
                Action::Allow => v1::DefaultAction::Allow,
                Action::Deny => v1::DefaultAction::Deny,
            }
            .into(),
            host_to_endpoint: match random.config.host_to_endpoint {
                HostToEndpoint::Allow => v1::HostToEndpoint::Allow,
                HostToEndpoint::Policy => v1::HostToEndpoint::Policy,
            }
            .into(),
            failsafe: wire::failsafe_to_node(&random.config.failsafe),
            unknown_pool_address: v1::Entity::Unmanaged.into(),
            ..v1::NodeFleet::default()
        };
        sent.add(ResourceType::Fleet, "fleet", &fleet);
        for member in members(random) {
            sent.add(ResourceType::IdentitySetMember, &member, &());
        }
        for set in &random.cidr_sets {
            let cidrs = set.cidrs.iter().map(ToString::to_string).collect();
            sent.add(ResourceType::CidrSet, &set.name, &v1::NodeCidrSet { cidrs });
        }
        for policy in &random.policies {
            let message = wire::to_node(policy, |meant| random.cidr_set_names(meant));
            sent.add(ResourceType::Policy, &policy.name, &message);
        }
        sent
    }

    pub(crate) fn add(&mut self, kind: ResourceType, name: &str, message: &impl prost::Message) {
        self.0.push(v1::Upsert {
            r#type: kind.into(),
            name: name.to_owned(),
            requires: Vec::new(),
            bytes: message.encode_to_vec().into(),
        });
    }

    /// An endpoint of the node, with the label set of this place.
    pub(crate) fn add_endpoint(&mut self, name: &str, place: usize) {
        let identity = endpoint_identity(place);
        let message = v1::NodeEndpoint { identity, open: true, ..v1::NodeEndpoint::default() };
        self.add(ResourceType::Endpoint, name, &message);
    }

    fn batch(self) -> Batch {
        let key = |upsert: &v1::Upsert| Key { kind: upsert.r#type(), name: upsert.name.clone() };
        Batch {
            nonce: 1,
            revision: 1,
            identities_through: 10_000,
            listed: Some(self.0.iter().map(key).collect()),
            upserts: self.0,
            in_sync: true,
            ..Batch::default()
        }
    }
}

/// Of the sets that policies name.
fn members(random: &Fleet) -> BTreeSet<String> {
    let endpoints = arbitrary::label_sets();
    let nodes = arbitrary::node_label_sets();
    let of_endpoints = |selector: &Selector| -> Vec<String> {
        let set = wire::endpoint_set(selector);
        let members = endpoints.iter().enumerate().filter(|(_, labels)| selector.matches(labels));
        members.map(|(place, _)| format!("{set}/{}", endpoint_identity(place))).collect()
    };
    let of_nodes = |selector: &Selector| -> Vec<String> {
        let set = wire::node_set(selector);
        let members = nodes.iter().filter(|labels| selector.matches(labels));
        members.map(|labels| format!("{set}/{}", node_identity(labels))).collect()
    };
    let peers = random.policies.iter().flat_map(Policy::peers).flat_map(|peer| match peer {
        Peer::Endpoints(selector) => of_endpoints(selector),
        Peer::Nodes(selector) => of_nodes(selector),
        Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => Vec::new(),
    });
    let subjects = random.policies.iter().map(|policy| &policy.subject).flat_map(|subject| {
        if subject.is_nodes() { of_nodes(subject.named()) } else { of_endpoints(subject.named()) }
    });
    peers.chain(subjects).collect()
}

/// An endpoint with the label set of this place, on an interface of this node.
pub(crate) fn attachment(
    name: &str,
    place: usize,
    ifindex: u32,
    (address4, address6): (Ipv4Addr, Ipv6Addr),
) -> Attachment {
    Attachment {
        name: name.to_owned(),
        instance: String::new(),
        labels: arbitrary::label_sets()[place].clone(),
        interface: format!("t{ifindex}"),
        ifindex,
        netns: String::new(),
        ours: false,
        peer: true,
        container_id: String::new(),
        address4: Some(address4),
        address6: Some(address6),
        mac: mac(ifindex),
        gateway_mac: gateway_mac(ifindex),
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
        accepted: Some(0),
        lent_identity: None,
    }
}

/// A node whose kernel enforces one random fleet's policies after the other's.
pub(crate) struct Node {
    pub(crate) datapath: Datapath,
    pub(crate) tables: Tables,
    former_sets: IdentitySets,
    fresh: u16,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            datapath: Datapath::new(),
            tables: world::tables(),
            former_sets: IdentitySets::new(),
            fresh: 0,
        }
    }

    /// Takes a whole state as the node called `own`, whose addresses are these: those of its route, and all it has.
    pub(crate) fn enforce(
        &mut self,
        sent: Sent,
        own_addresses: &[IpAddr],
        host_addresses: &[IpAddr],
        attachments: &Attachments,
    ) {
        let mut desired = Desired::default();
        desired.apply(sent.batch());
        assert_eq!(desired.rejected().next(), None);
        for stale in [Stale::Keep, Stale::Drop] {
            let input = Input {
                node: "own",
                own_addresses,
                host_addresses,
                desired: &desired,
                attachments,
                departures: false,
                former_sets: &self.former_sets,
            };
            let compiled = compile(input, &self.tables, stale);
            assert_eq!((compiled.unfit, compiled.problems), (Vec::new(), Vec::new()));
            let steps = diff(&self.tables, &compiled.tables, Sweep::Remove);
            self.datapath.write(&steps);
            self.tables.apply_all(&steps);
        }
        self.former_sets.clone_from(desired.sets());
        self.datapath.forget_flows();
    }

    /// A source port or echo identifier that makes a flow a new one.
    pub(crate) fn fresh(&mut self) -> u16 {
        self.fresh = self.fresh.wrapping_add(1);
        self.fresh
    }
}

/// What is said of a flow, by the rules or by the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Let through, or dropped: for which reason, at which end and by which rule.
    pub(crate) verdict: Result<(), (u32, Direction, u32)>,
    /// Where audited policies would decide otherwise: what, at which end, and by which rule.
    pub(crate) audit: Option<(Action, Direction, u32)>,
}

impl Said {
    /// By the rules, of each end that is judged: the source's egress, then the destination's ingress.
    pub(crate) fn by_rules(judged: impl IntoIterator<Item = (Direction, oracle::Verdict)>) -> Self {
        let mut said = Self { verdict: Ok(()), audit: None };
        for (direction, verdict) in judged {
            let number = |step: &oracle::Step| {
                if step.policy.is_empty() { 0 } else { rule_number(&step.policy, direction, &step.rule) }
            };
            let audit = verdict.audit.as_ref();
            let audit = audit.map(|audit| (audit.action, direction, number(&audit.step)));
            said.audit = said.audit.or(audit);
            if verdict.action == Action::Deny {
                let decision = verdict.decision().expect("something decided");
                said.verdict = Err((Reason::PolicyDenied as u32, direction, number(decision)));
                break;
            }
        }
        // What would be dropped at the one end and is dropped at the other makes no difference.
        let is = if said.verdict.is_ok() { Action::Allow } else { Action::Deny };
        said.audit = said.audit.filter(|(action, ..)| *action != is);
        said
    }

    /// By the programs: the event of a drop, and what was told of audited policies.
    pub(crate) fn by_programs<T>(judged: &Result<T, Event>, audited: Option<Event>) -> Self {
        let direction = |number| {
            let found = Direction::ALL.into_iter().find(|direction| *direction as u8 == number);
            found.expect("a direction")
        };
        let audit = audited.map(|event| {
            let allows = u32::from(event.audit_action) == Action::Allow as u32;
            let action = if allows { Action::Allow } else { Action::Deny };
            (action, direction(event.audit_direction), event.audit_rule)
        });
        let dropped = |event: &Event| (event.reason, direction(event.direction), event.rule);
        Self { verdict: judged.as_ref().map(drop).map_err(dropped), audit }
    }

    /// For a person.
    pub(crate) fn text(&self, fleet: &Fleet) -> String {
        let verdict = match self.verdict {
            Ok(()) => "allow".to_owned(),
            Err((reason, _, rule)) if reason == Reason::PolicyDenied as u32 => {
                case::verdict(fleet, Action::Deny, rule)
            }
            Err((reason, ..)) => format!("dropped: {:?}", Reason::from_number(reason)),
        };
        let audit = self.audit.map(|(action, _, rule)| case::verdict(fleet, action, rule));
        audit.map_or(verdict.clone(), |audit| format!("{verdict}; with audited policies: {audit}"))
    }

    /// An error unless the programs say what the rules say.
    pub(crate) fn same(fleet: &Fleet, expected: Self, seen: Self) -> Result<(), case::Wrong> {
        if seen == expected {
            return Ok(());
        }
        Err(case::Wrong { expected: expected.text(fleet), seen: seen.text(fleet) })
    }
}
