//! Imported policies judge every flow as where they come from. Beside the import stand evaluators of their own: small, over
//! pods, namespaces and addresses, and without a word of Weft. Both look at all flows of random policies.
mod cilium;
mod network_policy;

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use weft_shared::policy::{
    model::{Action, Class, Direction, FleetConfig, FlowPort, Party, Policy},
    oracle, parse,
};

use super::{Network, Options, import};
use crate::manifest::Source;

type Labels = BTreeMap<String, String>;

/// Who is at the other end; the address of whoever it is.
#[derive(Debug, Clone)]
struct Other {
    pod: Option<Pod>,
    class: Class,
    address: IpAddr,
}

#[derive(Debug, Clone)]
struct Pod {
    namespace: &'static str,
    namespace_labels: Labels,
    labels: Labels,
}

#[derive(Debug, Clone)]
struct Requirement {
    key: &'static str,
    operator: &'static str,
    values: Vec<&'static str>,
}

#[derive(Debug, Clone, Default)]
struct Selector {
    labels: Vec<(&'static str, &'static str)>,
    expressions: Vec<Requirement>,
}

impl Selector {
    fn selects(&self, labels: &Labels) -> bool {
        let has = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
        self.labels.iter().all(|(key, value)| has(key, value))
            && self.expressions.iter().all(|one| {
                let among = one.values.iter().any(|value| has(one.key, value));
                match one.operator {
                    "In" => among,
                    "NotIn" => !among,
                    "Exists" => labels.contains_key(one.key),
                    "DoesNotExist" => !labels.contains_key(one.key),
                    other => unreachable!("{other}"),
                }
            })
    }
}

const POOL: &str = "10.200.0.0/16";
const NODES: &str = "192.0.2.0/28";

