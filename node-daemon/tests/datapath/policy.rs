//! Allowed and denied, by identity, class and port, in both directions and families.

use etherparse::{NetSlice, SlicedPacket};
use weft_noded::plan::tables::{Step, SubjectRow};
use weft_shared::layout::{Action, Class, Direction, PeerKey, PortKey, Reason};

use crate::{
    harness::{Datapath, Verdict, from_endpoint, to_endpoint},
    packets::{ICMP, ICMPV6, SYN, TCP, UDP, out_of},
    policies::{PolicyTable, Row},
    world::{
        self, API, API_IDENTITY, API_PARTY, API_SLOT, CACHE_PARTY, DB_IDENTITY, DB_NODE_PARTY, DB_PARTY,
        FAMILIES, Family, HOST_PARTY, NOBODY_PARTY, OVERLAY, PARTNER_PARTY, PARTNERS_IDENTITY, Party,
        REMOTE_NODE_IDENTITY, TAP, TAP_PARTY, UNTOLD_PARTY, WEB, WEB_IDENTITY, WEB_PARTY, WEB_SLOT,
        WORLD_PARTY, allow_all, deny_all, for_all, gateway_mac, mac, peer_row, port_row, rule,
    },
};

/// One rule over a default.
fn table(default: PolicyTable, key: Row, action: Action) -> PolicyTable {
    let mut table = default;
    table.insert(key, rule(action, 7));
    table
}

#[test]
fn what_is_allowed_reaches_an_endpoint_of_this_node() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, API_PARTY, family).tcp(1000, 80, SYN);
        let (reason, outcome) = datapath.reason(from_endpoint(WEB), &packet);
        assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
        let mut expected = packet.clone();
        expected[..12].copy_from_slice(&[mac(API), gateway_mac(API)].concat());
        check_hop_and_restore(&mut expected, &outcome.packet, family);
        assert_eq!(outcome.packet, expected);
    }
}

/// One hop less, a right checksum; otherwise as before.
fn check_hop_and_restore(expected: &mut [u8], got: &[u8], family: Family) {
    match SlicedPacket::from_ethernet(got).unwrap().net.unwrap() {
        NetSlice::Ipv4(ip) => {
            assert_eq!(ip.header().ttl(), 63);
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
        NetSlice::Ipv6(ip) => assert_eq!(ip.header().hop_limit(), 63),
        other @ NetSlice::Arp(_) => panic!("{other:?}"),
    }
    let range = if family == Family::V4 { 22..26 } else { 21..22 };
    expected[range.clone()].copy_from_slice(&got[range]);
}

#[test]
fn the_checksum_stays_right_for_every_hop_count() {
    let mut datapath = Datapath::new();
    for hops in 2..=255 {
        let way = crate::packets::Way { hops, ..out_of(WEB, WEB_PARTY, API_PARTY, Family::V4) };
        let outcome = datapath.run(from_endpoint(WEB), &way.udp(u16::from(hops), 53));
        let SlicedPacket { net: Some(NetSlice::Ipv4(ip)), .. } =
            SlicedPacket::from_ethernet(&outcome.packet).unwrap()
        else {
            panic!("no IPv4")
        };
        let header = ip.header().to_header();
        assert_eq!((header.time_to_live, header.header_checksum), (hops - 1, header.calc_header_checksum()));
    }
}

#[test]
fn what_is_allowed_goes_where_its_destination_is() {
    let mut datapath = Datapath::new();
    let cases: [(Party, Reason, Verdict); 8] = [
        (DB_PARTY, Reason::DeliveredOverlay, Verdict::Redirect),
        (CACHE_PARTY, Reason::DeliveredOverlay, Verdict::Redirect),
        (UNTOLD_PARTY, Reason::DeliveredOverlay, Verdict::Redirect),
        (TAP_PARTY, Reason::DeliveredLocal, Verdict::Redirect),
        (NOBODY_PARTY, Reason::NoEndpoint, Verdict::Shot),
        (WORLD_PARTY, Reason::DeliveredStack, Verdict::Ok),
        (HOST_PARTY, Reason::DeliveredStack, Verdict::Ok),
        (DB_NODE_PARTY, Reason::DeliveredOverlay, Verdict::Redirect),
    ];
    for family in FAMILIES {
        for (to, reason, verdict) in cases {
            // The second packet goes by what the flow table remembers.
            for _ in 0..2 {
                let packet = out_of(WEB, WEB_PARTY, to, family).udp(1000, 53);
                let outcome = datapath.reason(from_endpoint(WEB), &packet);
                assert_eq!((outcome.0, outcome.1.verdict), (reason, verdict), "{to:?} {family:?}");
            }
        }
    }
}

#[test]
fn without_an_overlay_nothing_goes_there() {
    let config = weft_shared::layout::Config { overlay_ifindex: 0, ..weft_shared::layout::Config::DEFAULT };
    let mut datapath = Datapath::with_config(config);
    let packet = out_of(WEB, WEB_PARTY, DB_PARTY, Family::V4).udp(1000, 53);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::NoRoute);
    assert_ne!(OVERLAY, 0);
}

