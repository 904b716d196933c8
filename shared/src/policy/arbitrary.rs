//! Random fleets, parties and flows for property tests, drawn from small sets so that rules meet. They use all of the
//! language.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    model::{
        Action, CidrSet, CidrSetSelector, Class, Direction, Entity, Failsafe, FleetConfig, FlowPort,
        HostToEndpoint, LISTENER_DISCOVERY, Labels, Mode, Party, Peer, Policy, Pool, PortRange, Requirement,
        Rule, RuleAction, Selector, Subject, Tier, needs_of_the_link,
    },
    oracle::Context,
};

/// The pools of every random fleet.
pub const POOLS: [&str; 2] = ["10.200.0.0/16", "fd00:77::/48"];

/// Pools as prefixes.
pub fn pools() -> Vec<IpNet> {
    POOLS.iter().map(|pool| net(pool)).collect()
}

/// All that verdicts depend on.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub policies: Vec<Policy>,
    /// Always those of [`CIDR_SETS`], with random prefixes.
    pub cidr_sets: Vec<CidrSet>,
    pub config: FleetConfig,
}

impl Fleet {
    /// For the oracle.
    pub fn context(&self) -> Context<'_> {
        Context { policies: &self.policies, cidr_sets: &self.cidr_sets, config: &self.config }
    }

    /// Names of the CIDR sets that are meant, as the controller resolves them.
    pub fn cidr_set_names(&self, meant: &CidrSetSelector) -> Vec<String> {
        let selected = self.cidr_sets.iter().filter(|set| meant.selects(set));
        selected.map(|set| set.name.clone()).collect()
    }
}

/// A fleet.
pub fn fleet() -> impl Strategy<Value = Fleet> {
    (policies(), cidr_sets(), config()).prop_map(|(policies, cidr_sets, config)| Fleet {
        policies,
        cidr_sets,
        config,
    })
}

/// A configuration of the pools above.
pub fn config() -> impl Strategy<Value = FleetConfig> {
    let pool = |cidr: IpNet| Pool { cidr, node_prefix_length: cidr.prefix_len() + 8 };
    (any::<bool>(), any::<bool>(), option::of(vec(failsafe(), 0..3))).prop_map(
        move |(allow, judged, failsafe)| FleetConfig {
            default_action: if allow { Action::Allow } else { Action::Deny },
            host_to_endpoint: if judged { HostToEndpoint::Policy } else { HostToEndpoint::Allow },
            failsafe: failsafe.unwrap_or_else(Failsafe::defaults),
            ..FleetConfig::of_pools(pools().into_iter().map(pool).collect())
        },
    )
}

/// An entry, of some prefixes or of everybody.
pub fn failsafe() -> impl Strategy<Value = Failsafe> {
    (ports(), any::<bool>(), vec(select(CIDRS.to_vec()), 0..2)).prop_map(|(range, ingress, prefixes)| {
        // Entries say no types.
        let (first, last) =
            if matches!(range.protocol, 1 | 58) { (0, u16::MAX) } else { (range.first, range.last) };
        Failsafe {
            protocol: range.protocol,
            first,
            last,
            direction: if ingress { Direction::Ingress } else { Direction::Egress },
            prefixes: prefixes.into_iter().map(net).collect(),
        }
    })
}

/// Label sets of endpoints, all different; their places in the list number them.
pub fn label_sets() -> Vec<Labels> {
    let apps = [None, Some("web"), Some("api"), Some("db")];
    let envs = [None, Some("prod"), Some("dev")];
    apps.iter().flat_map(|app| envs.iter().map(|env| labels(&[("app", *app), ("env", *env)]))).collect()
}

/// Label sets of nodes, all different, and some equal to endpoints'; their places in the list number them after those of
/// the endpoints.
pub fn node_label_sets() -> Vec<Labels> {
    let roles = [None, Some("gateway"), Some("db")];
    let envs = [None, Some("prod")];
    roles.iter().flat_map(|role| envs.iter().map(|env| labels(&[("role", *role), ("env", *env)]))).collect()
}

