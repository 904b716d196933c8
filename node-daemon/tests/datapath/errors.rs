//! ICMP errors: those about known flows pass by the flow's verdict, to the one who sent what they quote; others are judged by
//! their own type.

use weft_shared::layout::{Action, Direction, Reason};

use crate::{
    harness::{Datapath, FROM_UPLINK, Place, from_endpoint, to_endpoint},
    packets::{ICMP, ICMPV6, SYN, TCP, UDP, Way, arriving, out_of},
    world::{
        API, API_IDENTITY, API_PARTY, API_SLOT, DB_IDENTITY, DB_NODE_PARTY, DB_PARTY, FAMILIES, Family,
        HOST_PARTY, Party, TAP, TAP_PARTY, UPLINK, WEB, WEB_IDENTITY, WEB_PARTY, WEB_SLOT, WORLD_PARTY,
        deny_all, for_all, port_row, rule,
    },
};

/// All that an error can be about, type and code.
const ERRORS_V4: [(u8, u8); 6] = [(3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0)];
const ERRORS_V6: [(u8, u8); 6] = [(1, 1), (1, 4), (2, 0), (3, 0), (4, 0), (4, 1)];
/// Which say other things than what became of a packet: quench, redirects, echo, advertisements.
const OTHERS_V4: [(u8, u8); 4] = [(4, 0), (5, 0), (5, 1), (8, 1)];
const OTHERS_V6: [(u8, u8); 3] = [(0, 0), (5, 0), (127, 0)];

fn errors(family: Family) -> [(u8, u8); 6] {
    if family == Family::V4 { ERRORS_V4 } else { ERRORS_V6 }
}

fn unreachable(family: Family) -> (u8, u8) {
    if family == Family::V4 { (3, 3) } else { (1, 4) }
}

/// web may call everyone on UDP 53 and TCP 80, api may be called; nothing else may happen.
fn web_calls() -> Datapath {
    let mut datapath = Datapath::new();
    datapath.change(|tables| {
        for_all(tables, &deny_all());
        for (protocol, port) in [(UDP, 53), (TCP, 80), (ICMP, 8 << 8), (ICMPV6, 128 << 8)] {
            for peer in [API_IDENTITY, DB_IDENTITY, 1, 2, 5] {
                let key = port_row(Direction::Egress, peer, protocol, port);
                tables.policies.get_mut(WEB_SLOT).unwrap().insert(key, rule(Action::Allow, 1));
            }
            let key = port_row(Direction::Ingress, WEB_IDENTITY, protocol, port);
            tables.policies.get_mut(API_SLOT).unwrap().insert(key, rule(Action::Allow, 1));
        }
    });
    datapath
}

/// The way of an error to web from that party, and where it comes in.
fn to_web(from: Party, family: Family) -> [(Place, Way); 1] {
    let out_of_api = out_of(API, API_PARTY, WEB_PARTY, family);
    let by = |place| [(place, arriving(from, WEB_PARTY, family))];
    match from.v4 {
        v4 if v4 == API_PARTY.v4 => [(from_endpoint(API), out_of_api)],
        v4 if v4 == HOST_PARTY.v4 => by(to_endpoint(WEB, 0)),
        v4 if v4 == DB_PARTY.v4 => by(to_endpoint(WEB, crate::world::OVERLAY)),
        _ => by(FROM_UPLINK),
    }
}

#[test]
fn errors_about_a_known_flow_reach_who_sent_the_packet() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        for peer in [API_PARTY, DB_PARTY, WORLD_PARTY, DB_NODE_PARTY] {
            let sent = out_of(WEB, WEB_PARTY, peer, family);
            for packet in [sent.datagram(1000, 53, 100), sent.tcp(1000, 80, SYN), sent.ping(7)] {
                for (place, way) in to_web(peer, family) {
                    for kind in errors(family) {
                        let error = way.error(kind, &packet, 1000);
                        assert_eq!(datapath.fate(place, &error), Reason::PolicyDenied, "{kind:?} {way:?}");
                    }
                    assert!(!datapath.fate(from_endpoint(WEB), &packet).is_drop(), "{sent:?}");
                    for kind in errors(family) {
                        let error = way.error(kind, &packet, 1000);
                        assert_eq!(datapath.fate(place, &error), Reason::DeliveredLocal, "{kind:?} {way:?}");
                    }
                    datapath.forget_flows();
                }
            }
        }
    }
}

#[test]
fn other_messages_that_quote_a_known_flow_are_judged_by_themselves() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        let sent = out_of(WEB, WEB_PARTY, WORLD_PARTY, family);
        let packet = sent.datagram(1000, 53, 100);
        datapath.run(from_endpoint(WEB), &packet);
        let others: &[_] = if family == Family::V4 { &OTHERS_V4 } else { &OTHERS_V6 };
        for kind in others {
            let message = arriving(WORLD_PARTY, WEB_PARTY, family).error(*kind, &packet, 1000);
            assert_eq!(datapath.fate(FROM_UPLINK, &message), Reason::PolicyDenied, "{kind:?}");
        }
    }
}

