//! Random policies and parties for property tests, drawn from small sets so that rules meet.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::model::{
    Action, Class, Entity, FlowPort, Labels, Party, Peer, Policy, PortRange, Requirement, Rule, Selector,
};

/// The pools of every random fleet.
pub const POOLS: [&str; 2] = ["10.200.0.0/16", "fd00:77::/48"];

/// Pools as prefixes.
pub fn pools() -> Vec<IpNet> {
    POOLS.iter().map(|pool| net(pool)).collect()
}

/// Label sets of endpoints, all different; their places in the list number them.
pub fn label_sets() -> Vec<Labels> {
    let apps = [None, Some("web"), Some("api"), Some("db")];
    let envs = [None, Some("prod"), Some("dev")];
    let labels = |app: Option<&str>, env: Option<&str>| {
        let app = app.map(|app| ("app".to_owned(), app.to_owned()));
        app.into_iter().chain(env.map(|env| ("env".to_owned(), env.to_owned()))).collect()
    };
    apps.iter().flat_map(|app| envs.iter().map(|env| labels(*app, *env))).collect()
}

/// A fleet's policies.
pub fn policies() -> impl Strategy<Value = Vec<Policy>> {
    vec((selector(), option::of(rules()), option::of(rules()), any::<(bool, bool)>()), 0..5).prop_map(
        |drafts| {
            let policy = |(index, (subject, ingress, egress, deny)): (
                usize,
                (_, Option<_>, Option<_>, (bool, bool)),
            )| Policy {
                name: format!("policy-{index}"),
                subject,
                default_deny_ingress: deny.0 && ingress.is_some(),
                default_deny_egress: deny.1 && egress.is_some(),
                ingress,
                egress,
            };
            drafts.into_iter().enumerate().map(policy).collect()
        },
    )
}

/// The other party of a flow: an endpoint by its place in [`label_sets`], or an address outside of the fleet.
pub fn peer() -> impl Strategy<Value = Party> {
    let endpoint =
        select(label_sets()).prop_map(|labels| Party { class: Class::Fleet, labels, address: None });
    let class = |class| Party { class, labels: Labels::new(), address: None };
    let world = select(ADDRESSES.to_vec()).prop_map(|text| Party {
        class: Class::World,
        labels: Labels::new(),
        address: Some(address(text)),
    });
    prop_oneof![
        4 => endpoint,
        4 => world,
        1 => Just(class(Class::Host)),
        1 => Just(class(Class::RemoteNode)),
        2 => Just(class(Class::Unmanaged)),
    ]
}

/// What a flow goes to: mostly ports that rules name, and their neighbours.
pub fn flow_port() -> impl Strategy<Value = FlowPort> {
    let near = (select(PORTS.to_vec()), -1_i8..=1).prop_map(|(port, by)| port.wrapping_add_signed(by.into()));
    let port = prop_oneof![3 => near, 1 => any::<u16>()];
    (select(vec![6_u8, 17, 1, 58, 132]), port).prop_map(|(protocol, port)| FlowPort { protocol, port })
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

const PORTS: [u16; 9] = [1, 53, 80, 443, 1024, 2048, 8080, 8090, 32768];

fn net(text: &str) -> IpNet {
    text.parse().expect("the constants of this module are prefixes")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("the constants of this module are addresses")
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = |key: &str| match key {
        "app" => vec!["web", "api", "db"],
        _ => vec!["prod", "dev"],
    };
    let requirement = select(vec!["app", "env"])
        .prop_flat_map(move |key| (Just(key.to_owned()), vec(select(values(key)), 1..3), 0..5_u8));
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

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let action = prop_oneof![2 => Just(Action::Allow), 1 => Just(Action::Deny)];
    let draft =
        (action, option::weighted(0.8, vec(rule_peer(), 0..3)), option::weighted(0.7, vec(ports(), 0..3)));
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
    let cidr = (select(CIDRS.to_vec()), vec(select(CIDRS.to_vec()), 0..3)).prop_map(|(cidr, except)| {
        let cidr = net(cidr);
        let except = except.into_iter().map(net).filter(|hole| cidr.contains(hole)).collect();
        Peer::Cidr { cidr, except }
    });
    let entity = prop_oneof![
        1 => Just(Entity::All),
        4 => select(Class::ALL.to_vec()).prop_map(Entity::Class),
    ];
    prop_oneof![3 => selector().prop_map(Peer::Endpoints), 3 => cidr, 2 => entity.prop_map(Peer::Entity)]
}

fn ports() -> impl Strategy<Value = PortRange> {
    let ends = (select(PORTS.to_vec()), select(PORTS.to_vec()), 0..4_u8);
    (select(vec![6_u8, 17, 1, 58, 132]), ends).prop_map(|(protocol, (a, b, kind))| {
        let (first, last) = match kind {
            0 => (0, u16::MAX),
            1 => (a.min(b), a.max(b)),
            _ => (a, a),
        };
        PortRange { protocol, first, last }
    })
}