fn labels(pairs: &[(&str, Option<&str>)]) -> Labels {
    let present = pairs.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
    present.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A fleet's policies of all tiers and modes, with subjects and peers of all kinds.
pub fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let draft = (tier(), mode(), subject(), any::<(bool, bool)>(), any::<(bool, bool)>());
    let policy = draft.prop_flat_map(|(tier, mode, subject, present, default_deny)| {
        let rules = move || rules(matches!(tier, TierDraft::Admin(_)));
        // Where there is no default deny to speak of, a policy without a direction would be refused.
        let ingress = present.0 || !(present.1 || matches!(tier, TierDraft::Application));
        (option_if(ingress, rules()), option_if(present.1, rules())).prop_map(move |(ingress, egress)| {
            let tier = match tier {
                TierDraft::Admin(order) => Tier::Admin { order },
                TierDraft::Baseline(order) => Tier::Baseline { order },
                TierDraft::Application => Tier::Application {
                    default_deny_ingress: default_deny.0 && ingress.is_some(),
                    default_deny_egress: default_deny.1 && egress.is_some(),
                },
            };
            Policy { name: String::new(), tier, mode, subject: subject.clone(), ingress, egress }
        })
    });
    vec(policy, 0..7).prop_map(numbered)
}

/// Policies of the application tier that are enforced, about endpoints by labels, prefixes and classes: the language's
/// oldest part.
pub fn application_policies() -> impl Strategy<Value = Vec<Policy>> {
    let rules = || {
        let peer = prop_oneof![
            3 => selector().prop_map(Peer::Endpoints),
            3 => cidr(),
            2 => entity().prop_map(Peer::Entity),
        ];
        rules_of(select(vec![RuleAction::Allow, RuleAction::Allow, RuleAction::Deny]), peer)
    };
    let draft = (selector(), option::of(rules()), option::of(rules()), any::<(bool, bool)>());
    let policy = draft.prop_map(|(subject, ingress, egress, deny)| Policy {
        name: String::new(),
        tier: Tier::Application {
            default_deny_ingress: deny.0 && ingress.is_some(),
            default_deny_egress: deny.1 && egress.is_some(),
        },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(subject),
        ingress,
        egress,
    });
    vec(policy, 0..5).prop_map(numbered)
}

fn numbered(mut policies: Vec<Policy>) -> Vec<Policy> {
    for (index, policy) in policies.iter_mut().enumerate() {
        policy.name = format!("policy-{index}");
    }
    policies
}

#[derive(Clone, Copy, Debug)]
enum TierDraft {
    Admin(u32),
    Application,
    Baseline(u32),
}

/// Few orders, so that names break ties.
fn tier() -> impl Strategy<Value = TierDraft> {
    let order = || select(vec![0, 10, 1000, Tier::ORDER_MAX]);
    prop_oneof![
        2 => order().prop_map(TierDraft::Admin),
        3 => Just(TierDraft::Application),
        2 => order().prop_map(TierDraft::Baseline),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Audit)]
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        3 => selector().prop_map(Subject::Endpoints),
        2 => node_selector().prop_map(Subject::Nodes),
    ]
}

fn option_if<T: Clone + std::fmt::Debug>(
    present: bool,
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    value.prop_map(move |value| present.then_some(value))
}

/// Who is judged: an endpoint, or the node itself.
pub fn judged() -> impl Strategy<Value = Party> {
    let party = |class| move |labels| Party { class, labels, address: None, local: true };
    prop_oneof![
        select(label_sets()).prop_map(party(Class::Fleet)),
        select(node_label_sets()).prop_map(party(Class::Host)),
    ]
}

