//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`.
use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use weft_shared::policy::model::{Class, Direction, FlowPort};

use super::{
    Labels, Other, POOL, PROTOCOLS, Pod, Requirement, Selector, allowed, endpoint, imported,
    is_always_allowed, parties, pods, selector, subject_address, yaml_of_selector,
};
use crate::manifest;

/// Peers of a rule.
#[derive(Debug, Clone)]
enum Peers {
    Any,
    Endpoints(Vec<Selector>),
    Blocks(Vec<(&'static str, Vec<&'static str>)>),
    Entities(Vec<&'static str>),
}

#[derive(Debug, Clone)]
struct Port {
    protocol: Option<&'static str>,
    first: u16,
    last: u16,
}

#[derive(Debug, Clone)]
struct Rule {
    peers: Peers,
    /// None at all: the rule does not speak of ports.
    ports: Vec<Port>,
}

#[derive(Debug, Clone)]
struct Way {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    default_deny: Option<bool>,
}

#[derive(Debug, Clone)]
struct Spec {
    /// None: clusterwide.
    namespace: Option<&'static str>,
    endpoints: Selector,
    ingress: Way,
    egress: Way,
}

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const OF_NAMESPACE: &str = "io.cilium.k8s.namespace.labels.";

/// The labels that Cilium gives a pod.
fn labels_of(pod: &Pod) -> Labels {
    let mut labels = pod.labels.clone();
    labels.insert(NAMESPACE.to_owned(), pod.namespace.to_owned());
    for (key, value) in &pod.namespace_labels {
        labels.insert(format!("{OF_NAMESPACE}{key}"), value.clone());
    }
    labels
}

fn speaks_of_namespaces(selector: &Selector) -> bool {
    let mut keys =
        selector.labels.iter().map(|(key, _)| *key).chain(selector.expressions.iter().map(|one| one.key));
    keys.any(|key| key == NAMESPACE || key.starts_with(OF_NAMESPACE))
}

impl Spec {
    fn is_for(&self, pod: &Pod) -> bool {
        self.namespace.is_none_or(|namespace| namespace == pod.namespace)
            && self.endpoints.selects(&labels_of(pod))
    }

    fn peer_is(&self, peers: &Peers, other: &Other) -> bool {
        match peers {
            Peers::Any => true,
            Peers::Endpoints(selectors) => selectors.iter().any(|selector| match &other.pod {
                Some(pod) => {
                    let here = speaks_of_namespaces(selector)
                        || self.namespace.is_none_or(|namespace| namespace == pod.namespace);
                    here && selector.selects(&labels_of(pod))
                }
                // Of a namespace, unless the selector says otherwise.
                None => speaks_of_namespaces(selector) && selector.selects(&Labels::new()),
            }),
            Peers::Blocks(blocks) => blocks.iter().any(|(cidr, except)| {
                let holds = |cidr: &str| cidr.parse::<IpNet>().unwrap().contains(&other.address);
                let stranger = matches!(other.class, Class::World | Class::Unmanaged);
                stranger && holds(cidr) && !except.iter().any(|hole| holds(hole))
            }),
            Peers::Entities(entities) => entities.iter().any(|entity| match *entity {
                "all" => true,
                "world" => matches!(other.class, Class::World | Class::Unmanaged),
                "cluster" => other.class != Class::World,
                "host" => other.class == Class::Host,
                "remote-node" => other.class == Class::RemoteNode,
                other => unreachable!("{other}"),
            }),
        }
    }

