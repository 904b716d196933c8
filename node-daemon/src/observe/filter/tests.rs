use weft_proto::v1::{
    FlowParty, FlowRule, LabelOperator, LabelRequirement, MonitorParty, MonitorPort, Selector,
};

use super::*;

fn party(address: &str, identity: u32, endpoint: &str, app: &str) -> FlowParty {
    let labels = if app.is_empty() { [].into() } else { [("app".to_owned(), app.to_owned())].into() };
    FlowParty {
        address: address.to_owned(),
        identity,
        endpoint: endpoint.to_owned(),
        labels,
        entity: if identity == 5 { "world".to_owned() } else { String::new() },
    }
}

/// web's packet to the world's TCP 443, denied by a rule.
fn denied() -> v1::FlowEvent {
    v1::FlowEvent {
        verdict: v1::FlowVerdict::Dropped.into(),
        reason: "policy_denied".to_owned(),
        point: "tc_from_endpoint".to_owned(),
        endpoint: "web".to_owned(),
        source: Some(party("10.200.1.2", 256, "web", "web")),
        destination: Some(party("203.0.113.5", 5, "", "")),
        protocol_number: 6,
        source_port: 40_000,
        destination_port: 443,
        rules: vec![FlowRule { policy: "web".to_owned(), rule: "no-world".to_owned(), direction: 2 }],
        packets: 1,
        audit: None,
        ..v1::FlowEvent::default()
    }
}

fn passes(request: v1::MonitorRequest, event: &v1::FlowEvent) -> bool {
    Filter::parse(request).unwrap().passes(event)
}

fn asked(party: Asked) -> Vec<MonitorParty> {
    vec![MonitorParty { party: Some(party) }]
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn drops_are_wanted_unless_verdicts_are_and_verdicts_are_the_policys_word() {
    let spoofed = v1::FlowEvent { reason: "spoofed".to_owned(), ..denied() };
    let allowed =
        v1::FlowEvent { verdict: v1::FlowVerdict::Allowed.into(), reason: String::new(), ..denied() };
    let of = |drops, verdicts| {
        let request = v1::MonitorRequest { drops, verdicts, ..v1::MonitorRequest::default() };
        let filter = Filter::parse(request).unwrap();
        (filter.wants_allowed(), [&denied(), &spoofed, &allowed].map(|event| filter.passes(event)))
    };
    assert_eq!(of(false, false), (false, [true, true, false]));
    assert_eq!(of(true, false), (false, [true, true, false]));
    assert_eq!(of(false, true), (true, [true, false, true]));
    assert_eq!(of(true, true), (true, [true, true, true]));
}

#[test]
fn each_filter_lets_pass_what_it_names_and_nothing_else() {
    let new = v1::MonitorRequest::default;
    let selector = |value: &str| {
        let values = vec![value.to_owned()];
        let requirement =
            LabelRequirement { key: "app".to_owned(), operator: LabelOperator::In.into(), values };
        Asked::Selector(Selector { match_expressions: vec![requirement], ..Selector::default() })
    };
    let absent = LabelRequirement {
        key: "app".to_owned(),
        operator: LabelOperator::DoesNotExist.into(),
        values: vec![],
    };
    let unlabelled = Asked::Selector(Selector { match_expressions: vec![absent], ..Selector::default() });
    let from = |party| v1::MonitorRequest { from: asked(party), ..new() };
    let to = |party| v1::MonitorRequest { to: asked(party), ..new() };
    let port = |protocol_number, port| v1::MonitorRequest {
        ports: vec![MonitorPort { protocol_number, port }],
        ..new()
    };
    let cases = [
        (v1::MonitorRequest { endpoints: texts(&["web", "api"]), ..new() }, true),
        (v1::MonitorRequest { endpoints: texts(&["api"]), ..new() }, false),
        (from(Asked::Endpoint("web".to_owned())), true),
        (to(Asked::Endpoint("web".to_owned())), false),
        (from(selector("web")), true),
        (from(selector("api")), false),
        // The world has no labels that anybody knows.
        (to(unlabelled), false),
        (to(Asked::Prefix("203.0.113.0/24".to_owned())), true),
        (to(Asked::Prefix("203.0.113.5".to_owned())), true),
        (to(Asked::Prefix("203.0.113.6".to_owned())), false),
        (to(Asked::Prefix("::/0".to_owned())), false),
        (from(Asked::Prefix("203.0.113.5".to_owned())), false),
        (from(Asked::Identity(256)), true),
        (to(Asked::Identity(256)), false),
        (to(Asked::Entity("world".to_owned())), true),
        (from(Asked::Entity("world".to_owned())), false),
        (port(6, Some(443)), true),
        // As of an answer.
        (port(6, Some(40_000)), true),
        (port(6, None), true),
        (port(6, Some(80)), false),
        (port(17, Some(443)), false),
        (v1::MonitorRequest { reasons: texts(&["spoofed", "policy_denied"]), ..new() }, true),
        (v1::MonitorRequest { reasons: texts(&["spoofed"]), ..new() }, false),
        (v1::MonitorRequest { points: texts(&["tc_from_endpoint"]), ..new() }, true),
        (v1::MonitorRequest { points: texts(&["tc_to_endpoint"]), ..new() }, false),
        (v1::MonitorRequest { identities: vec![5], ..new() }, true),
        (v1::MonitorRequest { identities: vec![300], ..new() }, false),
        (v1::MonitorRequest { policies: texts(&["web"]), ..new() }, true),
        (v1::MonitorRequest { policies: texts(&["api"]), ..new() }, false),
        // All that are given must hold.
        (v1::MonitorRequest { policies: texts(&["web"]), identities: vec![300], ..new() }, false),
        (v1::MonitorRequest { policies: texts(&["web"]), ..port(6, Some(443)) }, true),
    ];
    for (request, expected) in cases {
        assert_eq!(passes(request.clone(), &denied()), expected, "{request:?}");
    }
}

#[test]
fn a_filter_that_nothing_can_pass_is_refused_with_its_field() {
    let new = v1::MonitorRequest::default;
    let cases = [
        (v1::MonitorRequest { from: vec![MonitorParty { party: None }], ..new() }, "from[0]"),
        (v1::MonitorRequest { to: asked(Asked::Prefix("10.0.0.0/33".to_owned())), ..new() }, "to[0]"),
        (v1::MonitorRequest { to: asked(Asked::Entity("moon".to_owned())), ..new() }, "to[0]"),
        (v1::MonitorRequest { reasons: texts(&["bored"]), ..new() }, "reasons"),
        // Counted, and no drop.
        (v1::MonitorRequest { reasons: texts(&["delivered_local"]), ..new() }, "reasons"),
        (v1::MonitorRequest { points: texts(&["xdp"]), ..new() }, "points"),
        (v1::MonitorRequest { identities: vec![1; VALUES_MAX + 1], ..new() }, "identities"),
    ];
    for (request, field) in cases {
        assert_eq!(Filter::parse(request).unwrap_err().field, field);
    }
}
