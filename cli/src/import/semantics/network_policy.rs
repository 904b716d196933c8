//! `NetworkPolicy`.
use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use weft_shared::policy::model::{Direction, FlowPort};

use super::{
    NODES, Other, POOL, PROTOCOLS, Pod, Selector, allowed, endpoint, imported, is_always_allowed,
    of_namespaces, of_pods, parties, pods, subject_address, yaml_of_selector,
};
use crate::manifest;

/// What Kubernetes says, in its own words.
mod kubernetes {
    use super::*;

    #[derive(Debug, Clone)]
    pub(super) enum Peer {
        Pods { pods: Option<Selector>, namespaces: Option<Selector> },
        Block { cidr: &'static str, except: Vec<&'static str> },
    }

    #[derive(Debug, Clone)]
    pub(super) struct Port {
        pub(super) protocol: Option<&'static str>,
        pub(super) first: Option<u16>,
        pub(super) last: Option<u16>,
    }

    #[derive(Debug, Clone)]
    pub(super) struct Rule {
        pub(super) peers: Option<Vec<Peer>>,
        pub(super) ports: Option<Vec<Port>>,
    }

    #[derive(Debug, Clone)]
    pub(super) struct NetworkPolicy {
        pub(super) namespace: &'static str,
        pub(super) pods: Selector,
        pub(super) types: Option<Vec<&'static str>>,
        pub(super) ingress: Option<Vec<Rule>>,
        pub(super) egress: Option<Vec<Rule>>,
    }

    impl Peer {
        fn is(&self, party: &Other, own_namespace: &str) -> bool {
            match self {
                Self::Pods { pods, namespaces } => party.pod.as_ref().is_some_and(|pod| {
                    let in_namespace = match namespaces {
                        Some(selector) => selector.selects(&pod.namespace_labels),
                        None => pod.namespace == own_namespace,
                    };
                    in_namespace && pods.as_ref().is_none_or(|selector| selector.selects(&pod.labels))
                }),
                Self::Block { cidr, except } => {
                    let holds = |cidr: &str| cidr.parse::<IpNet>().unwrap().contains(&party.address);
                    holds(cidr) && !except.iter().any(|hole| holds(hole))
                }
            }
        }
    }

    impl Port {
        fn is(&self, protocol: &str, port: u16) -> bool {
            let last = self.last.or(self.first).unwrap_or(u16::MAX);
            let first = self.first.unwrap_or(0);
            self.protocol.unwrap_or("TCP") == protocol && (first..=last).contains(&port)
        }
    }

    impl NetworkPolicy {
        fn isolates(&self, pod: &Pod, way: &str) -> bool {
            let judges = match &self.types {
                Some(types) if !types.is_empty() => types.contains(&way),
                _ => way == "Ingress" || self.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
            };
            judges && pod.namespace == self.namespace && self.pods.selects(&pod.labels)
        }

        fn allows(&self, way: &str, party: &Other, protocol: &str, port: u16) -> bool {
            let rules = if way == "Ingress" { &self.ingress } else { &self.egress };
            rules.iter().flatten().any(|rule| {
                let peers = rule.peers.as_deref().unwrap_or_default();
                let ports = rule.ports.as_deref().unwrap_or_default();
                (peers.is_empty() || peers.iter().any(|peer| peer.is(party, self.namespace)))
                    && (ports.is_empty() || ports.iter().any(|one| one.is(protocol, port)))
            })
        }
    }

    /// Whether a pod may talk with a party: to it (egress), or it to the pod (ingress).
    pub(super) fn passes(
        policies: &[NetworkPolicy],
        pod: &Pod,
        way: &str,
        party: &Other,
        protocol: &str,
        port: u16,
    ) -> bool {
        let isolating: Vec<_> = policies.iter().filter(|policy| policy.isolates(pod, way)).collect();
        isolating.is_empty() || isolating.iter().any(|policy| policy.allows(way, party, protocol, port))
    }
}

use kubernetes::{NetworkPolicy, Peer, Port, Rule};

fn peer() -> impl Strategy<Value = Peer> {
    let blocks: Vec<(&'static str, Vec<&'static str>)> = vec![
        ("0.0.0.0/0", vec![]),
        ("0.0.0.0/0", vec!["10.0.0.0/8"]),
        ("0.0.0.0/0", vec!["10.0.0.0/9", "192.0.2.0/24"]),
        ("10.0.0.0/8", vec![]),
        ("10.0.0.0/8", vec![POOL]),
        (POOL, vec![]),
        ("192.0.2.0/24", vec![]),
        ("192.0.2.0/24", vec![NODES]),
        ("198.51.100.0/24", vec!["198.51.100.128/25"]),
        ("203.0.113.9/32", vec![]),
        // Half of the pool, and one of the nodes: refused where the rest is not there, too.
        ("10.200.0.0/17", vec![]),
        ("10.200.128.0/17", vec![]),
        ("192.0.2.1/32", vec![]),
    ];
    let block = select(blocks).prop_map(|(cidr, except)| Peer::Block { cidr, except });
    let pods = (option::of(of_pods()), option::of(of_namespaces()))
        .prop_filter("nobody is no peer", |(pods, namespaces)| pods.is_some() || namespaces.is_some())
        .prop_map(|(pods, namespaces)| Peer::Pods { pods, namespaces });
    prop_oneof![2 => block, 3 => pods]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = option::of(select(vec!["TCP", "UDP", "SCTP"]));
    (protocol, option::weighted(0.8, 78..83_u16), option::of(0..4_u16)).prop_map(|(protocol, first, more)| {
        let last = first.and_then(|first| more.map(|more| first + more));
        Port { protocol, first, last }
    })
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let rule = (option::weighted(0.8, vec(peer(), 0..3)), option::weighted(0.6, vec(port(), 0..3)));
    option::weighted(0.8, vec(rule.prop_map(|(peers, ports)| Rule { peers, ports }), 0..3))
}

