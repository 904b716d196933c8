//! Clients outside of the fleet, whose packets come in by an uplink.

use weft_shared::{
    balance::table::{Manner, Sources, Table},
    layout::{
        Class, Direction, Reason,
        service::{Frontend, FrontendKey, frontend_flags},
    },
};

use super::{
    FRONTEND, MANNER, PORT, SLOT, TARGET, at, backend, key,
    packets::{parties, sctp},
    served_by, table,
};
use crate::{
    harness::{Datapath, FROM_UPLINK, Place, TO_UPLINK, Verdict, from_endpoint, to_endpoint},
    packets::{ACK, SYN, TCP, UDP, Way, arriving, out_of},
    world::{
        API, API_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, PARTNER_PARTY, TAP, TAP_PARTY, UPLINK, WEB,
        WEB_PARTY, WORLD_PARTY, deny_all, for_all, gateway_mac, mac, port_row, rule,
    },
};

const CLIENT: u16 = 40_000;
/// Out of an endpoint's interface, through the node's stack.
const ON_ITS_WAY_OUT: Place = Place { ingress_ifindex: API, ..TO_UPLINK };

fn question(family: Family) -> Way {
    arriving(WORLD_PARTY, FRONTEND, family)
}

fn questions(way: &Way) -> Vec<Vec<u8>> {
    vec![
        way.tcp(CLIENT, PORT, SYN),
        way.tcp(CLIENT, PORT, ACK),
        way.udp(CLIENT, PORT),
        sctp(way, CLIENT, PORT, 9),
    ]
}

fn answers(way: &Way) -> Vec<Vec<u8>> {
    vec![
        way.tcp(TARGET, CLIENT, SYN | ACK),
        way.tcp(TARGET, CLIENT, ACK),
        way.udp(TARGET, CLIENT),
        sctp(way, TARGET, CLIENT, 9),
    ]
}

#[test]
fn an_endpoint_of_this_node_is_reached_by_the_frontend_and_answers_as_it() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let back = out_of(API, API_PARTY, WORLD_PARTY, family);
        let (client, frontend) = (at(WORLD_PARTY, family, CLIENT), at(FRONTEND, family, PORT));
        for (packet, answer) in questions(&question(family)).iter().zip(answers(&back)) {
            let (reason, outcome) = datapath.reason(FROM_UPLINK, packet);
            assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
            assert_eq!(outcome.packet[..12], [mac(API), gateway_mac(API)].concat());
            assert_eq!(parties(&outcome.packet), (client, at(API_PARTY, family, TARGET)));
            // The stack routes by the backend's address, which is the one it knows.
            let (reason, outcome) = datapath.reason(from_endpoint(API), &answer);
            assert_eq!((reason, &outcome.packet), (Reason::DeliveredStack, &answer));
            let (reason, outcome) = datapath.reason(ON_ITS_WAY_OUT, &outcome.packet);
            assert_eq!(reason, Reason::DeliveredStack);
            assert_eq!(parties(&outcome.packet), (frontend, client));
        }
    }
}

#[test]
fn a_tap_is_reached_by_its_own_hook() {
    for family in FAMILIES {
        let mut datapath = served_by(&[TAP_PARTY], family);
        for packet in questions(&question(family)) {
            let outcome = datapath.run(FROM_UPLINK, &packet);
            let (reason, outcome) = datapath.reason(to_endpoint(TAP, UPLINK), &outcome.packet);
            assert_eq!(reason, Reason::DeliveredLocal);
            assert_eq!(parties(&outcome.packet).1, at(TAP_PARTY, family, TARGET));
        }
    }
}

#[test]
fn the_receivers_policy_judges_the_client_outside() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        datapath.change(|tables| {
            let mut table = deny_all();
            let world = Class::World as u32;
            table.insert(
                port_row(Direction::Ingress, world, TCP, TARGET),
                rule(weft_shared::layout::Action::Allow, 1),
            );
            for_all(tables, &table);
        });
        assert_eq!(
            datapath.fate(FROM_UPLINK, &question(family).tcp(CLIENT, PORT, SYN)),
            Reason::DeliveredLocal
        );
        assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(CLIENT, PORT)), Reason::PolicyDenied);
        let answer = out_of(API, API_PARTY, WORLD_PARTY, family).tcp(TARGET, CLIENT, SYN | ACK);
        assert_eq!(datapath.fate(from_endpoint(API), &answer), Reason::DeliveredStack);
        datapath.change(|tables| for_all(tables, &deny_all()));
        assert_eq!(
            datapath.fate(FROM_UPLINK, &question(family).tcp(CLIENT, PORT, ACK)),
            Reason::PolicyDenied
        );
    }
}