#[test]
fn an_error_about_an_answer_reaches_who_answered() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        let forth = out_of(WEB, WEB_PARTY, API_PARTY, family);
        let answer = forth.back_from(API).datagram(53, 1000, 100);
        let error = forth.error(unreachable(family), &answer, 1000);
        assert_eq!(datapath.fate(from_endpoint(WEB), &error), Reason::PolicyDenied);
        datapath.run(from_endpoint(WEB), &forth.udp(1000, 53));
        assert_eq!(datapath.fate(from_endpoint(WEB), &error), Reason::DeliveredLocal);
    }
}

#[test]
fn a_router_anywhere_tells_of_what_left_for_the_world() {
    let mut datapath = web_calls();
    let elsewhere = Party { v4: [203, 0, 113, 99].into(), ..DB_NODE_PARTY };
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, WORLD_PARTY, family).datagram(1000, 53, 100);
        datapath.run(from_endpoint(WEB), &packet);
        let too_big = if family == Family::V4 { (3, 4) } else { (2, 0) };
        let error = arriving(elsewhere, WEB_PARTY, family).error(too_big, &packet, 1000);
        assert_eq!(datapath.fate(FROM_UPLINK, &error), Reason::DeliveredLocal);
        let error = arriving(elsewhere, WEB_PARTY, family).error(too_big, &packet, 1000);
        assert_eq!(datapath.fate(to_endpoint(WEB, UPLINK), &error), Reason::DeliveredLocal);
    }
}

#[test]
fn no_router_outside_tells_of_what_endpoints_send_each_other_or_the_node() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        for peer in [API_PARTY, DB_PARTY, HOST_PARTY] {
            let packet = out_of(WEB, WEB_PARTY, peer, family).datagram(1000, 53, 100);
            assert!(!datapath.fate(from_endpoint(WEB), &packet).is_drop());
            for from in [WORLD_PARTY, DB_NODE_PARTY] {
                let error = arriving(from, WEB_PARTY, family).error(unreachable(family), &packet, 1000);
                assert_eq!(datapath.fate(FROM_UPLINK, &error), Reason::PolicyDenied, "{from:?}");
            }
            // This node does.
            let error = arriving(HOST_PARTY, WEB_PARTY, family).error(unreachable(family), &packet, 1000);
            assert_eq!(datapath.fate(to_endpoint(WEB, 0), &error), Reason::DeliveredLocal);
        }
    }
}

#[test]
fn a_workload_tells_only_of_what_it_was_sent_and_only_its_sender() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, API_PARTY, family).datagram(1000, 53, 100);
        datapath.run(from_endpoint(WEB), &packet);
        let kind = unreachable(family);
        // Another's flow, told by a third.
        let third = out_of(TAP, TAP_PARTY, WEB_PARTY, family).error(kind, &packet, 1000);
        assert_eq!(datapath.fate(from_endpoint(TAP), &third), Reason::PolicyDenied);
        // In another's name.
        let forged = Way { ..out_of(TAP, API_PARTY, WEB_PARTY, family) }.error(kind, &packet, 1000);
        assert_eq!(datapath.fate(from_endpoint(TAP), &forged), Reason::Spoofed);
        // To someone who did not send it.
        let astray = out_of(API, API_PARTY, TAP_PARTY, family).error(kind, &packet, 1000);
        assert_eq!(datapath.fate(from_endpoint(API), &astray), Reason::PolicyDenied);
        // Of a packet that the flow's other party would have sent.
        let own = out_of(API, API_PARTY, WEB_PARTY, family).datagram(53, 1000, 100);
        let error = out_of(API, API_PARTY, WEB_PARTY, family).error(kind, &own, 1000);
        assert_eq!(datapath.fate(from_endpoint(API), &error), Reason::PolicyDenied);
        // On other ports.
        let other = out_of(WEB, WEB_PARTY, API_PARTY, family).datagram(1001, 53, 100);
        let error = out_of(API, API_PARTY, WEB_PARTY, family).error(kind, &other, 1000);
        assert_eq!(datapath.fate(from_endpoint(API), &error), Reason::PolicyDenied);
    }
}

#[test]
fn an_error_about_a_revoked_flow_is_judged_by_itself() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, API_PARTY, family).datagram(1000, 53, 100);
        let error = out_of(API, API_PARTY, WEB_PARTY, family).error(unreachable(family), &packet, 1000);
        datapath.run(from_endpoint(WEB), &packet);
        assert_eq!(datapath.fate(from_endpoint(API), &error), Reason::DeliveredLocal);
        for slot in [WEB_SLOT, API_SLOT] {
            let mut table = None;
            datapath.change(|tables| table = tables.policies.insert(slot, deny_all()));
            assert_eq!(datapath.fate(from_endpoint(API), &error), Reason::PolicyDenied);
            datapath.change(|tables| drop(tables.policies.insert(slot, table.take().unwrap())));
            assert_eq!(datapath.fate(from_endpoint(API), &error), Reason::DeliveredLocal);
        }
    }
}

