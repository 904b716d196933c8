//! Good services become what they say; each kind of bad input is refused at its place.

use std::net::IpAddr;

use super::{super::model::*, *};

fn metadata_of(name: &str) -> v1::Metadata {
    v1::Metadata { name: name.to_owned(), ..Default::default() }
}

fn frontend(address: &str, port: u32, protocol: v1::Protocol) -> v1::Frontend {
    v1::Frontend { address: address.to_owned(), port, protocol: protocol.into(), r#type: 0 }
}

fn node_port(port: u32) -> v1::Frontend {
    v1::Frontend { r#type: v1::FrontendType::NodePort.into(), ..frontend("", port, v1::Protocol::Tcp) }
}

fn selector() -> v1::Selector {
    let match_labels = [("app".to_owned(), "api".to_owned())].into();
    v1::Selector { match_labels, match_expressions: Vec::new() }
}

fn backend(address: &str, port: u32) -> v1::Backend {
    v1::Backend { address: address.to_owned(), port, ..Default::default() }
}

/// A service that is right.
fn right() -> v1::Service {
    v1::Service {
        metadata: Some(metadata_of("api")),
        frontends: vec![frontend("10.96.0.1", 80, v1::Protocol::Tcp)],
        selector: Some(selector()),
        ..Default::default()
    }
}

fn of_backends(items: Vec<v1::Backend>) -> v1::Service {
    v1::Service { selector: None, backends: Some(v1::BackendList { items }), ..right() }
}

fn dsr(service: v1::Service) -> v1::Service {
    v1::Service { forwarding_mode: v1::ForwardingMode::Dsr.into(), ..service }
}

#[test]
fn what_is_not_said_has_its_default() {
    let parsed = service(&right()).expect("it is right");
    assert_eq!((parsed.algorithm, parsed.forwarding), (Algorithm::Maglev, Forwarding::Snat));
    assert_eq!((parsed.internal, parsed.external), (TrafficPolicy::Fleet, TrafficPolicy::Fleet));
    assert_eq!(parsed.frontends[0].kind, FrontendKind::Cluster);
    assert_eq!((parsed.affinity_seconds, parsed.source_ranges, parsed.health_check), (None, None, None));
    assert!(matches!(parsed.backends, Backends::Selected { port: None, .. }));

    let probed = v1::Service {
        health_check: Some(v1::HealthCheck {
            http: Some(v1::HttpCheck { path: "/up".into(), expected_status: 0 }),
            ..Default::default()
        }),
        ..right()
    };
    let check = service(&probed).expect("it is right").health_check.expect("it has one");
    assert_eq!((check.interval_milliseconds, check.timeout_milliseconds), (2_000, 1_000));
    assert_eq!((check.unhealthy_after, check.healthy_after), (3, 2));
    assert_eq!(check.http.map(|http| http.expected_status), Some(200));
    let brisk = v1::HealthCheck { interval_milliseconds: 300, ..Default::default() };
    let brisk = v1::Service { health_check: Some(brisk), ..right() };
    let check = service(&brisk).expect("it is right").health_check.expect("it has one");
    assert_eq!(check.timeout_milliseconds, 300, "not more than the interval");
}

#[test]
fn what_is_said_is_what_it_becomes() {
    let message = v1::Service {
        frontends: vec![
            frontend("2001:db8::1", 53, v1::Protocol::Udp),
            v1::Frontend {
                r#type: v1::FrontendType::External.into(),
                ..frontend("198.51.100.7", 53, v1::Protocol::Sctp)
            },
            node_port(30_053),
        ],
        backends: Some(v1::BackendList {
            items: vec![
                v1::Backend {
                    weight: Some(256),
                    state: v1::BackendState::Maintenance.into(),
                    ..backend("2001:db8::9", 5353)
                },
                backend("192.0.2.9", 0),
            ],
        }),
        selector: None,
        algorithm: v1::Algorithm::Random.into(),
        affinity: Some(v1::Affinity { timeout_seconds: 86_400 }),
        internal_traffic_policy: v1::TrafficPolicy::Local.into(),
        source_ranges: Some(v1::SourceRanges {
            action: v1::source_ranges::Action::Deny.into(),
            cidrs: vec!["203.0.113.0/24".into()],
        }),
        topology_label: Some("zone".into()),
        end_connections: true,
        ..right()
    };
    let parsed = service(&message).expect("it is right");
    let places: Vec<String> = parsed.frontends.iter().map(|frontend| frontend.at.to_string()).collect();
    assert_eq!(places, ["[2001:db8::1]:53/UDP", "198.51.100.7:53/SCTP", "node port 30053/TCP"]);
    let Backends::Listed(backends) = &parsed.backends else { panic!("listed") };
    let addresses: Vec<IpAddr> = backends.iter().map(|backend| backend.address).collect();
    assert_eq!(addresses, ["192.0.2.9".parse::<IpAddr>().unwrap(), "2001:db8::9".parse().unwrap()]);
    assert_eq!((backends[0].weight, backends[0].port), (1, None));
    assert_eq!((backends[1].weight, backends[1].state), (256, BackendState::Maintenance));
    assert_eq!((parsed.algorithm, parsed.affinity_seconds), (Algorithm::Random, Some(86_400)));
    assert_eq!((parsed.internal, parsed.external), (TrafficPolicy::Local, TrafficPolicy::Fleet));
    assert!(parsed.end_connections);
    assert!(matches!(parsed.source_ranges, Some(SourceRanges::Deny(cidrs)) if cidrs.len() == 1));
}

#[test]
fn none_listed_is_a_service_that_rejects() {
    assert_eq!(
        service(&of_backends(Vec::new())).map(|service| service.backends),
        Ok(Backends::Listed(vec![]))
    );
}

#[track_caller]
fn refused_at(message: &v1::Service, path: &str, expected: &str) {
    let errors = service(message).expect_err(path);
    let found = errors.iter().find(|error| error.path == path);
    let found = found.unwrap_or_else(|| panic!("expected an error at {path}, found {errors:#?}"));
    assert!(found.message.contains(expected), "{found}");
}

#[test]
fn bad_frontends_are_refused_at_their_place() {
    let of = |frontends: Vec<v1::Frontend>| v1::Service { frontends, ..right() };
    let tcp = |address: &str| frontend(address, 80, v1::Protocol::Tcp);
    refused_at(&of(vec![]), "frontends", "expected 1 to 64");
    let many = (0..65).map(|port| frontend("10.96.0.1", 1 + port, v1::Protocol::Tcp)).collect();
    refused_at(&of(many), "frontends", "65 frontends, expected 1 to 64");
    for (address, expected) in [
        ("", "not an IP address"),
        ("web.example", "not an IP address"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("255.255.255.255", "broadcast"),
        ("::ffff:10.0.0.1", "write it as IPv4"),
    ] {
        refused_at(&of(vec![tcp("10.96.0.1"), tcp(address)]), "frontends[1].address", expected);
    }
    for port in [0, 65_536] {
        refused_at(
            &of(vec![frontend("10.96.0.1", port, v1::Protocol::Tcp)]),
            "frontends[0].port",
            "expected 1 to 65535",
        );
    }
    for protocol in [v1::Protocol::Unspecified, v1::Protocol::Icmp] {
        refused_at(
            &of(vec![frontend("10.96.0.1", 80, protocol)]),
            "frontends[0].protocol",
            "TCP, UDP or SCTP",
        );
    }
    let odd = v1::Frontend { r#type: 9, ..tcp("10.96.0.1") };
    refused_at(&of(vec![odd]), "frontends[0].type", "node-port");
    let twice = vec![tcp("10.96.0.1"), v1::Frontend { r#type: 3, ..tcp("10.96.0.1") }];
    refused_at(&of(twice), "frontends[1]", "10.96.0.1:80/TCP is frontends[0] already");
    let placed = v1::Frontend { address: "192.0.2.1".into(), ..node_port(30_000) };
    refused_at(&of(vec![placed]), "frontends[0].address", "a node port has no address");
}

#[test]
fn bad_backends_are_refused_at_their_place() {
    let none = v1::Service { selector: None, ..right() };
    refused_at(&none, "selector", "expected either selector or backends");
    let both = v1::Service { selector: Some(selector()), ..of_backends(vec![]) };
    refused_at(&both, "backends", "not both");
    refused_at(
        &v1::Service { target_port: Some(80), ..of_backends(vec![]) },
        "targetPort",
        "goes with selector",
    );
    for port in [0, 65_536] {
        refused_at(&v1::Service { target_port: Some(port), ..right() }, "targetPort", "1 to 65535");
    }
    let one = |change: fn(&mut v1::Backend)| {
        let mut backend = backend("192.0.2.9", 80);
        change(&mut backend);
        of_backends(vec![backend])
    };
    refused_at(&one(|it| it.address = "127.0.0.1".into()), "backends[0].address", "loopback");
    refused_at(&one(|it| it.address = "2001:db8::9".into()), "backends[0].address", "no frontend is IPv6");
    refused_at(
        &one(|it| it.address = "10.96.0.1".into()),
        "backends[0].address",
        "is a frontend of this service",
    );
    refused_at(&one(|it| it.port = 65_536), "backends[0].port", "1 to 65535");
    refused_at(&one(|it| it.weight = Some(0)), "backends[0].weight", "expected 1 to 256; state: maintenance");
    refused_at(&one(|it| it.weight = Some(257)), "backends[0].weight", "expected 1 to 256");
    refused_at(&one(|it| it.state = 9), "backends[0].state", "active, terminating");
    let twice =
        of_backends(vec![backend("192.0.2.9", 80), backend("192.0.2.8", 80), backend("192.0.2.9", 80)]);
    refused_at(&twice, "backends[2]", "of backends[0]");
}

fn listed(count: u16, weight: u32) -> Vec<v1::Backend> {
    let address = |number: u16| format!("192.0.{}.{}", 2 + number / 250, 1 + number % 250);
    (0..count).map(|number| v1::Backend { weight: Some(weight), ..backend(&address(number), 80) }).collect()
}

#[test]
fn as_many_backends_as_a_table_honours_and_not_one_more() {
    assert!(service(&of_backends(listed(1_310, 1))).is_ok());
    refused_at(&of_backends(listed(1_311, 1)), "backends", "1311 IPv4 backends, at most 1310 are allowed");
    refused_at(&of_backends(listed(2_621, 1)), "backends", "at most 1310 of each family");

    // 5 × 256 + 30 is 1,310 times the least weight.
    let with = |light: u16| [listed(5, 256), listed(5 + light, 1).split_off(5)].concat();
    assert!(service(&of_backends(with(30))).is_ok());
    refused_at(&of_backends(with(31)), "backends", "1311 times the least of them");
    assert!(service(&of_backends(listed(1_310, 7))).is_ok(), "what counts is how they differ");
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let translated = v1::Service { target_port: Some(8080), ..dsr(right()) };
    refused_at(&translated, "targetPort", "dsr does not translate ports: expected the frontend's, 80");
    assert!(service(&v1::Service { target_port: Some(80), ..dsr(right()) }).is_ok());
    let translated = dsr(of_backends(vec![backend("192.0.2.9", 80), backend("192.0.2.8", 8080)]));
    refused_at(&translated, "backends[1].port", "dsr does not translate ports");
    assert!(service(&dsr(of_backends(vec![backend("192.0.2.9", 0)]))).is_ok());
    let node_port = v1::Service { frontends: vec![node_port(30_000)], ..right() };
    assert!(service(&node_port).is_ok());
    refused_at(&dsr(node_port), "frontends[0].type", "can't be forwarded by dsr");

    let udp = v1::Service {
        frontends: vec![frontend("10.96.0.1", 53, v1::Protocol::Udp)],
        health_check: Some(v1::HealthCheck::default()),
        ..right()
    };
    refused_at(&udp, "healthCheck", "no frontend is TCP");
    let local = v1::TrafficPolicy::Local.into();
    let nowhere = v1::Service {
        topology_label: Some("zone".into()),
        internal_traffic_policy: local,
        external_traffic_policy: local,
        ..right()
    };
    refused_at(&nowhere, "topologyLabel", "both traffic policies are local");
}

#[test]
fn values_out_of_range_are_refused_at_their_place() {
    refused_at(&v1::Service { metadata: None, ..right() }, "name", "expected a name");
    refused_at(&v1::Service { algorithm: 9, ..right() }, "algorithm", "maglev or random");
    refused_at(&v1::Service { forwarding_mode: 9, ..right() }, "forwardingMode", "snat or dsr");
    refused_at(&v1::Service { internal_traffic_policy: 9, ..right() }, "internalTrafficPolicy", "fleet");
    refused_at(&v1::Service { external_traffic_policy: 9, ..right() }, "externalTrafficPolicy", "fleet");
    refused_at(&v1::Service { topology_label: Some("-".into()), ..right() }, "topologyLabel", "label key");
    for timeout_seconds in [0, 86_401] {
        let affinity = Some(v1::Affinity { timeout_seconds });
        refused_at(&v1::Service { affinity, ..right() }, "affinity.timeoutSeconds", "1 to 86400");
    }
    let ranges = |cidrs: &[&str], action| v1::Service {
        source_ranges: Some(v1::SourceRanges {
            action,
            cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        }),
        ..right()
    };
    refused_at(&ranges(&[], 0), "sourceRanges.cidrs", "at least one");
    refused_at(&ranges(&["10.0.0.1/8"], 0), "sourceRanges.cidrs[0]", "host bits");
    refused_at(&ranges(&["10.0.0.0/8"], 9), "sourceRanges.action", "allow or deny");
    let many: Vec<String> =
        (0..1025).map(|number| format!("10.{}.{}.0/24", number / 250, number % 250)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused_at(&ranges(&many, 0), "sourceRanges.cidrs", "1025 prefixes, at most 1024");

    let check = |change: fn(&mut v1::HealthCheck)| {
        let mut check = v1::HealthCheck::default();
        change(&mut check);
        v1::Service { health_check: Some(check), ..right() }
    };
    let http = |check: &mut v1::HealthCheck, path: &str, expected_status| {
        check.http = Some(v1::HttpCheck { path: path.to_owned(), expected_status });
    };
    refused_at(
        &check(|it| it.interval_milliseconds = 99),
        "healthCheck.intervalMilliseconds",
        "100 to 300000",
    );
    refused_at(
        &check(|it| it.timeout_milliseconds = 9),
        "healthCheck.timeoutMilliseconds",
        "10 to the interval",
    );
    refused_at(&check(|it| it.timeout_milliseconds = 2001), "healthCheck.timeoutMilliseconds", "2000");
    refused_at(&check(|it| it.unhealthy_after = 11), "healthCheck.unhealthyAfter", "1 to 10");
    refused_at(&check(|it| it.healthy_after = 11), "healthCheck.healthyAfter", "1 to 10");
    for path in ["", "up", "/a b", "/ä", "/a#b", "/<a>"] {
        let mut message = check(|_| {});
        message.health_check.iter_mut().for_each(|check| http(check, path, 0));
        refused_at(&message, "healthCheck.http.path", "is not a path");
    }
    let mut message = check(|_| {});
    message.health_check.iter_mut().for_each(|check| http(check, "/", 600));
    refused_at(&message, "healthCheck.http.expectedStatus", "100 to 599");
}

#[test]
fn what_can_hardly_be_meant_is_warned_of() {
    let ranges = v1::SourceRanges { action: 0, cidrs: vec!["2001:db8::/32".into()] };
    let message = v1::Service { source_ranges: Some(ranges), ..right() };
    let (_, warnings) = with_warnings(&message).expect("it is right");
    assert_eq!(warnings[0].path, "sourceRanges.cidrs");
    let never = v1::LabelRequirement {
        key: "app".into(),
        operator: v1::LabelOperator::DoesNotExist.into(),
        values: Vec::new(),
    };
    let mut message = right();
    message.selector.iter_mut().for_each(|selector| selector.match_expressions.push(never.clone()));
    let (_, warnings) = with_warnings(&message).expect("it is right");
    assert_eq!(warnings[0].path, "selector");
}

#[test]
fn prefilters_are_refused_at_their_place() {
    let of = |cidrs: &[&str], senders: &[&str]| v1::Prefilter {
        metadata: Some(metadata_of("scanners")),
        cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        arp_senders: senders.iter().map(|sender| (*sender).to_owned()).collect(),
        ..Default::default()
    };
    let (parsed, _) =
        prefilter(&of(&["203.0.113.0/24", "2001:db8::/32"], &["192.0.2.66"])).expect("it is right");
    assert_eq!((parsed.cidrs.len(), parsed.arp_senders.len()), (2, 1));
    assert_eq!(parsed.nodes, crate::policy::model::Selector::default(), "all of them");
    let path = |message: &v1::Prefilter| prefilter(message).unwrap_err().swap_remove(0).path;
    assert_eq!(path(&of(&["203.0.113.0/24", "0.0.0.0/0"], &[])), "cidrs[1]");
    assert_eq!(path(&of(&["203.0.113.1/24"], &[])), "cidrs[0]");
    assert_eq!(path(&of(&[], &["2001:db8::1"])), "arpSenders[0]");
    assert_eq!(path(&of(&[], &["one"])), "arpSenders[0]");
    assert_eq!(path(&v1::Prefilter { metadata: None, ..of(&[], &[]) }), "name");
}
