//! ICMP errors about connections to services: who sent a packet is told of it as it was sent.

use std::net::IpAddr;

use etherparse::{IpHeaders, UdpHeader};
use weft_shared::layout::Reason;

use super::{
    FRONTEND, PORT, Place as Side, TARGET, at,
    packets::{addresses, parties},
    served_by,
};
use crate::{
    harness::{Datapath, FROM_UPLINK, Place, TO_UPLINK, from_endpoint, to_endpoint},
    packets::{Way, arriving, out_of},
    world::{
        API, API_PARTY, FAMILIES, Family, PARTNER_PARTY, Party, TAP, TAP_PARTY, WEB, WEB_PARTY, WORLD_PARTY,
        deny_all, for_all,
    },
};

const CLIENT: u16 = 40_000;

const fn unreachable(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (3, 3),
        Family::V6 => (1, 4),
    }
}

const fn too_big(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (3, 4),
        Family::V6 => (2, 0),
    }
}

/// Who sends the error to whom, and who is in the packet that it quotes; checksums are right, that of the quoted header, too.
pub(super) fn told(error: &[u8]) -> ((IpAddr, IpAddr), (Side, Side)) {
    parties(error);
    let ends = addresses(error);
    let start = 14 + if ends.0.is_ipv4() { 20 } else { 40 } + 8;
    let (ip, ..) = IpHeaders::from_slice_lax(&error[start..]).unwrap();
    let (source, destination, header): (IpAddr, IpAddr, usize) = match ip {
        IpHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            (ip.source.into(), ip.destination.into(), 20)
        }
        IpHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into(), 40),
    };
    let (udp, _) = UdpHeader::from_slice(&error[start + header..]).unwrap();
    (ends, ((source, udp.source_port), (destination, udp.destination_port)))
}

/// A question as it goes on.
fn asked(datapath: &mut Datapath, place: Place, way: &Way) -> Vec<u8> {
    datapath.run(place, &way.datagram(CLIENT, PORT, 30)).packet
}

#[test]
fn the_client_is_told_of_its_question_as_it_was_sent() {
    for family in FAMILIES {
        let client = at(WEB_PARTY, family, CLIENT);
        let (frontend, backend) = (at(FRONTEND, family, PORT), API_PARTY.address(family));
        let mut datapath = served_by(&[API_PARTY], family);
        let translated = asked(&mut datapath, from_endpoint(WEB), &out_of(WEB, WEB_PARTY, FRONTEND, family));
        let error = out_of(API, API_PARTY, WEB_PARTY, family).error(unreachable(family), &translated, 100);
        let (reason, outcome) = datapath.reason(from_endpoint(API), &error);
        assert_eq!(reason, Reason::DeliveredLocal);
        assert_eq!(told(&outcome.packet), ((frontend.0, client.0), (client, frontend)));
        assert_ne!(told(&outcome.packet).0.0, backend);
    }
}

/// A router has another address than the backend, and keeps it.
#[test]
fn a_router_tells_under_its_own_name() {
    for family in FAMILIES {
        let client = at(WEB_PARTY, family, CLIENT);
        let frontend = at(FRONTEND, family, PORT);
        let mut datapath = served_by(&[WORLD_PARTY], family);
        let translated = asked(&mut datapath, from_endpoint(WEB), &out_of(WEB, WEB_PARTY, FRONTEND, family));
        let error = arriving(PARTNER_PARTY, WEB_PARTY, family).error(too_big(family), &translated, 1000);
        let (reason, outcome) = datapath.reason(FROM_UPLINK, &error);
        assert_eq!(reason, Reason::DeliveredLocal);
        assert_eq!(told(&outcome.packet), ((PARTNER_PARTY.address(family), client.0), (client, frontend)));
    }
}

#[test]
fn a_tap_is_told_at_its_own_hook() {
    for family in FAMILIES {
        let client = at(TAP_PARTY, family, CLIENT);
        let frontend = at(FRONTEND, family, PORT);
        let mut datapath = served_by(&[API_PARTY], family);
        let translated = asked(&mut datapath, from_endpoint(TAP), &out_of(TAP, TAP_PARTY, FRONTEND, family));
        let error = out_of(API, API_PARTY, TAP_PARTY, family).error(unreachable(family), &translated, 100);
        let outcome = datapath.run(from_endpoint(API), &error);
        let (reason, outcome) = datapath.reason(to_endpoint(TAP, API), &outcome.packet);
        assert_eq!(reason, Reason::DeliveredLocal);
        assert_eq!(told(&outcome.packet), ((frontend.0, client.0), (client, frontend)));
    }
}

