//! Fleets of the sizes that are promised, the same in every run: a hundred endpoints a node, policies as people write them.

use std::{collections::BTreeSet, net::IpAddr};

use weft_controller::fleet::{Change, EndpointFacts, NodeFacts};
use weft_proto::v1;
use weft_shared::{
    digest::Digest,
    policy::model::{
        Labels, Mode, Peer, Policy, PortRange, Requirement, Rule, RuleAction, Selector, Subject, Tier,
    },
};

const FIRST_IDENTITY: u32 = 256;
const ENDPOINTS_OF_NODE: u32 = 100;
/// Of a team.
const APPS: u32 = 4;
const TIERS: [&str; 4] = ["web", "api", "cache", "db"];
const ENVIRONMENTS: [&str; 3] = ["prod", "staging", "dev"];
const TCP: u8 = 6;

/// How large a fleet is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) endpoints: u32,
    pub(super) identities: u32,
    pub(super) policies: u32,
}

pub(super) const SIZES: [Size; 3] = [
    Size { endpoints: 1000, identities: 100, policies: 100 },
    Size { endpoints: 10_000, identities: 1000, policies: 1000 },
    Size { endpoints: 100_000, identities: 10_000, policies: 2000 },
];

impl Size {
    pub(super) fn name(self) -> String {
        let Self { endpoints, identities, policies } = self;
        format!("endpoints_{endpoints}.identities_{identities}.policies_{policies}")
    }

    pub(super) fn nodes(self) -> u32 {
        self.endpoints / ENDPOINTS_OF_NODE
    }

    /// Everything there is, as it comes from the store.
    pub(super) fn contents(self) -> impl Iterator<Item = Change> {
        let nodes = (0..self.nodes()).map(node);
        let identities = (0..self.identities).map(move |number| self.identity(number));
        let policies = (0..self.policies).map(move |number| put(self.policy(number, 8080)));
        let endpoints = (0..self.endpoints).map(move |number| self.endpoint(number));
        std::iter::once(config()).chain(nodes).chain(identities).chain(policies).chain(endpoints)
    }

    /// Of one more than there are, the labels are those of a further release of an application that there is.
    pub(super) fn identity(self, number: u32) -> Change {
        Change::Identity { number: FIRST_IDENTITY + number, labels: Some(self.labels(number)) }
    }

    fn labels(self, number: u32) -> Labels {
        let (app, release) = (number % self.policies, number / self.policies);
        let pick = |words: &[&str], number: u32| words[number as usize % words.len()].to_owned();
        Labels::from([
            ("app".to_owned(), format!("app-{app}")),
            ("release".to_owned(), format!("r{release}")),
            ("team".to_owned(), self.team(app)),
            ("tier".to_owned(), pick(&TIERS, app)),
            ("env".to_owned(), pick(&ENVIRONMENTS, app / 4 + release)),
        ])
    }

    /// Those of an identity are on different nodes. Of more than there are, they begin anew with the first identity.
    pub(super) fn endpoint(self, number: u32) -> Change {
        let identity = number / (self.endpoints / self.identities) % self.identities;
        self.endpoint_of(number, identity)
    }

    pub(super) fn endpoint_of(self, number: u32, identity: u32) -> Change {
        let (node, place) = (number % self.nodes(), number / self.nodes());
        let facts = EndpointFacts {
            node: node_name(node),
            identity: FIRST_IDENTITY + identity,
            addresses: vec![address(node, place + 1)],
            uid: format!("00000000-0000-4000-8000-{number:012}"),
            instance: String::new(),
            ready: true,
            report: Digest::default(),
        };
        Change::Endpoint { name: format!("workload-{number}"), facts: Some(facts) }
    }

    /// One of twenty is an administrator's, for many applications at once; the others are of one application each.
    pub(super) fn policy(self, number: u32, port: u16) -> Policy {
        if number % 20 == 19 { Self::admin_policy(number, port) } else { self.app_policy(number, port) }
    }

    fn team(self, app: u32) -> String {
        format!("team-{}", app % (self.policies / APPS))
    }