#[test]
fn egress_and_ingress_must_both_allow() {
    let mut datapath = Datapath::new();
    for (egress, ingress, expected) in [
        (allow_all(), deny_all(), Reason::PolicyDenied),
        (deny_all(), allow_all(), Reason::PolicyDenied),
        (deny_all(), deny_all(), Reason::PolicyDenied),
        (allow_all(), allow_all(), Reason::DeliveredLocal),
    ] {
        datapath.forget_flows();
        datapath.change(|tables| {
            tables.policies.insert(WEB_SLOT, egress);
            tables.policies.insert(API_SLOT, ingress);
        });
        for family in FAMILIES {
            let packet = out_of(WEB, WEB_PARTY, API_PARTY, family).tcp(1000, 80, SYN);
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), expected);
        }
    }
}

#[test]
fn a_denial_tells_the_rule_the_direction_and_who() {
    let mut datapath = Datapath::new();
    let key = port_row(Direction::Ingress, WEB_IDENTITY, TCP, 80);
    datapath.change(|tables| {
        tables.policies.insert(API_SLOT, table(allow_all(), key, Action::Deny));
    });
    let packet = out_of(WEB, WEB_PARTY, API_PARTY, Family::V6).tcp(1000, 80, SYN);
    let event = datapath.judge(from_endpoint(WEB), &packet).unwrap_err();
    assert_eq!((event.reason, event.rule), (Reason::PolicyDenied as u32, 7));
    assert_eq!(event.direction, Direction::Ingress as u8);
    assert_eq!((event.source_identity, event.destination_identity), (WEB_IDENTITY, API_IDENTITY));
    assert_eq!((event.source_port, event.destination_port, event.protocol), (1000, 80, TCP));
    assert_eq!(std::net::IpAddr::from(event.source), WEB_PARTY.v6);
    assert_eq!(std::net::IpAddr::from(event.destination), API_PARTY.v6);
    assert_eq!((event.ifindex, event.length_bytes as usize), (WEB, packet.len()));
}

#[test]
fn a_port_is_allowed_and_no_other() {
    let mut datapath = Datapath::new();
    let key = port_row(Direction::Egress, DB_IDENTITY, UDP, 53);
    datapath.change(|tables| {
        tables.policies.insert(WEB_SLOT, table(deny_all(), key, Action::Allow));
    });
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, DB_PARTY, family);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1000, 53)), Reason::DeliveredOverlay);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1000, 54)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.tcp(1000, 53, SYN)), Reason::PolicyDenied);
        let to_api = out_of(WEB, WEB_PARTY, API_PARTY, family);
        assert_eq!(datapath.fate(from_endpoint(WEB), &to_api.udp(1000, 53)), Reason::PolicyDenied);
    }
}

#[test]
fn a_range_of_ports_is_a_prefix() {
    let mut datapath = Datapath::new();
    // 8080 to 8095.
    let row = port_row(Direction::Egress, DB_IDENTITY, TCP, 8080);
    let key = Row { ports: row.ports.cut(PortKey::PROTOCOL_BITS + 12), ..row };
    datapath.change(|tables| {
        tables.policies.insert(WEB_SLOT, table(deny_all(), key, Action::Allow));
    });
    let way = out_of(WEB, WEB_PARTY, DB_PARTY, Family::V4);
    for (port, expected) in [
        (8079, Reason::PolicyDenied),
        (8080, Reason::DeliveredOverlay),
        (8095, Reason::DeliveredOverlay),
        (8096, Reason::PolicyDenied),
    ] {
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.tcp(1000, port, SYN)), expected, "{port}");
    }
}

