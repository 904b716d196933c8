//! What came in pieces: the first is judged, the others go its way, and nothing else gets through beside them.

use weft_shared::layout::{Action, Direction, Reason};

use crate::{
    harness::{Datapath, FROM_UPLINK, TO_UPLINK, Verdict, from_endpoint, to_endpoint},
    packets::{SYN, TCP, UDP, Way, arriving, out_of},
    world::{
        API, API_IDENTITY, API_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, WEB, WEB_IDENTITY, WEB_PARTY,
        WEB_SLOT, WORLD_PARTY, allow_all, deny_all, for_all, port_row, rule,
    },
};

const ID: u16 = 0x1234;

/// web may send to api's UDP 53, and nothing else may happen.
fn only_dns() -> Datapath {
    let mut datapath = Datapath::new();
    datapath.change(|tables| {
        let mut table = deny_all();
        table.insert(port_row(Direction::Egress, API_IDENTITY, UDP, 53), rule(Action::Allow, 1));
        table.insert(port_row(Direction::Ingress, WEB_IDENTITY, UDP, 53), rule(Action::Allow, 1));
        for_all(tables, &table);
    });
    datapath
}

fn call(family: Family) -> Way {
    out_of(WEB, WEB_PARTY, API_PARTY, family)
}

/// A datagram in three pieces.
fn pieces(way: &Way, port: u16, id: u16) -> Vec<Vec<u8>> {
    way.cut(&way.datagram(1000, port, 64), &[24, 48], id)
}

#[test]
fn the_later_fragments_go_the_way_of_the_first_with_its_ports() {
    let mut datapath = only_dns();
    for family in FAMILIES {
        for piece in pieces(&call(family), 53, ID) {
            assert_eq!(datapath.fate(from_endpoint(WEB), &piece), Reason::DeliveredLocal, "{family:?}");
        }
        // One flow, not three.
        assert_eq!(datapath.object.flows().unwrap().len(), 1, "{family:?}");
        datapath.forget_flows();
    }
}

#[test]
fn a_later_fragment_without_its_first_is_dropped() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let sent = pieces(&call(family), 53, ID);
        for later in &sent[1..] {
            assert_eq!(datapath.fate(from_endpoint(WEB), later), Reason::FragmentWithoutFirst);
        }
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[0]), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[2]), Reason::DeliveredLocal);
        // Another datagram, and another receiver's of the same number.
        let other = pieces(&call(family), 53, ID + 1);
        assert_eq!(datapath.fate(from_endpoint(WEB), &other[1]), Reason::FragmentWithoutFirst);
        let other = pieces(&out_of(WEB, WEB_PARTY, DB_PARTY, family), 53, ID);
        assert_eq!(datapath.fate(from_endpoint(WEB), &other[1]), Reason::FragmentWithoutFirst);
    }
}

#[test]
fn of_another_protocol_are_other_datagrams_in_ipv4_only() {
    let mut datapath = Datapath::new();
    for (family, expected) in
        [(Family::V4, Reason::FragmentWithoutFirst), (Family::V6, Reason::DeliveredLocal)]
    {
        let sent = pieces(&call(family), 53, ID);
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[0]), Reason::DeliveredLocal);
        let mut other = sent[1].clone();
        let protocol = if family == Family::V4 { 23 } else { 54 };
        other[protocol] = TCP;
        assert_eq!(datapath.fate(from_endpoint(WEB), &other), expected, "{family:?}");
        // What IPv6's says of it, nobody asks.
        let flows = datapath.object.flows().unwrap();
        assert!(flows.iter().all(|(key, _)| key.protocol == UDP), "{flows:?}");
    }
}