#[test]
fn an_error_leaves_the_flow_as_it_is_and_makes_none() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        datapath.forget_flows();
        let packet = out_of(WEB, WEB_PARTY, API_PARTY, family).datagram(1000, 53, 100);
        let error = out_of(API, API_PARTY, WEB_PARTY, family).error(unreachable(family), &packet, 1000);
        datapath.run(from_endpoint(WEB), &packet);
        let before = datapath.object.flows().unwrap();
        assert_eq!(before.len(), 1);
        assert_eq!(datapath.fate(from_endpoint(API), &error), Reason::DeliveredLocal);
        assert_eq!(datapath.object.flows().unwrap(), before);
    }
}

#[test]
fn an_error_quotes_at_least_eight_bytes_behind_the_header() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, API_PARTY, family).datagram(1000, 53, 100);
        datapath.run(from_endpoint(WEB), &packet);
        let header = if family == Family::V4 { 20 } else { 40 };
        let way = out_of(API, API_PARTY, WEB_PARTY, family);
        for (bytes, expected) in [
            (header - 1, Reason::PolicyDenied),
            (header, Reason::PolicyDenied),
            (header + 7, Reason::PolicyDenied),
            (header + 8, Reason::DeliveredLocal),
        ] {
            let error = way.error(unreachable(family), &packet, bytes);
            assert_eq!(datapath.fate(from_endpoint(API), &error), expected, "{bytes}");
            // Bytes behind the packet's own end are none of it.
            let padded = [error, vec![0; 60]].concat();
            assert_eq!(datapath.fate(from_endpoint(API), &padded), expected, "{bytes} padded");
        }
    }
}

#[test]
fn first_fragments_are_quoted_with_their_ports_and_later_ones_without() {
    let mut datapath = web_calls();
    for family in FAMILIES {
        let sent = out_of(WEB, WEB_PARTY, API_PARTY, family);
        let pieces = sent.cut(&sent.datagram(1000, 53, 64), &[24, 48], 9);
        let way = out_of(API, API_PARTY, WEB_PARTY, family);
        for piece in &pieces {
            datapath.run(from_endpoint(WEB), piece);
        }
        // Reassembly took too long.
        let kind = if family == Family::V4 { (11, 1) } else { (3, 1) };
        let about = |piece: &[u8]| way.error(kind, piece, 1000);
        assert_eq!(datapath.fate(from_endpoint(API), &about(&pieces[0])), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(API), &about(&pieces[1])), Reason::PolicyDenied);
        // And an error in pieces is no error that can be looked into.
        let error = about(&pieces[0]);
        let cut = &way.cut(&error, &[40], 9)[0];
        assert_eq!(datapath.fate(from_endpoint(API), cut), Reason::PolicyDenied);
    }
}

#[test]
fn options_and_extension_headers_of_the_quoted_packet_are_passed_over() {
    let mut datapath = web_calls();
    let udp = [3, 232, 0, 53, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let v6 = out_of(WEB, WEB_PARTY, API_PARTY, Family::V6);
    let packet = v6.protocol(60, &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat());
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
    let way = out_of(API, API_PARTY, WEB_PARTY, Family::V6);
    assert_eq!(datapath.fate(from_endpoint(API), &way.error((1, 4), &packet, 1000)), Reason::DeliveredLocal);
    let routed = v6.protocol(43, &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp].concat());
    assert_eq!(datapath.fate(from_endpoint(API), &way.error((1, 4), &routed, 1000)), Reason::PolicyDenied);
    let v4 = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4);
    let mut packet = v4.udp(1000, 53);
    packet.splice(34..34, [1, 1, 1, 0]);
    packet[14] = 0x46;
    packet[17] += 4;
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
    let way = out_of(API, API_PARTY, WEB_PARTY, Family::V4);
    assert_eq!(datapath.fate(from_endpoint(API), &way.error((3, 3), &packet, 1000)), Reason::DeliveredLocal);
}

#[test]
fn what_a_policy_allows_by_type_passes_without_a_flow() {
    let mut datapath = web_calls();
    let too_big = |family| if family == Family::V4 { (3, 4) } else { (2, 0) };
    datapath.change(|tables| {
        let table = tables.policies.get_mut(WEB_SLOT).unwrap();
        for (protocol, kind) in [(ICMP, 3 << 8 | 4), (ICMPV6, 2 << 8)] {
            table.insert(port_row(Direction::Ingress, 5, protocol, kind), rule(Action::Allow, 2));
        }
    });
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, WORLD_PARTY, family).datagram(1000, 53, 100);
        let way = arriving(WORLD_PARTY, WEB_PARTY, family);
        assert_eq!(
            datapath.fate(FROM_UPLINK, &way.error(too_big(family), &packet, 1000)),
            Reason::DeliveredLocal
        );
        assert_eq!(
            datapath.fate(FROM_UPLINK, &way.error(unreachable(family), &packet, 1000)),
            Reason::PolicyDenied
        );
    }
}