#[test]
fn every_party_is_met_by_its_class() {
    let mut datapath = Datapath::new();
    let cases = [
        (HOST_PARTY, Class::Host),
        (DB_NODE_PARTY, Class::RemoteNode),
        (DB_PARTY, Class::Fleet),
        (API_PARTY, Class::Fleet),
        (UNTOLD_PARTY, Class::Unmanaged),
        (WORLD_PARTY, Class::World),
        (PARTNER_PARTY, Class::World),
    ];
    for named in Class::ALL {
        datapath.forget_flows();
        datapath.change(|tables| {
            let key = peer_row(Direction::Egress, named as u32);
            tables.policies.insert(WEB_SLOT, table(deny_all(), key, Action::Allow));
        });
        for family in FAMILIES {
            for (to, class) in cases {
                let packet = out_of(WEB, WEB_PARTY, to, family).udp(1000, 53);
                let denied = datapath.fate(from_endpoint(WEB), &packet) == Reason::PolicyDenied;
                assert_eq!(denied, class != named, "{to:?} is {class:?}, {named:?} is allowed");
            }
        }
    }
}

#[test]
fn what_is_said_of_an_identity_is_all_there_is_and_else_its_class_counts() {
    let mut datapath = Datapath::new();
    let identity = peer_row(Direction::Egress, PARTNERS_IDENTITY);
    let class = peer_row(Direction::Egress, Class::World as u32);
    for (of_identity, of_class, expected) in [
        (Some(Action::Allow), None, Reason::DeliveredStack),
        (Some(Action::Deny), None, Reason::PolicyDenied),
        (None, Some(Action::Allow), Reason::DeliveredStack),
        (None, Some(Action::Deny), Reason::PolicyDenied),
        (Some(Action::Allow), Some(Action::Deny), Reason::PolicyDenied),
        (Some(Action::Deny), Some(Action::Allow), Reason::PolicyDenied),
    ] {
        datapath.forget_flows();
        datapath.change(|tables| {
            let mut table = deny_all();
            table.extend(of_identity.map(|action| (identity, rule(action, 1))));
            table.extend(of_class.map(|action| (class, rule(action, 2))));
            tables.policies.insert(WEB_SLOT, table);
        });
        for family in FAMILIES {
            let packet = out_of(WEB, WEB_PARTY, PARTNER_PARTY, family).udp(1000, 53);
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), expected);
        }
    }
}

#[test]
fn icmp_is_judged_by_type_and_code() {
    let mut datapath = Datapath::new();
    for (family, protocol, request) in [(Family::V4, ICMP, 8), (Family::V6, ICMPV6, 128)] {
        let key = port_row(Direction::Egress, DB_IDENTITY, protocol, request << 8);
        datapath.change(|tables| {
            tables.policies.insert(WEB_SLOT, table(deny_all(), key, Action::Allow));
        });
        let way = out_of(WEB, WEB_PARTY, DB_PARTY, family);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.ping(7)), Reason::DeliveredOverlay);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.pong(7)), Reason::PolicyDenied);
        let request = request.to_be_bytes()[1];
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.icmp(request, 1)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.icmp(3, 1)), Reason::PolicyDenied);
    }
}

#[test]
fn a_subject_without_rulebooks_or_rows_is_closed() {
    let mut datapath = Datapath::new();
    let packet = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4).udp(1000, 53);
    let subject = world::tables().subjects[&WEB_SLOT];
    let key = PeerKey { subject: WEB_IDENTITY, peer: API_IDENTITY, direction: Direction::Egress as u32 };
    let nothing = SubjectRow { rulebooks: [0; _], ..subject };
    let somebody_else = SubjectRow { identity: API_IDENTITY, ..subject };
    let missing = 4321;
    for steps in [
        [Step::Subject { slot: WEB_SLOT, subject: Some(nothing) }],
        [Step::Subject { slot: WEB_SLOT, subject: None }],
        [Step::Subject { slot: WEB_SLOT, subject: Some(somebody_else) }],
        [Step::PeerRules { key, rulebook: Some(missing) }],
        [Step::PeerRules { key, rulebook: Some(0) }],
    ] {
        datapath.write(&steps);
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyMissing, "{steps:?}");
        datapath.write(&[
            Step::Subject { slot: WEB_SLOT, subject: Some(subject) },
            Step::PeerRules { key, rulebook: None },
        ]);
    }
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
}