#[test]
fn a_first_fragment_that_is_denied_opens_nothing() {
    let mut datapath = only_dns();
    for family in FAMILIES {
        let denied = pieces(&call(family), 22, ID);
        assert_eq!(datapath.fate(from_endpoint(WEB), &denied[0]), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &denied[1]), Reason::FragmentWithoutFirst);
        // Behind an allowed one of the same number it is denied by itself, and the rest is the allowed one's.
        let allowed = pieces(&call(family), 53, ID);
        assert_eq!(datapath.fate(from_endpoint(WEB), &allowed[0]), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(WEB), &denied[0]), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &allowed[1]), Reason::DeliveredLocal);
        let flows = datapath.object.flows().unwrap();
        assert!(flows.iter().all(|(key, _)| [key.low_port, key.high_port].contains(&53_u16.to_be())));
    }
}

#[test]
fn a_fragment_that_overlaps_the_first_is_none_of_its_datagram() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let way = call(family);
        let packet = way.datagram(1000, 53, 64);
        let first = &way.cut(&packet, &[24], ID)[0];
        let overlapping = &way.cut(&packet, &[16], ID)[1];
        let adjoining = &way.cut(&packet, &[24], ID)[1];
        assert_eq!(datapath.fate(from_endpoint(WEB), first), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(WEB), overlapping), Reason::FragmentWithoutFirst);
        assert_eq!(datapath.fate(from_endpoint(WEB), adjoining), Reason::DeliveredLocal);
    }
}

#[test]
fn a_first_fragment_without_the_whole_transport_header_is_malformed() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let way = call(family);
        // TCP has at least twenty bytes.
        for at in [8, 16] {
            let tiny = way.cut(&way.tcp(1000, 80, SYN), &[at], ID);
            assert_eq!(datapath.fate(from_endpoint(WEB), &tiny[0]), Reason::Malformed, "{at}");
            assert_eq!(datapath.fate(from_endpoint(WEB), &tiny[1]), Reason::FragmentWithoutFirst, "{at}");
        }
        // Not a multiple of eight.
        let mut odd = pieces(&way, 53, ID).swap_remove(0);
        odd.pop();
        let (length, by) = if family == Family::V4 { (17, odd.len() - 14) } else { (19, odd.len() - 54) };
        odd[length] = u8::try_from(by).unwrap();
        assert_eq!(datapath.fate(from_endpoint(WEB), &odd), Reason::Malformed);
    }
}

#[test]
fn an_endpoint_does_not_speak_first_for_another() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        // api claims to be web.
        let forged = pieces(&Way { ..out_of(API, WEB_PARTY, DB_PARTY, family) }, 53, ID);
        assert_eq!(datapath.fate(from_endpoint(API), &forged[0]), Reason::Spoofed);
        let sent = pieces(&out_of(WEB, WEB_PARTY, DB_PARTY, family), 53, ID);
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[1]), Reason::FragmentWithoutFirst);
        // And later ones of a datagram that web began are not api's to end.
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[0]), Reason::DeliveredOverlay);
        assert_eq!(datapath.fate(from_endpoint(API), &forged[1]), Reason::Spoofed);
    }
}

#[test]
fn a_change_of_policy_holds_for_the_next_fragment() {
    let mut datapath = only_dns();
    for family in FAMILIES {
        let sent = pieces(&call(family), 53, ID);
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[0]), Reason::DeliveredLocal);
        let mut table = None;
        datapath.change(|tables| table = tables.policies.insert(WEB_SLOT, deny_all()));
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[1]), Reason::PolicyDenied);
        datapath.change(|tables| drop(tables.policies.insert(WEB_SLOT, table.take().unwrap())));
        assert_eq!(datapath.fate(from_endpoint(WEB), &sent[1]), Reason::DeliveredLocal);
    }
}

#[test]
fn a_ping_in_fragments_is_a_ping() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        datapath.forget_flows();
        let way = call(family);
        let mut ping = way.ping(7);
        // Room for two pieces; nobody here looks at the checksum.
        ping.extend([0; 28]);
        for (place, sent) in [(from_endpoint(WEB), way.cut(&ping, &[16], ID))] {
            for piece in sent {
                assert_eq!(datapath.fate(place, &piece), Reason::DeliveredLocal, "{family:?}");
            }
        }
        assert_eq!(datapath.object.flows().unwrap().len(), 1);
    }
}

