//! Good policies become what they say; each kind of bad input is refused at its place.

use weft_proto::v1;

use super::{
    super::model::{Direction, Failsafe, Mode, PortRange, RuleAction, Tier},
    *,
};

fn selector_of(key: &str, value: &str) -> v1::Selector {
    v1::Selector { match_labels: [(key.to_owned(), value.to_owned())].into(), match_expressions: Vec::new() }
}

/// A policy that is right: web may reach api on TCP 8080 to 8090, and nothing else may.
fn right() -> v1::Policy {
    v1::Policy {
        metadata: Some(v1::Metadata { name: "api-from-web".into(), ..Default::default() }),
        subject: Some(v1::Subject { endpoints: Some(selector_of("app", "api")), nodes: None }),
        ingress: Some(v1::RuleList {
            items: vec![v1::Rule {
                name: "web".into(),
                action: v1::Action::Allow.into(),
                peers: Some(v1::PeerList {
                    items: vec![v1::Peer {
                        endpoints: Some(selector_of("app", "web")),
                        ..Default::default()
                    }],
                }),
                ports: Some(v1::PortList { items: vec![tcp(Some(8080), Some(8090))] }),
            }],
        }),
        ..Default::default()
    }
}

fn tcp(port: Option<u32>, end_port: Option<u32>) -> v1::Port {
    v1::Port { protocol: v1::Protocol::Tcp.into(), port, end_port, ..Default::default() }
}

fn with_rule(change: impl Fn(&mut v1::Rule)) -> v1::Policy {
    let mut message = right();
    message.ingress.iter_mut().flat_map(|list| &mut list.items).for_each(change);
    message
}

fn with_port(port: v1::Port) -> v1::Policy {
    with_rule(|rule| rule.ports = Some(v1::PortList { items: vec![port] }))
}

fn with_peer(peer: &v1::Peer) -> v1::Policy {
    with_rule(|rule| rule.peers = Some(v1::PeerList { items: vec![peer.clone()] }))
}

fn cidr(cidr: &str, except: &[&str]) -> v1::Peer {
    let except = except.iter().map(|hole| (*hole).to_owned()).collect();
    v1::Peer { cidr: Some(cidr.to_owned()), except, ..Default::default() }
}

fn cidr_set(name: Option<&str>, labels: &[(&str, &str)]) -> v1::Peer {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let reference = v1::CidrSetReference { name: name.map(str::to_owned), match_labels: labels.collect() };
    v1::Peer { cidr_set: Some(reference), ..Default::default() }
}

fn of_tier(tier: v1::Tier) -> v1::Policy {
    v1::Policy { tier: tier.into(), ..right() }
}

#[test]
fn tiers_orders_modes_and_passing_are_what_is_written() {
    let mut message = with_rule(|rule| rule.action = v1::Action::Pass.into());
    message.tier = v1::Tier::Admin.into();
    message.mode = v1::PolicyMode::Audit.into();
    message.subject = Some(v1::Subject { nodes: Some(v1::Selector::default()), endpoints: None });
    let parsed = policy(&message).expect("it is right");
    assert_eq!(parsed.tier, Tier::Admin { order: Tier::DEFAULT_ORDER });
    assert_eq!((parsed.mode, parsed.subject.is_nodes()), (Mode::Audit, true));
    assert_eq!(parsed.rules(Direction::Ingress)[0].action, RuleAction::Pass);
    let last = v1::Policy { order: Some(65_535), ..of_tier(v1::Tier::Baseline) };
    assert_eq!(policy(&last).map(|policy| policy.tier), Ok(Tier::Baseline { order: 65_535 }));
}

