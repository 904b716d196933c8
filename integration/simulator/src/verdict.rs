//! The verdict that a set of tables gives, as the kernel programs reach it; and the one that the rules give.
use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use weft_controller::identity::{is_of_node, without_mark};
use weft_noded::{
    desired::Desired,
    plan::{tables::Tables, who::masked},
};
use weft_shared::{
    layout::{
        Action, Address, Class, Direction, FIRST_GLOBAL_IDENTITY, FIRST_LOCAL_IDENTITY, FailsafeKey, PortKey,
        PrefixKey,
    },
    policy::{
        model::{
            CidrSet, CidrSetSelector, FleetConfig, FlowPort, Labels, NodePeer, NodePolicy, NodeRule, Party,
            Peer, Policy, Rule, Selector, Subject,
        },
        oracle,
    },
};

/// Of one subject about a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) direction: Direction,
    pub(crate) identity: u32,
    pub(crate) class: Class,
    pub(crate) port: FlowPort,
}

/// Whether the tables allow a flow of the subject in this slot.
pub(crate) fn allows(tables: &Tables, slot: u32, question: Question) -> bool {
    let Question { direction, identity, class, port } = question;
    let global = (FIRST_GLOBAL_IDENTITY..FIRST_LOCAL_IDENTITY).contains(&identity);
    if global && identity > tables.identities_through {
        return false;
    }
    let row = tables.row(slot, direction, (identity, class), (port.protocol, port.port));
    row.is_some_and(|row| row.action == Action::Allow as u32)
}

/// Whether the tables allow a flow of the node itself, which is in this slot: as at a hook of its uplinks or endpoints, where
/// the other end's address is known. `own_endpoint`: it is one of this node's endpoints.
pub(crate) fn node_allows(
    tables: &Tables,
    slot: u32,
    question: Question,
    address: IpAddr,
    own_endpoint: bool,
) -> bool {
    let free = tables.host.is_some_and(|host| host.own_endpoints_free);
    let reaches_own = own_endpoint && free && question.direction == Direction::Egress;
    reaches_own || is_failsafe(tables, question, address) || allows(tables, slot, question)
}

/// What the longest prefix that the address is in says.
fn is_failsafe(tables: &Tables, question: Question, address: IpAddr) -> bool {
    let address = Address::from(address);
    let mut keys = (0..=128).rev().map(|bits| {
        let prefix = PrefixKey { bits, address: masked(address, bits) };
        FailsafeKey::new(question.direction, prefix)
    });
    let book = keys.find_map(|key| tables.failsafe.get(&key)).and_then(|number| tables.rulebooks.get(number));
    let flow = PortKey::exact(question.port.protocol, question.port.port);
    let row = book.and_then(|book| (0..=PortKey::FULL_BITS).rev().find_map(|bits| book.get(&flow.cut(bits))));
    row.is_some_and(|row| row.action == Action::Allow as u32)
}

/// Who is judged by an identity's labels: an endpoint, or the node itself.
pub(crate) fn subject(labels: &Labels) -> Party {
    let class = if is_of_node(labels) { Class::Host } else { Class::Fleet };
    Party { class, labels: without_mark(labels), address: None, local: true }
}

/// What the rules are, as operators wrote them.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) policies: Vec<Policy>,
    pub(crate) cidr_sets: Vec<CidrSet>,
    pub(crate) config: FleetConfig,
}

impl Rules {
    /// A node's, with selectors in place of the sets' names. `None`: it has no configuration.
    pub(crate) fn of_node(desired: &Desired, selectors: &BTreeMap<String, Selector>) -> Option<Self> {
        let fleet = desired.fleet()?;
        let set = |(name, cidrs): (&String, &Vec<IpNet>)| CidrSet {
            name: name.clone(),
            labels: Labels::new(),
            cidrs: cidrs.clone(),
        };
        let policies = desired.policies().values();
        Some(Self {
            policies: policies.filter_map(|policy| written_policy(policy, selectors)).collect(),
            cidr_sets: desired.cidr_sets().iter().map(set).collect(),
            config: FleetConfig {
                default_action: fleet.default_action,
                host_to_endpoint: fleet.host_to_endpoint,
                failsafe: fleet.failsafe.clone(),
                ..FleetConfig::of_pools(Vec::new())
            },
        })
    }

    /// Whether they allow it.
    pub(crate) fn allow(&self, subject: &Party, peer: &Party, direction: Direction, port: FlowPort) -> bool {
        let Self { policies, cidr_sets, config } = self;
        let context = oracle::Context { policies, cidr_sets, config };
        oracle::judge(context, subject, peer, direction, port).action == Action::Allow
    }
}

fn written_policy(policy: &NodePolicy, selectors: &BTreeMap<String, Selector>) -> Option<Policy> {
    let rules = |rules: &Option<Vec<NodeRule>>| -> Option<Vec<Rule>> {
        rules.as_ref().map(|rules| rules.iter().map(|rule| written_rule(rule, selectors)).collect())
    };
    let selector = selectors.get(policy.subject.named())?.clone();
    Some(Policy {
        name: policy.name.clone(),
        tier: policy.tier,
        mode: policy.mode,
        subject: if policy.subject.is_nodes() {
            Subject::Nodes(selector)
        } else {
            Subject::Endpoints(selector)
        },
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
    })
}

fn written_rule(rule: &NodeRule, selectors: &BTreeMap<String, Selector>) -> Rule {
    let written = |peer: &NodePeer| -> Vec<Peer> {
        match peer {
            Peer::Endpoints(set) => selectors.get(set).cloned().map(Peer::Endpoints).into_iter().collect(),
            Peer::Nodes(set) => selectors.get(set).cloned().map(Peer::Nodes).into_iter().collect(),
            Peer::Cidr { cidr, except } => vec![Peer::Cidr { cidr: *cidr, except: except.clone() }],
            Peer::CidrSet(names) => {
                names.iter().map(|name| Peer::CidrSet(CidrSetSelector::Name(name.clone()))).collect()
            }
            Peer::Entity(entity) => vec![Peer::Entity(*entity)],
        }
    };
    Rule {
        name: rule.name.clone(),
        action: rule.action,
        peers: rule.peers.as_ref().map(|peers| peers.iter().flat_map(written).collect()),
        ports: rule.ports.clone(),
    }
}
