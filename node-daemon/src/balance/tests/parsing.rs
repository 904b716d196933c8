use weft_shared::policy::parse::FieldError;

use super::*;

#[test]
fn what_is_wrong_is_named_by_its_field() {
    type Change = fn(&mut v1::NodeService);
    let cases: [(&str, Change); 22] = [
        ("slots", |service| service.slots = 16_383),
        ("slots", |service| service.slots = 65_537),
        ("algorithm", |service| service.algorithm = 0),
        ("algorithm", |service| service.algorithm = 99),
        ("internalTrafficPolicy", |service| service.internal_traffic_policy = 0),
        ("externalTrafficPolicy", |service| service.external_traffic_policy = 7),
        ("forwardingMode", |service| service.forwarding_mode = 0),
        ("sourceRanges.action", |service| service.source_ranges = Some(v1::SourceRanges::default())),
        ("sourceRanges.cidrs[0]", |service| {
            let action = v1::source_ranges::Action::Allow.into();
            service.source_ranges = Some(v1::SourceRanges { action, cidrs: vec!["10/8".to_owned()] });
        }),
        ("frontends[0].address", |service| service.frontends[0].address = "10.96.0".to_owned()),
        ("frontends[0].address", |service| service.frontends[0].address = "::ffff:10.96.0.1".to_owned()),
        ("frontends[0].address", |service| service.frontends[0].address = "0.0.0.0".to_owned()),
        ("frontends[0].address", |service| {
            service.frontends[0].r#type = v1::FrontendType::NodePort.into();
        }),
        ("frontends[0].type", |service| service.frontends[0].r#type = 0),
        ("frontends[0].port", |service| service.frontends[0].port = 0),
        ("frontends[0].port", |service| service.frontends[0].port = 65_536),
        ("frontends[0].protocol", |service| service.frontends[0].protocol = 256),
        ("frontends[1]", |service| service.frontends.push(service.frontends[0].clone())),
        ("backends[0].weight", |service| service.backends[0].weight = 0),
        ("backends[0].weight", |service| service.backends[0].weight = 257),
        ("backends[0].state", |service| service.backends[0].state = 0),
        ("backends[1]", |service| service.backends.push(service.backends[0].clone())),
    ];
    for (field, change) in cases {
        let mut wrong = sent(&[("10.96.0.1", 80)], &["10.0.0.1"]);
        change(&mut wrong);
        let error: FieldError = Service::try_from(&wrong).unwrap_err();
        assert_eq!(error.path, field, "{error}");
    }
}

#[test]
fn more_backends_than_a_table_has_slots_are_refused_by_family() {
    let addresses: Vec<String> = (0..252).map(|last| format!("10.0.0.{last}")).collect();
    let fits: Vec<&str> = addresses[1..].iter().map(String::as_str).chain(["fd00::1"]).collect();
    parse(&sent(&[], &fits));
    let mut more = sent(&[], &fits);
    more.backends.push(backend("10.0.1.1", v1::BackendState::Active));
    let error = Service::try_from(&more).unwrap_err();
    assert_eq!(error.to_string(), "backends: 252 of one family, at most 251 fit a table");
}