    fn matches(&self, rule: &Rule, other: &Other, protocol: &str, port: u16) -> bool {
        // A rule that says nothing is about nobody.
        let speaks = !matches!(rule.peers, Peers::Any) || !rule.ports.is_empty();
        let of_port = |one: &Port| {
            let of_protocol = one.protocol.map_or(protocol != "ICMP", |only| only == protocol);
            of_protocol && (one.first..=one.last).contains(&port)
        };
        speaks
            && self.peer_is(&rule.peers, other)
            && (rule.ports.is_empty() || rule.ports.iter().any(of_port))
    }
}

fn passes(specs: &[Spec], pod: &Pod, direction: Direction, other: &Other, protocol: &str, port: u16) -> bool {
    let way = |spec: &Spec| match direction {
        Direction::Ingress => spec.ingress.clone(),
        Direction::Egress => spec.egress.clone(),
    };
    let specs: Vec<_> = specs.iter().filter(|spec| spec.is_for(pod)).map(|spec| (spec, way(spec))).collect();
    let any = |rules: fn(&Way) -> &Vec<Rule>| {
        specs
            .iter()
            .any(|(spec, way)| rules(way).iter().any(|rule| spec.matches(rule, other, protocol, port)))
    };
    let closed = specs
        .iter()
        .any(|(_, way)| way.default_deny.unwrap_or(!way.allow.is_empty() || !way.deny.is_empty()));
    !any(|way| &way.deny) && (any(|way| &way.allow) || !closed)
}

fn of_endpoints() -> impl Strategy<Value = Selector> {
    let own = selector(vec!["app", "env", "team"], vec!["web", "api", "prod", "dev", "a"]);
    let keys = vec![NAMESPACE, "io.cilium.k8s.namespace.labels.team"];
    let of_namespace = selector(keys, vec!["shop", "stock", "a", "b"]);
    (own, option::weighted(0.4, of_namespace)).prop_map(|(mut own, of_namespace)| {
        if let Some(mut of_namespace) = of_namespace {
            own.labels.append(&mut of_namespace.labels);
            own.expressions.append(&mut of_namespace.expressions);
            // One that only says what is not is refused.
            own.expressions.push(Requirement { key: NAMESPACE, operator: "Exists", values: vec![] });
        }
        own
    })
}

fn peers() -> impl Strategy<Value = Peers> {
    let blocks = select(vec![
        ("0.0.0.0/0", vec![]),
        ("0.0.0.0/0", vec!["192.0.2.0/24", "10.0.0.0/9"]),
        ("10.0.0.0/8", vec![]),
        ("10.0.0.0/8", vec![POOL]),
        ("198.51.100.0/24", vec!["198.51.100.128/25"]),
        ("192.0.2.0/24", vec![]),
    ]);
    let entities = select(vec!["all", "world", "cluster", "host", "remote-node"]);
    prop_oneof![
        1 => Just(Peers::Any),
        4 => vec(of_endpoints(), 1..3).prop_map(Peers::Endpoints),
        2 => vec(blocks, 1..3).prop_map(Peers::Blocks),
        4 => vec(entities, 1..3).prop_map(Peers::Entities),
    ]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let port = (option::of(select(vec!["TCP", "UDP", "SCTP"])), 78..83_u16, 0..4_u16)
        .prop_map(|(protocol, first, more)| Port { protocol, first, last: first + more });
    let ports = prop_oneof![1 => Just(vec![]), 1 => vec(port, 1..3)];
    vec((peers(), ports).prop_map(|(peers, ports)| Rule { peers, ports }), 0..3)
}

fn way() -> impl Strategy<Value = Way> {
    let deny = prop_oneof![1 => Just(vec![]), 1 => rules()];
    (rules(), deny, option::weighted(0.3, any::<bool>())).prop_map(|(allow, deny, default_deny)| Way {
        allow,
        deny,
        default_deny,
    })
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let own = selector(vec!["app", "env"], vec!["web", "api", "prod"]);
    let spec = (select(vec![None, Some("shop"), Some("stock")]), own, way(), way())
        .prop_map(|(namespace, endpoints, ingress, egress)| Spec { namespace, endpoints, ingress, egress });
    let speaks =
        |way: &Way| way.default_deny.unwrap_or_default() || !way.allow.is_empty() || !way.deny.is_empty();
    let spec = spec.prop_filter("a spec without rules is refused", move |spec| {
        speaks(&spec.ingress) || speaks(&spec.egress)
    });
    vec(spec, 1..4)
}

fn yaml_of_rules(rules: &[Rule], side: &str) -> Value {
    let field = |name: &str| format!("{side}{name}");
    let rule = |rule: &Rule| {
        let mut fields = Map::new();
        match &rule.peers {
            Peers::Any => {}
            Peers::Endpoints(selectors) => {
                fields.insert(field("Endpoints"), selectors.iter().map(yaml_of_selector).collect());
            }
            Peers::Blocks(blocks) => {
                let block = |(cidr, except): &(&str, Vec<&str>)| json!({"cidr": cidr, "except": except});
                fields.insert(field("CIDRSet"), blocks.iter().map(block).collect());
            }
            Peers::Entities(entities) => {
                fields.insert(field("Entities"), json!(entities));
            }
        }
        if !rule.ports.is_empty() {
            let port = |port: &Port| {
                let mut fields = Map::new();
                fields.insert("port".to_owned(), port.first.to_string().into());
                fields.insert("endPort".to_owned(), port.last.into());
                fields.extend(port.protocol.map(|it| ("protocol".to_owned(), it.into())));
                Value::Object(fields)
            };
            let ports: Vec<_> = rule.ports.iter().map(port).collect();
            fields.insert("toPorts".to_owned(), json!([{ "ports": ports }]));
        }
        Value::Object(fields)
    };
    rules.iter().map(rule).collect()
}

fn yaml(specs: &[Spec]) -> String {
    let document = |(index, spec): (usize, &Spec)| {
        let mut default_deny = Map::new();
        for (name, way) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
            default_deny.extend(way.default_deny.map(|it| (name.to_owned(), it.into())));
        }
        let kind =
            if spec.namespace.is_some() { "CiliumNetworkPolicy" } else { "CiliumClusterwideNetworkPolicy" };
        let mut metadata = json!({"name": format!("policy-{index}")});
        if let Some(namespace) = spec.namespace {
            metadata["namespace"] = namespace.into();
        }
        json!({
            "apiVersion": "cilium.io/v2",
            "kind": kind,
            "metadata": metadata,
            "spec": {
                "endpointSelector": yaml_of_selector(&spec.endpoints),
                "enableDefaultDeny": default_deny,
                "ingress": yaml_of_rules(&spec.ingress.allow, "from"),
                "ingressDeny": yaml_of_rules(&spec.ingress.deny, "from"),
                "egress": yaml_of_rules(&spec.egress.allow, "to"),
                "egressDeny": yaml_of_rules(&spec.egress.deny, "to"),
            },
        })
    };
    let documents: Vec<_> = specs.iter().enumerate().map(document).collect();
    manifest::documents(&documents)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_flow_is_judged_as_cilium_judges_it(specs in specs()) {
        let yaml = yaml(&specs);
        let Some(imported) = imported(&yaml) else { return Ok(()) };
        for pod in pods() {
            let subject = endpoint(&pod, subject_address());
            for (theirs, ours) in parties() {
                for direction in [Direction::Ingress, Direction::Egress] {
                    if is_always_allowed(&ours, direction) {
                        continue;
                    }
                    for (protocol, number) in PROTOCOLS {
                        for port in [77, 80] {
                            let expected = passes(&specs, &pod, direction, &theirs, protocol, port);
                            let flow = FlowPort { protocol: number, port };
                            let found = allowed(&imported, &subject, &ours, direction, flow);
                            // What may yet become an endpoint may be closed, and is never open where it was not.
                            let agrees = found == expected || (ours.class == Class::Unmanaged && !found);
                            prop_assert!(
                                agrees,
                                "{:?} of {:?} with {:?}, {} {}: expected {}, found {}\n{}",
                                direction, pod, theirs, protocol, port, expected, found, yaml
                            );
                        }
                    }
                }
            }
        }
    }
}