#[test]
fn what_can_match_nothing_is_right_and_warned_of() {
    let nothing = v1::Selector {
        match_expressions: vec![v1::LabelRequirement {
            key: "app".into(),
            operator: v1::LabelOperator::NotIn.into(),
            values: vec!["api".into()],
        }],
        ..selector_of("app", "api")
    };
    let subject = v1::Subject { endpoints: Some(nothing.clone()), nodes: None };
    let warned = |message: &v1::Policy| -> Vec<String> {
        let (_, warnings) = policy_and_warnings(message).expect("it is right");
        warnings.into_iter().map(|warning| warning.path).collect()
    };
    assert_eq!(warned(&right()), Vec::<String>::new());
    assert_eq!(warned(&v1::Policy { subject: Some(subject), ..right() }), ["subject.endpoints"]);
    let peer = v1::Peer { nodes: Some(nothing), ..Default::default() };
    assert_eq!(warned(&with_peer(&peer)), ["ingress[0].peers[0].nodes"]);
    let hole = cidr("198.51.100.0/24", &["198.51.100.0/24"]);
    assert_eq!(warned(&with_peer(&hole)), ["ingress[0].peers[0].except[0]"]);
}

#[test]
fn cidr_sets_are_sorted_and_checked() {
    let set = |cidrs: &[&str]| v1::CidrSet {
        metadata: Some(v1::Metadata { name: "partners".into(), ..Default::default() }),
        cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
    };
    let parsed = super::cidr_set(&set(&["2001:db8::/32", "198.51.100.0/24", "2001:db8::/32"]));
    let texts = parsed.map(|set| set.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(texts, Ok(vec!["198.51.100.0/24".to_owned(), "2001:db8::/32".to_owned()]));
    let errors = super::cidr_set(&set(&["::/0", "198.51.100.1/24"])).expect_err("host bits");
    assert_eq!(errors[0].path, "cidrs[1]");
}

#[test]
fn failsafe_entries_are_the_defaults_unless_given() {
    let config = |failsafe| v1::FleetConfig {
        metadata: Some(v1::Metadata { name: "fleet".into(), ..Default::default() }),
        pools: vec![v1::Pool { cidr: "10.200.0.0/16".into(), node_prefix_length: 24 }],
        failsafe,
        ..Default::default()
    };
    let parsed =
        |entries: Vec<v1::Failsafe>| fleet_config(&config(Some(v1::FailsafeList { items: entries })));
    assert_eq!(fleet_config(&config(None)).map(|config| config.failsafe), Ok(Failsafe::defaults()));
    assert_eq!(parsed(Vec::new()).map(|config| config.failsafe), Ok(Vec::new()));
    let written = failsafe_to_proto(&Failsafe::defaults());
    assert_eq!(parsed(written.items).map(|config| config.failsafe), Ok(Failsafe::defaults()));
    let ssh = v1::Failsafe {
        protocol: v1::Protocol::Tcp.into(),
        port: Some(22),
        direction: v1::Direction::Ingress.into(),
        cidrs: vec!["192.0.2.0/24".into()],
        ..Default::default()
    };
    let expected = Failsafe {
        protocol: 6,
        first: 22,
        last: 22,
        direction: Direction::Ingress,
        prefixes: vec!["192.0.2.0/24".parse().expect("a prefix")],
    };
    assert_eq!(parsed(vec![ssh.clone()]).map(|config| config.failsafe), Ok(vec![expected]));
    let cases = [
        (v1::Failsafe { direction: 0, ..ssh.clone() }, "failsafe[0].direction"),
        (v1::Failsafe { port: Some(0), ..ssh.clone() }, "failsafe[0].port"),
        (v1::Failsafe { protocol: 0, ..ssh.clone() }, "failsafe[0].protocol"),
        (v1::Failsafe { end_port: Some(21), ..ssh.clone() }, "failsafe[0].endPort"),
        (v1::Failsafe { cidrs: vec!["192.0.2.1/24".into()], ..ssh.clone() }, "failsafe[0].cidrs[0]"),
    ];
    for (entry, path) in cases {
        assert_eq!(parsed(vec![entry]).expect_err(path)[0].path, path);
    }
    assert_eq!(parsed(vec![ssh; 65]).expect_err("too many")[0].path, "failsafe");
}

#[test]
fn a_policy_becomes_what_it_says() {
    let parsed = policy(&right()).expect("it is right");
    assert_eq!(parsed.name, "api-from-web");
    assert!(
        parsed.default_deny(Direction::Ingress)
            && !parsed.default_deny(Direction::Egress)
            && parsed.egress.is_none()
    );
    let rule = &parsed.ingress.expect("it has ingress")[0];
    assert_eq!(rule.ports, Some(vec![PortRange { protocol: 6, first: 8080, last: 8090 }]));
}

#[test]
fn absent_and_empty_lists_differ() {
    let parsed = |message: v1::Policy| {
        policy(&message).expect("it is right").ingress.expect("it has ingress").remove(0)
    };
    let absent = parsed(with_rule(|rule| (rule.peers, rule.ports) = (None, None)));
    assert_eq!((absent.peers, absent.ports), (None, None));
    let empty = parsed(with_rule(|rule| {
        (rule.peers, rule.ports) = (Some(v1::PeerList::default()), Some(v1::PortList::default()));
    }));
    assert_eq!((empty.peers, empty.ports), (Some(Vec::new()), Some(Vec::new())));
    let nothing = v1::Policy { egress: Some(v1::RuleList::default()), ingress: None, ..right() };
    let nothing = policy(&nothing).expect("it is right");
    assert!(
        nothing.ingress.is_none()
            && nothing.egress == Some(Vec::new())
            && nothing.default_deny(Direction::Egress)
    );
}

#[test]
fn icmp_types_and_codes_are_ranges_of_ports() {
    let icmp = |kind, code| {
        with_port(v1::Port {
            protocol: v1::Protocol::Icmpv6.into(),
            r#type: kind,
            code,
            ..Default::default()
        })
    };
    let range = |message| {
        policy(&message).expect("right").ingress.expect("ingress")[0].ports.clone().expect("ports")[0]
    };
    assert_eq!(range(icmp(None, None)), PortRange { protocol: 58, first: 0, last: 65535 });
    assert_eq!(
        range(icmp(Some(128), None)),
        PortRange { protocol: 58, first: 128 << 8, last: 128 << 8 | 255 }
    );
    assert_eq!(range(icmp(Some(1), Some(4))), PortRange { protocol: 58, first: 260, last: 260 });
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table: a case a line")]
fn bad_policies_are_refused_at_their_place() {
    let named = |name: &str| v1::Policy {
        metadata: Some(v1::Metadata { name: name.into(), ..Default::default() }),
        ..right()
    };
    let labelled = |key: &str, value: &str| v1::Policy {
        subject: Some(v1::Subject { endpoints: Some(selector_of(key, value)), nodes: None }),
        ..right()
    };
    let expression = |operator: v1::LabelOperator, values: &[&str]| {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let expression = v1::LabelRequirement { key: "app".into(), operator: operator.into(), values };
        let selector = v1::Selector { match_expressions: vec![expression], ..Default::default() };
        v1::Policy { subject: Some(v1::Subject { endpoints: Some(selector), nodes: None }), ..right() }
    };
    let cases = [
        (named(""), "name", "expected a name"),
        (named("Web_1"), "name", "lower-case"),
        (named(&"a".repeat(254)), "name", "253"),
        (labelled("-app", "web"), "subject.endpoints.matchLabels.-app", "label key"),
        (labelled("app", "we b"), "subject.endpoints.matchLabels.app", "label value"),
        (labelled("app", &"v".repeat(64)), "subject.endpoints.matchLabels.app", "63"),
        (
            expression(v1::LabelOperator::In, &[]),
            "subject.endpoints.matchExpressions[0].values",
            "at least one",
        ),
        (
            expression(v1::LabelOperator::Exists, &["a"]),
            "subject.endpoints.matchExpressions[0].values",
            "no values",
        ),
        (
            expression(v1::LabelOperator::Unspecified, &[]),
            "subject.endpoints.matchExpressions[0].operator",
            "NotIn",
        ),
        (v1::Policy { subject: None, ..right() }, "subject", "selector"),
        (v1::Policy { ingress: None, ..right() }, "ingress", "says nothing"),
        (v1::Policy { tier: 9, ..right() }, "tier", "admin, application or baseline"),
        (v1::Policy { order: Some(1), ..right() }, "order", "no order"),
        (v1::Policy { order: Some(65_536), ..of_tier(v1::Tier::Admin) }, "order", "0 to 65535"),
        (
            v1::Policy { default_deny: Some(v1::DefaultDeny::default()), ..of_tier(v1::Tier::Baseline) },
            "defaultDeny",
            "application",
        ),
        (v1::Policy { ingress: None, ..of_tier(v1::Tier::Baseline) }, "ingress", "says nothing"),
        (v1::Policy { mode: 9, ..right() }, "mode", "audit"),
        (
            v1::Policy {
                subject: Some(v1::Subject {
                    endpoints: Some(v1::Selector::default()),
                    nodes: Some(v1::Selector::default()),
                }),
                ..right()
            },
            "subject",
            "not both",
        ),
        (with_rule(|rule| rule.name = "r".repeat(254)), "ingress[0].name", "253"),
        (
            v1::Policy {
                tier: v1::Tier::Baseline.into(),
                ..with_rule(|rule| rule.action = v1::Action::Pass.into())
            },
            "ingress[0].action",
            "admin",
        ),
        (
            v1::Policy { tier: v1::Tier::Admin.into(), ..with_rule(|rule| rule.action = 0) },
            "ingress[0].action",
            "allow, deny or pass",
        ),
        (with_rule(|rule| rule.action = 0), "ingress[0].action", "allow or deny"),
        (with_rule(|rule| rule.action = v1::Action::Pass.into()), "ingress[0].action", "admin"),
        (with_port(tcp(Some(0), None)), "ingress[0].ports[0].port", "1 to 65535"),
        (with_port(tcp(Some(65_536), None)), "ingress[0].ports[0].port", "1 to 65535"),
        (with_port(tcp(Some(90), Some(80))), "ingress[0].ports[0].endPort", "below port 90"),
        (with_port(tcp(None, Some(80))), "ingress[0].ports[0].endPort", "goes with port"),
        (with_port(v1::Port::default()), "ingress[0].ports[0].protocol", "TCP, UDP"),
        (
            with_port(v1::Port { protocol_number: Some(256), ..Default::default() }),
            "ingress[0].ports[0].protocolNumber",
            "255",
        ),
        (
            with_port(v1::Port { protocol_number: Some(47), port: Some(1), ..Default::default() }),
            "ingress[0].ports[0].port",
            "only TCP",
        ),
        (with_port(v1::Port { r#type: Some(8), ..tcp(None, None) }), "ingress[0].ports[0].type", "only ICMP"),
        (
            with_port(v1::Port { protocol_number: Some(1), code: Some(8), ..Default::default() }),
            "ingress[0].ports[0].code",
            "goes with type",
        ),
        (with_peer(&v1::Peer::default()), "ingress[0].peers[0]", "exactly one"),
        (
            with_peer(&v1::Peer { entity: v1::Entity::World.into(), ..cidr("::/0", &[]) }),
            "ingress[0].peers[0]",
            "exactly one",
        ),
        (
            with_peer(&v1::Peer { entity: 99, ..Default::default() }),
            "ingress[0].peers[0].entity",
            "remote-node",
        ),
        (
            with_peer(&cidr("198.51.100.1/24", &[])),
            "ingress[0].peers[0].cidr",
            "did you mean 198.51.100.0/24",
        ),
        (with_peer(&cidr("198.51.100/24", &[])), "ingress[0].peers[0].cidr", "expected a prefix"),
        (with_peer(&cidr("::ffff:10.0.0.0/104", &[])), "ingress[0].peers[0].cidr", "IPv4"),
        (
            with_peer(&cidr("198.51.100.0/24", &["198.51.101.0/25"])),
            "ingress[0].peers[0].except[0]",
            "not inside",
        ),
        (
            with_peer(&v1::Peer {
                except: vec!["::/0".into()],
                endpoints: Some(v1::Selector::default()),
                ..Default::default()
            }),
            "ingress[0].peers[0].except",
            "goes with cidr",
        ),
        (with_peer(&cidr_set(None, &[])), "ingress[0].peers[0].cidrSet", "matchLabels"),
        (with_peer(&cidr_set(Some("a"), &[("kind", "bad")])), "ingress[0].peers[0].cidrSet", "not both"),
        (with_peer(&cidr_set(Some("A"), &[])), "ingress[0].peers[0].cidrSet.name", "lower-case"),
        (
            with_peer(&cidr_set(None, &[("-kind", "bad")])),
            "ingress[0].peers[0].cidrSet.matchLabels.-kind",
            "label key",
        ),
    ];
    for (message, path, part) in cases {
        let errors = policy(&message).expect_err(path);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].path, path, "{errors:?}");
        assert!(errors[0].message.contains(part), "{part}: {errors:?}");
    }
}

#[test]
fn two_rules_of_one_name_are_refused() {
    let mut message = right();
    let list = message.ingress.get_or_insert_default();
    let again = list.items[0].clone();
    list.items.push(again);
    let errors = policy(&message).expect_err("two of one name");
    assert_eq!(errors[0].path, "ingress[1].name");
}

#[test]
fn all_errors_of_an_object_are_told_at_once() {
    let mut message = with_port(tcp(Some(0), None));
    message.mode = 9;
    assert_eq!(policy(&message).expect_err("two things are wrong").len(), 2);
}

#[test]
fn fleet_configurations_are_checked() {
    let config = |pools: &[(&str, u32)]| v1::FleetConfig {
        metadata: Some(v1::Metadata { name: "fleet".into(), ..Default::default() }),
        pools: pools
            .iter()
            .map(|(cidr, length)| v1::Pool { cidr: (*cidr).to_owned(), node_prefix_length: *length })
            .collect(),
        ..Default::default()
    };
    assert!(fleet_config(&config(&[("10.200.0.0/16", 24), ("fd00:77::/48", 64)])).is_ok());
    let cases = [
        (config(&[]), "pools"),
        (config(&[("10.200.0.1/16", 24)]), "pools[0].cidr"),
        (config(&[("10.200.0.0/31", 31)]), "pools[0].cidr"),
        (config(&[("10.200.0.0/16", 15)]), "pools[0].nodePrefixLength"),
        (config(&[("10.200.0.0/16", 31)]), "pools[0].nodePrefixLength"),
        (config(&[("fd00::/32", 64)]), "pools[0].nodePrefixLength"),
        (config(&[("10.200.0.0/16", 24), ("10.200.4.0/24", 26)]), "pools[1].cidr"),
        (v1::FleetConfig { default_action: 9, ..config(&[("10.200.0.0/16", 24)]) }, "defaultAction"),
        (
            v1::FleetConfig {
                routing_mode: v1::RoutingMode::Native.into(),
                ..config(&[("10.200.0.0/16", 24)])
            },
            "routingMode",
        ),
        (
            v1::FleetConfig { node_expiry_seconds: Some(299), ..config(&[("10.200.0.0/16", 24)]) },
            "nodeExpirySeconds",
        ),
    ];
    for (message, path) in cases {
        let errors = fleet_config(&message).expect_err(path);
        assert_eq!(errors[0].path, path, "{errors:?}");
    }
}

#[test]
fn kinds_that_are_not_the_operators_or_not_supported_are_refused() {
    let refused = |kind| object(&v1::Object { kind: Some(kind) }).expect_err("refused")[0].path.clone();
    assert_eq!(refused(object::Kind::Endpoint(v1::Endpoint::default())), "kind");
    assert_eq!(refused(object::Kind::Bundle(v1::Bundle::default())), "kind");
}