    /// It denies no endpoint by its labels: where one does, nodes are told of every address there is.
    fn admin_policy(number: u32, port: u16) -> Policy {
        let subject = [is("env", ["prod"]), is("tier", [TIERS[number as usize / 20 % TIERS.len()]])];
        let operators = Selector::new([is("team", ["team-0"]), is_not("env", ["dev"])]);
        Policy {
            name: format!("guard-{number}"),
            tier: Tier::Admin { order: number },
            mode: Mode::Enforce,
            subject: Subject::Endpoints(Selector::new(subject)),
            ingress: Some(vec![
                rule("operators", RuleAction::Allow, vec![Peer::Endpoints(operators)], &[22, port]),
                rule("blocked", RuleAction::Deny, vec![cidr(number)], &[]),
            ]),
            egress: None,
        }
    }

    fn app_policy(self, number: u32, port: u16) -> Policy {
        let app = |number: u32| [is("app", [format!("app-{}", number % self.policies).as_str()])];
        let client = Peer::Endpoints(Selector::new(app(number * 7 + 1)));
        let teams = [self.team(number), self.team(number + 1)];
        let of_teams = [is("team", [teams[0].as_str(), teams[1].as_str()]), is_not("env", ["dev"])];
        let server = Peer::Endpoints(Selector::new(app(number * 11 + 3)));
        let mut ingress = vec![
            rule("clients", RuleAction::Allow, vec![client], &[port]),
            rule("team", RuleAction::Allow, vec![Peer::Endpoints(Selector::new(of_teams))], &[port, 9090]),
        ];
        if number.is_multiple_of(5) {
            ingress.push(rule("office", RuleAction::Allow, vec![cidr(number)], &[443]));
        }
        Policy {
            name: format!("app-{number}"),
            tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
            mode: Mode::Enforce,
            subject: Subject::Endpoints(Selector::new(app(number))),
            ingress: Some(ingress),
            egress: Some(vec![rule("servers", RuleAction::Allow, vec![server], &[5432])]),
        }
    }
}

pub(super) fn put(policy: Policy) -> Change {
    Change::Policy { name: policy.name.clone(), policy: Some(policy) }
}

pub(super) fn node_name(node: u32) -> String {
    format!("node-{node}")
}

fn address(node: u32, host: u32) -> IpAddr {
    std::net::Ipv4Addr::from((10 << 24) + (node << 8) + host).into()
}

fn node(number: u32) -> Change {
    let facts = NodeFacts {
        addresses: vec![std::net::Ipv4Addr::from((172 << 24) + (16 << 16) + number).to_string()],
        endpoint_cidrs: vec![format!("{}/24", address(number, 0))],
        identity: 0,
        controller: String::new(),
        snat_ports: None,
    };
    Change::Node { name: node_name(number), facts: Some(facts) }
}

fn config() -> Change {
    let pools = vec![v1::Pool { cidr: "10.0.0.0/8".to_owned(), node_prefix_length: 24 }];
    Change::Config(Some(v1::FleetConfig { pools, ..weft_controller::fleet_config::default() }))
}

fn values<const N: usize>(values: [&str; N]) -> BTreeSet<String> {
    values.into_iter().map(str::to_owned).collect()
}

fn is<const N: usize>(key: &str, of: [&str; N]) -> Requirement {
    Requirement::In { key: key.to_owned(), values: values(of) }
}

fn is_not<const N: usize>(key: &str, of: [&str; N]) -> Requirement {
    Requirement::NotIn { key: key.to_owned(), values: values(of) }
}

fn cidr(number: u32) -> Peer {
    let third = number % 256;
    let net = |text: String| text.parse().unwrap_or_default();
    Peer::Cidr {
        cidr: net(format!("198.51.{third}.0/24")),
        except: vec![net(format!("198.51.{third}.16/28"))],
    }
}

/// Of these TCP ports; none: of all.
fn rule(name: &str, action: RuleAction, peers: Vec<Peer>, ports: &[u16]) -> Rule {
    let one = |port: &u16| PortRange { protocol: TCP, first: *port, last: *port };
    let ports = (!ports.is_empty()).then(|| ports.iter().map(one).collect());
    Rule { name: name.to_owned(), action, peers: Some(peers), ports }
}