fn answered(datapath: &mut Datapath, to: Party, family: Family) -> Vec<u8> {
    let answer = out_of(API, API_PARTY, to, family).datagram(TARGET, CLIENT, 30);
    let outcome = datapath.run(from_endpoint(API), &answer);
    if to.v4 == WEB_PARTY.v4 {
        return outcome.packet;
    }
    datapath.run(Place { ingress_ifindex: API, ..TO_UPLINK }, &outcome.packet).packet
}

#[test]
fn the_backend_is_told_of_its_answer_as_it_was_sent() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let backend = at(API_PARTY, family, TARGET);
        for (client, place, way) in [
            (WEB_PARTY, from_endpoint(WEB), out_of(WEB, WEB_PARTY, FRONTEND, family)),
            (WORLD_PARTY, FROM_UPLINK, arriving(WORLD_PARTY, FRONTEND, family)),
        ] {
            asked(&mut datapath, place, &way);
            let shown = answered(&mut datapath, client, family);
            let (reason, outcome) = datapath.reason(place, &way.error(unreachable(family), &shown, 100));
            assert_eq!(reason, Reason::DeliveredLocal);
            let client = at(client, family, CLIENT);
            assert_eq!(told(&outcome.packet), ((client.0, backend.0), (backend, client)));
        }
        // And by a router on the way to a client outside.
        let shown = answered(&mut datapath, WORLD_PARTY, family);
        let error = arriving(PARTNER_PARTY, FRONTEND, family).error(too_big(family), &shown, 1000);
        let (reason, outcome) = datapath.reason(FROM_UPLINK, &error);
        assert_eq!(reason, Reason::DeliveredLocal);
        assert_eq!(told(&outcome.packet).0.0, PARTNER_PARTY.address(family));
        assert_eq!(told(&outcome.packet).1, (backend, at(WORLD_PARTY, family, CLIENT)));
    }
}

#[test]
fn a_client_outside_is_told_on_the_way_out() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let (client, frontend) = (at(WORLD_PARTY, family, CLIENT), at(FRONTEND, family, PORT));
        let translated = asked(&mut datapath, FROM_UPLINK, &arriving(WORLD_PARTY, FRONTEND, family));
        let error = out_of(API, API_PARTY, WORLD_PARTY, family).error(unreachable(family), &translated, 100);
        let (reason, outcome) = datapath.reason(from_endpoint(API), &error);
        assert_eq!((reason, &outcome.packet), (Reason::DeliveredStack, &error));
        let outcome = datapath.run(Place { ingress_ifindex: API, ..TO_UPLINK }, &outcome.packet);
        assert_eq!(told(&outcome.packet), ((frontend.0, client.0), (client, frontend)));
    }
}

/// It was judged as what goes to them, and reaches nobody else.
#[test]
fn an_error_to_others_than_the_sender_of_what_it_quotes_stays_as_it_is() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        for (place, way, client) in [
            (FROM_UPLINK, arriving(WORLD_PARTY, FRONTEND, family), WORLD_PARTY),
            (from_endpoint(WEB), out_of(WEB, WEB_PARTY, FRONTEND, family), WEB_PARTY),
        ] {
            let translated = asked(&mut datapath, place, &way);
            assert_eq!(addresses(&translated), (client.address(family), API_PARTY.address(family)));
            let error = out_of(API, API_PARTY, PARTNER_PARTY, family);
            let error = error.error(unreachable(family), &translated, 100);
            for place in [from_endpoint(API), Place { ingress_ifindex: API, ..TO_UPLINK }] {
                let (reason, outcome) = datapath.reason(place, &error);
                assert_eq!(
                    (reason, &outcome.packet),
                    (Reason::DeliveredStack, &error),
                    "{family:?} {place:?}"
                );
            }
        }
    }
}

/// Who quotes what was never sent is judged by its own type.
#[test]
fn errors_about_nothing_known_are_judged_by_themselves() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        datapath.change(|tables| for_all(tables, &deny_all()));
        let quoted = out_of(API, FRONTEND, WEB_PARTY, family).datagram(PORT, CLIENT, 30);
        let error = out_of(WEB, WEB_PARTY, FRONTEND, family).error(unreachable(family), &quoted, 100);
        assert_eq!(datapath.fate(from_endpoint(WEB), &error), Reason::PolicyDenied);
    }
}
