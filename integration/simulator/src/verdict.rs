//! The verdict that a set of tables gives, as the kernel programs reach it; and the one that the rules give.
use std::collections::BTreeMap;

use weft_noded::{desired::Desired, plan::tables::Tables};
use weft_shared::{
    layout::{Action, Class, Direction, FIRST_GLOBAL_IDENTITY, FIRST_LOCAL_IDENTITY},
    policy::{
        model::{
            FleetConfig, FlowPort, NodePeer, NodePolicy, NodeRule, Party, Peer, Policy, Rule, Selector,
            Subject,
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

/// A node's policies with selectors in place of the sets' names, as operators wrote them.
pub(crate) fn written(desired: &Desired, selectors: &BTreeMap<String, Selector>) -> Vec<Policy> {
    desired.policies().values().filter_map(|policy| written_policy(policy, selectors)).collect()
}

fn written_policy(policy: &NodePolicy, selectors: &BTreeMap<String, Selector>) -> Option<Policy> {
    let rules = |rules: &Option<Vec<NodeRule>>| -> Option<Vec<Rule>> {
        rules.as_ref().map(|rules| rules.iter().map(|rule| written_rule(rule, selectors)).collect())
    };
    Some(Policy {
        name: policy.name.clone(),
        tier: policy.tier,
        mode: policy.mode,
        subject: Subject::Endpoints(selectors.get(policy.subject.named())?.clone()),
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
    })
}

fn written_rule(rule: &NodeRule, selectors: &BTreeMap<String, Selector>) -> Rule {
    let peer = |peer: &NodePeer| match peer {
        Peer::Endpoints(set) => selectors.get(set).cloned().map(Peer::Endpoints),
        Peer::Cidr { cidr, except } => Some(Peer::Cidr { cidr: *cidr, except: except.clone() }),
        Peer::Nodes(_) | Peer::CidrSet(_) => None,
        Peer::Entity(entity) => Some(Peer::Entity(*entity)),
    };
    Rule {
        name: rule.name.clone(),
        action: rule.action,
        peers: rule.peers.as_ref().map(|peers| peers.iter().filter_map(peer).collect()),
        ports: rule.ports.clone(),
    }
}

/// Whether the rules themselves allow it.
pub(crate) fn rules_allow(
    policies: &[Policy],
    default_action: Action,
    subject: &Party,
    peer: &Party,
    direction: Direction,
    port: FlowPort,
) -> bool {
    let config = FleetConfig { default_action, ..FleetConfig::of_pools(Vec::new()) };
    let context = oracle::Context { policies, cidr_sets: &[], config: &config };
    oracle::judge(context, subject, peer, direction, port).action == Action::Allow
}