/// The other party of a flow: an endpoint or a node by its place in [`label_sets`] or [`node_label_sets`], or an address
/// outside of the fleet.
pub fn peer() -> impl Strategy<Value = Party> {
    let endpoint = (select(label_sets()), any::<bool>()).prop_map(|(labels, local)| Party {
        class: Class::Fleet,
        labels,
        address: None,
        local,
    });
    let node = |class| {
        select(node_label_sets()).prop_map(move |labels| Party { class, labels, address: None, local: false })
    };
    let world = select(ADDRESSES.to_vec()).prop_map(|text| Party {
        class: Class::World,
        labels: Labels::new(),
        address: Some(address(text)),
        local: false,
    });
    let unmanaged = Party { class: Class::Unmanaged, labels: Labels::new(), address: None, local: false };
    prop_oneof![
        4 => endpoint,
        4 => world,
        1 => node(Class::Host),
        2 => node(Class::RemoteNode),
        2 => Just(unmanaged),
    ]
}

/// What a flow goes to: mostly ports that rules name, and their neighbours; protocols by name and by number.
pub fn flow_port() -> impl Strategy<Value = FlowPort> {
    let near = (select(PORTS.to_vec()), -1_i8..=1).prop_map(|(port, by)| port.wrapping_add_signed(by.into()));
    let port = prop_oneof![3 => near, 1 => any::<u16>()];
    (protocol(), port)
        .prop_map(|(protocol, port)| FlowPort { protocol, port: if has_ports(protocol) { port } else { 0 } })
}

/// What a node's links need, and its neighbours.
pub fn needed_port() -> impl Strategy<Value = FlowPort> {
    let of = |entry: &Failsafe| PortRange { protocol: entry.protocol, first: entry.first, last: entry.last };
    let ranges =
        Direction::ALL.into_iter().flat_map(needs_of_the_link).chain(LISTENER_DISCOVERY.iter().map(of));
    let ports = ranges.flat_map(|PortRange { protocol, first, last }| {
        [first - 1, first, last, last + 1].map(|port| FlowPort { protocol, port })
    });
    select(ports.collect::<Vec<_>>())
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![8 => select(vec![6_u8, 17, 1, 58, 132]), 2 => select(vec![47_u8, 50, 0, 255])]
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 1 | 6 | 17 | 58 | 132)
}

/// Addresses of the world, in and around the prefixes that rules name.
pub const ADDRESSES: [&str; 8] = [
    "198.51.100.7",
    "198.51.100.8",
    "198.51.101.1",
    "203.0.113.200",
    "10.1.2.3",
    "2001:db8:1::7",
    "2001:db8:1:2::1",
    "2001:db9::1",
];

/// Addresses that mean something on a link alone, and a group that routers pass on: of the world, to whom looks at the rules.
pub const LINK_ADDRESSES: [&str; 3] = ["fe80::7", "ff02::16", "ff05::2"];

/// Names of the CIDR sets that every random fleet has, and the label `kind` of each.
pub const CIDR_SETS: [(&str, &str); 3] = [("partners", "good"), ("offices", "good"), ("scanners", "bad")];

const CIDRS: [&str; 11] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.200.1.0/24",
    "198.51.100.0/24",
    "198.51.100.0/23",
    "198.51.100.7/32",
    "203.0.113.128/25",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
];

/// ICMP's types and codes among them: 2048 is an echo request (8/0), 771 port unreachable (3/3).
const PORTS: [u16; 12] = [1, 22, 53, 80, 443, 771, 1024, 2048, 8080, 8090, 32768, 32896];

fn net(text: &str) -> IpNet {
    text.parse().expect("the constants of this module are prefixes")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("the constants of this module are addresses")
}

/// The sets of [`CIDR_SETS`], each with up to three prefixes.
pub fn cidr_sets() -> impl Strategy<Value = Vec<CidrSet>> {
    vec(vec(select(CIDRS.to_vec()), 0..4), CIDR_SETS.len()).prop_map(|prefixes| {
        let set = |((name, kind), prefixes): (&(&str, &str), Vec<&str>)| CidrSet {
            name: (*name).to_owned(),
            labels: labels(&[("kind", Some(kind))]),
            cidrs: prefixes.into_iter().map(net).collect::<BTreeSet<_>>().into_iter().collect(),
        };
        CIDR_SETS.iter().zip(prefixes).map(set).collect()
    })
}