fn policies() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    let types = select(vec![
        None,
        Some(vec![]),
        Some(vec!["Ingress"]),
        Some(vec!["Egress"]),
        Some(vec!["Ingress", "Egress"]),
    ]);
    let policy = (select(vec!["shop", "stock", "probe"]), of_pods(), types, rules(), rules()).prop_map(
        |(namespace, pods, types, ingress, egress)| {
            // Rules that have no effect are refused: there is a test of that.
            let judged = |way| types.as_ref().is_none_or(|types| types.is_empty() || types.contains(&way));
            let (ingress, egress) =
                (ingress.filter(|_| judged("Ingress")), egress.filter(|_| judged("Egress")));
            NetworkPolicy { namespace, pods, types, ingress, egress }
        },
    );
    vec(policy, 0..4)
}

fn yaml_of_rules(rules: &[Rule], side: &str) -> Value {
    let peer = |peer: &Peer| match peer {
        Peer::Block { cidr, except } => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        Peer::Pods { pods, namespaces } => {
            let mut fields = Map::new();
            for (name, selector) in [("podSelector", pods), ("namespaceSelector", namespaces)] {
                fields.extend(selector.iter().map(|it| (name.to_owned(), yaml_of_selector(it))));
            }
            Value::Object(fields)
        }
    };
    let port = |port: &Port| {
        let mut fields = Map::new();
        fields.extend(port.protocol.map(|it| ("protocol".to_owned(), it.into())));
        fields.extend(port.first.map(|it| ("port".to_owned(), it.into())));
        fields.extend(port.last.map(|it| ("endPort".to_owned(), it.into())));
        Value::Object(fields)
    };
    let rule = |rule: &Rule| {
        let mut fields = Map::new();
        fields.extend(rule.peers.iter().map(|it| (side.to_owned(), it.iter().map(peer).collect())));
        fields.extend(rule.ports.iter().map(|it| ("ports".to_owned(), it.iter().map(port).collect())));
        Value::Object(fields)
    };
    rules.iter().map(rule).collect()
}

fn yaml(policies: &[NetworkPolicy]) -> String {
    let document = |(index, policy): (usize, &NetworkPolicy)| {
        let mut spec = Map::new();
        spec.insert("podSelector".to_owned(), yaml_of_selector(&policy.pods));
        spec.extend(policy.types.iter().map(|it| ("policyTypes".to_owned(), json!(it))));
        spec.extend(policy.ingress.iter().map(|it| ("ingress".to_owned(), yaml_of_rules(it, "from"))));
        spec.extend(policy.egress.iter().map(|it| ("egress".to_owned(), yaml_of_rules(it, "to"))));
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": format!("policy-{index}"), "namespace": policy.namespace},
            "spec": spec,
        })
    };
    let documents: Vec<_> = policies.iter().enumerate().map(document).collect();
    manifest::documents(&documents)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_flow_is_judged_as_kubernetes_judges_it(policies in policies()) {
        let yaml = yaml(&policies);
        let Some(imported) = imported(&yaml) else { return Ok(()) };
        for pod in pods() {
            let subject = endpoint(&pod, subject_address());
            for (theirs, ours) in parties() {
                for (way, direction) in [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)] {
                    if is_always_allowed(&ours, direction) {
                        continue;
                    }
                    for (protocol, number) in PROTOCOLS {
                        for port in [77, 80, 82, 85] {
                            let expected = kubernetes::passes(&policies, &pod, way, &theirs, protocol, port);
                            let flow = FlowPort { protocol: number, port };
                            prop_assert_eq!(
                                allowed(&imported, &subject, &ours, direction, flow),
                                expected,
                                "{} of {:?} with {:?}, {} {}\n{}",
                                way, pod, theirs, protocol, port, yaml
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A property over nothing but refused policies would hold whatever the import did.
#[test]
fn most_random_policies_can_be_imported() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let random = policies();
    let taken = (0..200)
        .filter(|_| imported(&yaml(&random.new_tree(&mut runner).unwrap().current())).is_some())
        .count();
    assert!(taken > 100, "{taken} of 200");
}