/// The cluster: some namespaces with labels, and in each a pod of some kinds.
fn pods() -> Vec<Pod> {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let namespaces: [(&'static str, &[(&str, &str)]); 3] =
        [("shop", &[("team", "a")]), ("stock", &[("team", "b"), ("env", "prod")]), ("probe", &[])];
    let kinds: [&[(&str, &str)]; 4] =
        [&[], &[("app", "web")], &[("app", "api"), ("env", "prod")], &[("env", "dev"), ("team", "a")]];
    let in_each = |(namespace, own): (&'static str, &[(&str, &str)])| {
        let mut namespace_labels = labels(own);
        namespace_labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        let pod = move |kind: &&[(&str, &str)]| Pod {
            namespace,
            namespace_labels: namespace_labels.clone(),
            labels: labels(kind),
        };
        kinds.iter().map(pod).collect::<Vec<_>>()
    };
    namespaces.into_iter().flat_map(in_each).collect()
}

/// Everybody that can be at the other end, for Kubernetes and for Weft.
fn parties() -> Vec<(Other, Party)> {
    let mut parties = Vec::new();
    for (number, pod) in (1_u8..).zip(pods()) {
        let address = IpAddr::from([10, 200, number, 1]);
        let party = endpoint(&pod, address);
        parties.push((Other { pod: Some(pod), class: Class::Fleet, address }, party));
    }
    let others = [
        (Class::Unmanaged, "10.200.250.250"),
        (Class::Host, "192.0.2.2"),
        (Class::RemoteNode, "192.0.2.1"),
        (Class::RemoteNode, "192.0.2.15"),
        (Class::World, "10.1.2.3"),
        (Class::World, "192.0.2.99"),
        (Class::World, "198.51.100.7"),
        (Class::World, "198.51.100.200"),
        (Class::World, "203.0.113.9"),
    ];
    for (class, address) in others {
        let address = address.parse().unwrap();
        let party = Party { class, labels: Labels::new(), address: Some(address), local: false };
        parties.push((Other { pod: None, class, address }, party));
    }
    parties
}

/// A pod as the endpoint that `docs/import.md` says it is.
fn endpoint(pod: &Pod, address: IpAddr) -> Party {
    let mut labels = pod.labels.clone();
    for (key, value) in &pod.namespace_labels {
        let key = match key.as_str() {
            "kubernetes.io/metadata.name" => "namespace".to_owned(),
            key => format!("namespace.{key}"),
        };
        labels.insert(key, value.clone());
    }
    Party { class: Class::Fleet, labels, address: Some(address), local: true }
}

fn selector(keys: Vec<&'static str>, values: Vec<&'static str>) -> impl Strategy<Value = Selector> {
    let label = (select(keys.clone()), select(values.clone()));
    let expression =
        (select(keys), vec(select(values), 1..3), select(vec!["In", "NotIn", "Exists", "DoesNotExist"]))
            .prop_map(|(key, values, operator)| {
                let values = if operator.ends_with("In") { values } else { Vec::new() };
                Requirement { key, operator, values }
            });
    (option::weighted(0.4, label), vec(expression, 0..2))
        .prop_map(|(label, expressions)| Selector { labels: label.into_iter().collect(), expressions })
}

fn of_pods() -> impl Strategy<Value = Selector> {
    selector(vec!["app", "env", "team"], vec!["web", "api", "prod", "dev", "a"])
}

fn of_namespaces() -> impl Strategy<Value = Selector> {
    selector(
        vec!["team", "env", "kubernetes.io/metadata.name"],
        vec!["a", "b", "prod", "shop", "stock", "probe"],
    )
}

fn yaml_of_selector(selector: &Selector) -> Value {
    let mut fields = Map::new();
    if !selector.labels.is_empty() {
        let labels = selector.labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
        fields.insert("matchLabels".to_owned(), Value::Object(labels.collect()));
    }
    if !selector.expressions.is_empty() {
        let expression = |one: &Requirement| match one.values.as_slice() {
            [] => json!({"key": one.key, "operator": one.operator}),
            values => json!({"key": one.key, "operator": one.operator, "values": values}),
        };
        fields.insert("matchExpressions".to_owned(), selector.expressions.iter().map(expression).collect());
    }
    Value::Object(fields)
}

/// The policies of Weft, unless a block cuts through the pool or the nodes.
fn imported(yaml: &str) -> Option<Vec<Policy>> {
    let network = Network { pools: vec![POOL.parse().unwrap()], nodes: Some(vec![NODES.parse().unwrap()]) };
    let options = Options {
        namespace_label: "namespace".to_owned(),
        default_namespace: "default".to_owned(),
        namespaces: None,
        network: Some(network),
    };
    let source = Source { name: "random.yaml".to_owned(), text: yaml.to_owned() };
    let imported = import([source], &options);
    for problem in &imported.problems {
        let cut = problem.message.contains("cuts through the pool")
            || problem.message.contains("but not every node");
        assert!(cut, "{problem}\n{yaml}");
    }
    let policy = |policy| parse::policy(policy).unwrap_or_else(|errors| panic!("{errors:?}\n{yaml}"));
    imported.problems.is_empty().then(|| imported.policies.iter().map(policy).collect())
}

const PROTOCOLS: [(&str, u8); 4] = [("TCP", 6), ("UDP", 17), ("SCTP", 132), ("ICMP", 1)];

fn subject_address() -> IpAddr {
    IpAddr::from([10, 200, 0, 1])
}

/// A node reaches its own endpoints, whatever policies say.
fn is_always_allowed(other: &Party, direction: Direction) -> bool {
    other.class == Class::Host && direction == Direction::Ingress
}

/// Whether Weft lets the flow through.
fn allowed(
    policies: &[Policy],
    subject: &Party,
    other: &Party,
    direction: Direction,
    port: FlowPort,
) -> bool {
    let config = FleetConfig::of_pools(Vec::new());
    let context = oracle::Context { policies, cidr_sets: &[], config: &config };
    oracle::judge(context, subject, other, direction, port).action == Action::Allow
}