#[test]
fn nobody_outside_has_an_address_of_ours() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        for (from, expected) in [
            (DB_PARTY, Reason::PoolSourceOutsideOverlay),
            (TAP_PARTY, Reason::PoolSourceOutsideOverlay),
            (HOST_PARTY, Reason::Spoofed),
        ] {
            let packet = arriving(from, FRONTEND, family).udp(CLIENT, PORT);
            assert_eq!(datapath.fate(FROM_UPLINK, &packet), expected);
        }
        assert_eq!(datapath.object.flows().unwrap().len(), 0);
    }
}

/// A port of the node is one at its own addresses, and everything else that is for the node goes to its stack.
#[test]
fn a_port_of_the_node_is_reached_from_outside() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        datapath.put_table(SLOT, Some(&table(&[API_PARTY], family)));
        let node_port = FrontendKey::node_port(family == Family::V4, PORT.to_be(), UDP);
        datapath.put_frontend(node_port, Some(SLOT));
        let way = arriving(PARTNER_PARTY, HOST_PARTY, family);
        let outcome = datapath.run(FROM_UPLINK, &way.udp(CLIENT, PORT));
        assert_eq!(parties(&outcome.packet).1, at(API_PARTY, family, TARGET));
        for packet in
            [way.udp(CLIENT, PORT + 1), way.tcp(CLIENT, PORT, SYN), way.ping(7), way.udp(CLIENT, 8472)]
        {
            let (reason, outcome) = datapath.reason(FROM_UPLINK, &packet);
            assert_eq!((reason, outcome.packet), (Reason::DeliveredStack, packet));
        }
        let answer = out_of(API, API_PARTY, PARTNER_PARTY, family).udp(TARGET, CLIENT);
        let outcome = datapath.run(from_endpoint(API), &answer);
        let outcome = datapath.run(ON_ITS_WAY_OUT, &outcome.packet);
        assert_eq!(parties(&outcome.packet).0, at(HOST_PARTY, family, PORT));
    }
}

#[test]
fn an_address_of_the_fleets_is_not_for_those_outside() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        datapath.put_table(SLOT, Some(&table(&[API_PARTY], family)));
        let flags = frontend_flags::CLUSTER;
        datapath
            .put_frontend_row(key(FRONTEND, family, UDP), Frontend { inside: SLOT, outside: SLOT, flags });
        let packet = question(family).udp(CLIENT, PORT);
        let (reason, outcome) = datapath.reason(FROM_UPLINK, &packet);
        assert_eq!((reason, outcome.packet), (Reason::DeliveredStack, packet));
    }
}

#[test]
fn who_calls_nobody_from_outside_is_refused() {
    for family in FAMILIES {
        let mut datapath = served_by(&[], family);
        let (client, frontend) = (at(WORLD_PARTY, family, CLIENT), at(FRONTEND, family, PORT));
        let packet = question(family).tcp(CLIENT, PORT, SYN);
        let (reason, outcome) = datapath.reason(FROM_UPLINK, &packet);
        assert_eq!((reason, outcome.verdict), (Reason::ServiceRejected, Verdict::Redirect));
        assert_eq!(parties(&outcome.packet), (frontend, client));
        assert_eq!(outcome.packet[..12], [&packet[6..12], &packet[..6]].concat());
        let outcome = datapath.run(FROM_UPLINK, &question(family).udp(CLIENT, PORT));
        assert_eq!((outcome.verdict, parties(&outcome.packet).1.0), (Verdict::Redirect, client.0));
    }
}

#[test]
fn what_an_endpoint_says_to_others_outside_stays_as_it_is() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        datapath.run(FROM_UPLINK, &question(family).udp(CLIENT, PORT));
        let to = |party| out_of(API, API_PARTY, party, family);
        for packet in [to(WORLD_PARTY).udp(TARGET, CLIENT + 1), to(PARTNER_PARTY).udp(TARGET, CLIENT)] {
            assert_eq!(datapath.reason(ON_ITS_WAY_OUT, &packet).1.packet, packet);
        }
    }
}

/// Inside as outside.
#[test]
fn who_is_not_among_the_sources_of_a_service_is_dropped() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let nobody = Sources { set: 0, denied: false, node: false };
        let everybody = Sources { set: 0, denied: true, node: false };
        for (sources, expected) in [(nobody, Reason::SourceRefused), (everybody, Reason::DeliveredLocal)] {
            let manner = Manner { sources: Some(sources), ..MANNER };
            let api = backend(API_PARTY, family, TARGET);
            datapath.put_table(SLOT, Some(&Table::new(manner, vec![api])));
            let inside = out_of(WEB, WEB_PARTY, FRONTEND, family);
            for packet in [inside.udp(CLIENT, PORT), inside.tcp(CLIENT, PORT, SYN)] {
                assert_eq!(datapath.fate(from_endpoint(WEB), &packet), expected);
            }
            assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(CLIENT, PORT)), expected);
        }
    }
}