/// A selector of endpoints.
pub fn selector() -> impl Strategy<Value = Selector> {
    selector_over(&[("app", &["web", "api", "db"]), ("env", &["prod", "dev"])])
}

/// A selector of nodes.
pub fn node_selector() -> impl Strategy<Value = Selector> {
    selector_over(&[("role", &["gateway", "db"]), ("env", &["prod", "dev"])])
}

fn selector_over(
    keys: &'static [(&'static str, &'static [&'static str])],
) -> impl Strategy<Value = Selector> {
    let requirement = select(keys).prop_flat_map(move |(key, values)| {
        (Just(key.to_owned()), vec(select(values.to_vec()), 1..3), 0..5_u8)
    });
    vec(requirement, 0..3).prop_map(|drafts| {
        Selector::new(drafts.into_iter().map(|(key, values, kind)| {
            let values: BTreeSet<String> = values.into_iter().map(ToOwned::to_owned).collect();
            match kind {
                0 => Requirement::NotIn { key, values },
                1 => Requirement::Exists { key },
                2 => Requirement::DoesNotExist { key },
                _ => Requirement::In { key, values },
            }
        }))
    })
}

fn rules(is_admin: bool) -> impl Strategy<Value = Vec<Rule>> {
    let mut actions = vec![RuleAction::Allow, RuleAction::Allow, RuleAction::Deny];
    if is_admin {
        actions.push(RuleAction::Pass);
    }
    rules_of(select(actions), rule_peer())
}

fn rules_of(
    action: impl Strategy<Value = RuleAction>,
    peer: impl Strategy<Value = Peer>,
) -> impl Strategy<Value = Vec<Rule>> {
    let draft = (action, option::weighted(0.8, vec(peer, 0..3)), option::weighted(0.7, vec(ports(), 0..3)));
    vec(draft, 0..4).prop_map(|drafts| {
        let rule = |(index, (action, peers, ports)): (usize, _)| Rule {
            name: index.to_string(),
            action,
            peers,
            ports,
        };
        drafts.into_iter().enumerate().map(rule).collect()
    })
}

fn rule_peer() -> impl Strategy<Value = Peer> {
    let by_name = select(CIDR_SETS.to_vec()).prop_map(|(name, _)| CidrSetSelector::Name(name.to_owned()));
    let by_label = select(vec!["good", "bad", "none"])
        .prop_map(|kind| CidrSetSelector::MatchLabels(labels(&[("kind", Some(kind))])));
    prop_oneof![
        3 => selector().prop_map(Peer::Endpoints),
        2 => node_selector().prop_map(Peer::Nodes),
        3 => cidr(),
        2 => prop_oneof![by_name, by_label].prop_map(Peer::CidrSet),
        2 => entity().prop_map(Peer::Entity),
    ]
}

fn cidr() -> impl Strategy<Value = Peer> {
    (select(CIDRS.to_vec()), vec(select(CIDRS.to_vec()), 0..3)).prop_map(|(cidr, except)| {
        let cidr = net(cidr);
        let except = except.into_iter().map(net).filter(|hole| cidr.contains(hole)).collect();
        Peer::Cidr { cidr, except }
    })
}

fn entity() -> impl Strategy<Value = Entity> {
    prop_oneof![
        1 => Just(Entity::All),
        4 => select(Class::ALL.to_vec()).prop_map(Entity::Class),
    ]
}

/// Ranges as the parser makes them: ICMP by type (256 codes) or by type and code, other protocols without ports.
fn ports() -> impl Strategy<Value = PortRange> {
    let ends = (select(PORTS.to_vec()), select(PORTS.to_vec()), 0..4_u8);
    (protocol(), ends).prop_map(|(protocol, (a, b, kind))| {
        let is_icmp = matches!(protocol, 1 | 58);
        let (first, last) = match kind {
            _ if !has_ports(protocol) => (0, u16::MAX),
            0 => (0, u16::MAX),
            1 if is_icmp => (a & 0xff00, a | 0x00ff),
            1 => (a.min(b), a.max(b)),
            _ => (a, a),
        };
        PortRange { protocol, first, last }
    })
}
