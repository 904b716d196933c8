use super::*;

fn denied() -> v1::FlowEvent {
    v1::FlowEvent {
        at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 45_600_000 }),
        verdict: v1::FlowVerdict::Dropped.into(),
        reason: "policy_denied".to_owned(),
        point: "tc_from_endpoint".to_owned(),
        endpoint: "web".to_owned(),
        source: Some(v1::FlowParty {
            address: "10.200.1.2".to_owned(),
            identity: 256,
            endpoint: "web".to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            entity: String::new(),
        }),
        destination: Some(v1::FlowParty {
            address: "203.0.113.5".to_owned(),
            identity: 5,
            entity: "world".to_owned(),
            ..v1::FlowParty::default()
        }),
        protocol_number: 6,
        source_port: 40_000,
        destination_port: 443,
        rules: vec![v1::FlowRule {
            direction: v1::Direction::Egress.into(),
            policy: "web".to_owned(),
            rule: "no-world".to_owned(),
        }],
        length_bytes: 60,
        packets: 3,
        audit: None,
    }
}

#[test]
fn a_drop_says_who_what_why_and_how_often() {
    assert_eq!(
        human(&denied(), false),
        "22:13:20.045  dropped  tcp     web(app=web) 10.200.1.2:40000 → world 203.0.113.5:443  policy_denied; egress: \
         policy web, rule no-world  at tc_from_endpoint of web  3 packets\n"
    );
    assert!(human(&denied(), true).contains("\x1b[31mdropped\x1b[0m"));
}

#[test]
fn an_allowed_flow_names_what_allowed_it_at_each_end() {
    let rules = vec![
        v1::FlowRule { direction: v1::Direction::Egress.into(), ..v1::FlowRule::default() },
        v1::FlowRule {
            direction: v1::Direction::Ingress.into(),
            policy: "db".to_owned(),
            rule: "all".to_owned(),
        },
    ];
    let destination = v1::FlowParty {
        address: "fd00:77::3".to_owned(),
        identity: 300,
        labels: [("app".to_owned(), "db".to_owned())].into(),
        ..v1::FlowParty::default()
    };
    let event = v1::FlowEvent {
        verdict: v1::FlowVerdict::Allowed.into(),
        reason: String::new(),
        destination: Some(destination),
        protocol_number: 58,
        destination_port: 128 << 8,
        rules,
        packets: 1,
        audit: None,
        ..denied()
    };
    assert_eq!(
        human(&event, false),
        "22:13:20.045  allowed  icmpv6  web(app=web) 10.200.1.2 → (app=db) [fd00:77::3] type 128 code 0  egress: no policy; \
         ingress: policy db, rule all  at tc_from_endpoint of web\n"
    );
}

#[test]
fn what_was_not_looked_into_is_not_shown() {
    let event = v1::FlowEvent {
        reason: "malformed".to_owned(),
        source: Some(v1::FlowParty::default()),
        destination: None,
        protocol_number: 0,
        rules: Vec::new(),
        packets: 1,
        audit: None,
        ..denied()
    };
    assert_eq!(human(&event, false), "22:13:20.045  dropped  malformed  at tc_from_endpoint of web\n");
    let unknown =
        v1::FlowParty { address: "10.200.2.9".to_owned(), identity: 300, ..v1::FlowParty::default() };
    assert_eq!(end(Some(&unknown)), "identity:300 10.200.2.9");
}

#[test]
fn a_line_of_json_is_one_object_with_the_fields_of_the_api() {
    let text = event(Format::Json, &denied());
    assert_eq!(text.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["verdict"], "dropped");
    assert_eq!(value["rules"][0]["direction"], "egress");
    assert_eq!(value["source"]["labels"]["app"], "web");
    assert_eq!(value["sourcePort"], 40_000);
    assert_eq!(value["packets"], 3);
}

#[test]
fn what_audited_policies_would_do_is_said() {
    let rule = v1::FlowRule {
        direction: v1::Direction::Egress.into(),
        policy: "trial".to_owned(),
        rule: "world".to_owned(),
    };
    let audit = v1::FlowAudit { verdict: v1::FlowVerdict::Allowed.into(), rule: Some(rule) };
    let line = human(&v1::FlowEvent { audit: Some(audit), ..denied() }, false);
    assert!(line.ends_with("  audit: would be allowed by egress: policy trial, rule world\n"), "{line}");
}