#[test]
fn an_action_that_is_none_denies() {
    let mut datapath = Datapath::new();
    let packet = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4).udp(1000, 53);
    for action in [0, 3, u32::MAX] {
        datapath.change(|tables| {
            let mut table = allow_all();
            let row = weft_shared::layout::PolicyRow { action, ..rule(Action::Allow, 1) };
            table.insert(peer_row(Direction::Egress, API_IDENTITY), row);
            tables.policies.insert(WEB_SLOT, table);
        });
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyDenied);
    }
}

#[test]
fn a_node_reaches_its_own_endpoints_and_they_are_judged() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &deny_all()));
    for family in FAMILIES {
        let from_host = crate::packets::arriving(HOST_PARTY, WEB_PARTY, family);
        let (reason, outcome) = datapath.reason(to_endpoint(WEB, 0), &from_host.tcp(1000, 80, SYN));
        assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Ok));
        assert_eq!(outcome.packet[..12], [mac(WEB), gateway_mac(WEB)].concat());
        // Its answer passes; what it begins itself does not.
        let answer = from_host.back_from(WEB);
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &answer.tcp(80, 1000, SYN | crate::packets::ACK)),
            Reason::DeliveredStack
        );
        assert_eq!(datapath.fate(from_endpoint(WEB), &answer.tcp(81, 1000, SYN)), Reason::PolicyDenied);
    }
}

#[test]
fn the_world_is_judged_on_its_way_through_the_stack() {
    let mut datapath = Datapath::new();
    let key = port_row(Direction::Ingress, PARTNERS_IDENTITY, TCP, 80);
    datapath.change(|tables| {
        tables.policies.insert(WEB_SLOT, table(deny_all(), key, Action::Allow));
    });
    let place = to_endpoint(WEB, world::UPLINK);
    for family in FAMILIES {
        let partner = crate::packets::arriving(PARTNER_PARTY, WEB_PARTY, family);
        assert_eq!(datapath.fate(place, &partner.tcp(1000, 80, SYN)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(place, &partner.tcp(1000, 81, SYN)), Reason::PolicyDenied);
        let world = crate::packets::arriving(WORLD_PARTY, WEB_PARTY, family);
        assert_eq!(datapath.fate(place, &world.tcp(1000, 80, SYN)), Reason::PolicyDenied);
        let foreign = crate::packets::arriving(WORLD_PARTY, API_PARTY, family);
        assert_eq!(datapath.fate(place, &foreign.tcp(1000, 80, SYN)), Reason::NoEndpoint);
    }
}

#[test]
fn the_remote_nodes_identity_counts_as_well_as_its_class() {
    let mut datapath = Datapath::new();
    let key = peer_row(Direction::Egress, REMOTE_NODE_IDENTITY);
    datapath.change(|tables| {
        tables.policies.insert(WEB_SLOT, table(deny_all(), key, Action::Allow));
    });
    let packet = out_of(WEB, WEB_PARTY, DB_NODE_PARTY, Family::V4).udp(1000, 53);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay);
}

#[test]
fn an_endpoint_reaches_itself_whatever_the_policy() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &deny_all()));
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, WEB_PARTY, family).tcp(1000, 80, SYN);
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
    }
}

#[test]
fn a_tap_is_reached_through_its_hosts_side_where_the_verdict_still_holds() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, TAP_PARTY, family).tcp(1000, 80, SYN);
        let (reason, sent) = datapath.reason(from_endpoint(WEB), &packet);
        assert_eq!(reason, Reason::DeliveredLocal);
        assert_eq!(datapath.fate(to_endpoint(TAP, WEB), &sent.packet), Reason::DeliveredLocal);
        // The same packet from elsewhere has no right to its source.
        assert_eq!(datapath.fate(to_endpoint(TAP, API), &sent.packet), Reason::PoolSourceOutsideOverlay);
        assert_eq!(datapath.fate(to_endpoint(TAP, 0), &sent.packet), Reason::PoolSourceOutsideOverlay);
    }
}