#[test]
fn fragments_pass_every_program() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let ways = [
            (from_endpoint(WEB), out_of(WEB, WEB_PARTY, DB_PARTY, family), Reason::DeliveredOverlay),
            (from_endpoint(WEB), out_of(WEB, WEB_PARTY, WORLD_PARTY, family), Reason::DeliveredStack),
            (to_endpoint(WEB, 0), arriving(HOST_PARTY, WEB_PARTY, family), Reason::DeliveredLocal),
            (FROM_UPLINK, arriving(WORLD_PARTY, WEB_PARTY, family), Reason::DeliveredLocal),
        ];
        for (place, way, expected) in ways {
            let sent = pieces(&way, 53, ID);
            assert_eq!(datapath.fate(place, &sent[1]), Reason::FragmentWithoutFirst, "{place:?}");
            for piece in &sent {
                assert_eq!(datapath.fate(place, piece), expected, "{place:?}");
            }
        }
        // Not looked into: only the addresses count.
        let [_, later, _] = &pieces(&out_of(WEB, WEB_PARTY, WORLD_PARTY, family), 53, ID + 1)[..] else {
            panic!("three pieces");
        };
        assert_eq!(datapath.run(TO_UPLINK, later).verdict, Verdict::Ok);
    }
}

#[test]
fn ipv6_fragments_are_found_behind_other_headers_and_whole_ones_are_no_fragments() {
    let mut datapath = only_dns();
    let way = call(Family::V6);
    let udp = |port: u16| [&[3, 232][..], &port.to_be_bytes(), &[0, 16, 0, 0], &[1; 8]].concat();
    let fragment = |next: u8, field: u16| [&[next, 0][..], &field.to_be_bytes(), &[0, 0, 0, 9]].concat();
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0].to_vec();
    let fate = |datapath: &mut Datapath, first: u8, headers: &[Vec<u8>]| {
        datapath.fate(from_endpoint(WEB), &way.protocol(first, &headers.concat()))
    };
    // Offset 0 and nothing more to come (RFC 6946): a whole packet, judged as such.
    for (port, expected) in [(53, Reason::DeliveredLocal), (22, Reason::PolicyDenied)] {
        assert_eq!(fate(&mut datapath, 44, &[fragment(17, 0), udp(port)]), expected);
        assert_eq!(fate(&mut datapath, 60, &[options(44), fragment(17, 0), udp(port)]), expected);
        assert_eq!(fate(&mut datapath, 44, &[fragment(60, 0), options(17), udp(port)]), expected);
    }
    assert_eq!(fate(&mut datapath, 44, &[fragment(17, 17), udp(53)]), Reason::FragmentWithoutFirst);
    // The reserved bits say nothing.
    assert_eq!(
        fate(&mut datapath, 60, &[options(44), fragment(60, 7), options(17), udp(53)]),
        Reason::DeliveredLocal
    );
    // Whatever the later ones say is next.
    assert_eq!(fate(&mut datapath, 44, &[fragment(0, 24), udp(22)]), Reason::DeliveredLocal);
    // Headers behind the first's fragment header are the datagram's: what overlaps them is no better.
    assert_eq!(fate(&mut datapath, 44, &[fragment(60, 8), udp(22)]), Reason::FragmentWithoutFirst);
    // A fragment in a fragment.
    assert_eq!(fate(&mut datapath, 44, &[fragment(44, 1), fragment(17, 1), udp(53)]), Reason::Malformed);
    // The header chain must end in the first fragment (RFC 7112).
    assert_eq!(fate(&mut datapath, 44, &[fragment(60, 1), vec![17, 1, 1, 4, 0, 0, 0, 0]]), Reason::Malformed);
    assert_eq!(fate(&mut datapath, 44, &[vec![17, 0, 0]]), Reason::Malformed);
}

#[test]
fn dont_fragment_alone_is_no_fragment() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &allow_all()));
    let mut whole = call(Family::V4).udp(1000, 53);
    whole[20..22].copy_from_slice(&[0x40, 0]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &whole), Reason::DeliveredLocal);
}
