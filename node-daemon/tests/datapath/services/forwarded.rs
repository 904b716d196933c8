//! Packets to services that another node has sent on, inside others.

use std::net::IpAddr;

use weft_shared::{
    balance::table::{Backend, Manner, Table},
    layout::Reason,
};

use super::{FRONTEND, MANNER, PORT, at, backend, errors::told, packets::parties};
use crate::{
    harness::{Datapath, FROM_UPLINK, Verdict, from_endpoint},
    packets::{ACK, SYN, Way, arriving, out_of},
    world::{
        API, API_PARTY, DB_NODE_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, PARTNER_PARTY, Party,
        UNTOLD_PARTY, WEB, WEB_PARTY, WORLD_PARTY, deny_all, for_all, gateway_mac, mac,
    },
};

const CLIENT: u16 = 40_000;
const OUTER: usize = 14;

/// A service of two endpoints of this node and one of another, which answer the client themselves.
fn served(family: Family) -> Datapath {
    let own = |party| Backend { local: true, ..backend(party, family, 0) };
    let members = vec![own(WEB_PARTY), own(API_PARTY), backend(DB_PARTY, family, 0)];
    let mut datapath = Datapath::new();
    datapath.serve(FRONTEND, family, &Table::new(Manner { dsr: true, ..MANNER }, members));
    datapath
}

/// The lower half of an address.
fn half(party: Party, family: Family) -> [u8; 2] {
    match party.address(family) {
        IpAddr::V4(v4) => [v4.octets()[2], v4.octets()[3]],
        IpAddr::V6(v6) => [v6.octets()[14], v6.octets()[15]],
    }
}

/// The packet inside another one, for the endpoint whose address has this lower half.
fn sent_on(node: Party, outer: Family, half: [u8; 2], packet: &[u8]) -> Vec<u8> {
    let inside = if packet[14] >> 4 == 4 { 4 } else { 41 };
    let mut sent = arriving(node, HOST_PARTY, outer).protocol(inside, &packet[14..]);
    let mark = if outer == Family::V4 { OUTER + 4 } else { OUTER + 2 };
    sent[mark..mark + 2].copy_from_slice(&half);
    sent
}

fn question(family: Family) -> Way {
    arriving(WORLD_PARTY, FRONTEND, family)
}

fn each() -> impl Iterator<Item = (Family, Family)> {
    FAMILIES.into_iter().flat_map(|outer| FAMILIES.map(|inner| (outer, inner)))
}

#[test]
fn it_reaches_the_endpoint_that_is_meant_which_answers_the_client_as_the_frontend() {
    for (outer, inner) in each() {
        let mut datapath = served(inner);
        for (client, ifindex, party) in [(CLIENT, WEB, WEB_PARTY), (CLIENT + 1, API, API_PARTY)] {
            let way = question(inner);
            for packet in
                [way.tcp(client, PORT, SYN), way.tcp(client, PORT, ACK), way.datagram(client, PORT, 0)]
            {
                let sent = sent_on(DB_NODE_PARTY, outer, half(party, inner), &packet);
                let (reason, outcome) = datapath.reason(FROM_UPLINK, &sent);
                assert_eq!(
                    (reason, outcome.verdict),
                    (Reason::DeliveredLocal, Verdict::Redirect),
                    "{outer:?} {inner:?}"
                );
                assert_eq!(outcome.packet.len(), packet.len());
                assert_eq!(outcome.packet[..12], [mac(ifindex), gateway_mac(ifindex)].concat());
                assert_eq!(
                    parties(&outcome.packet),
                    (at(WORLD_PARTY, inner, client), at(party, inner, PORT))
                );
                let hops = if inner == Family::V4 { 22 } else { 21 };
                assert_eq!(outcome.packet[hops], way.hops - 1);
            }
            let answer = out_of(ifindex, party, WORLD_PARTY, inner).tcp(PORT, client, SYN | ACK);
            assert_eq!(datapath.fate(from_endpoint(ifindex), &answer), Reason::DeliveredStack);
            let leaving = crate::harness::Place { ingress_ifindex: ifindex, ..crate::harness::TO_UPLINK };
            let (_, outcome) = datapath.reason(leaving, &answer);
            let (frontend, client) = (at(FRONTEND, inner, PORT), at(WORLD_PARTY, inner, client));
            assert_eq!(parties(&outcome.packet), (frontend, client));
        }
    }
}

/// To the endpoint whose connection it is, whoever is named.
#[test]
fn an_error_about_an_answer_reaches_the_endpoint_that_gave_it_and_goes_nowhere_else() {
    for (outer, inner) in each() {
        let mut datapath = served(inner);
        let asked =
            sent_on(DB_NODE_PARTY, outer, half(WEB_PARTY, inner), &question(inner).datagram(CLIENT, PORT, 9));
        let answer = arriving(FRONTEND, WORLD_PARTY, inner).datagram(PORT, CLIENT, 1400);
        let kind = if inner == Family::V4 { (3, 4) } else { (2, 0) };
        let error = arriving(PARTNER_PARTY, FRONTEND, inner).error(kind, &answer, 100);
        let error = sent_on(DB_NODE_PARTY, outer, half(WEB_PARTY, inner), &error);
        assert_eq!(datapath.fate(FROM_UPLINK, &error), Reason::NoEndpoint, "nobody has answered");
        assert_eq!(datapath.fate(FROM_UPLINK, &asked), Reason::DeliveredLocal);
        let (reason, outcome) = datapath.reason(FROM_UPLINK, &error);
        assert_eq!(reason, Reason::DeliveredLocal);
        let ((from, to), quoted) = told(&outcome.packet);
        assert_eq!((from, to), (PARTNER_PARTY.address(inner), WEB_PARTY.address(inner)));
        assert_eq!(quoted, (at(WEB_PARTY, inner, PORT), at(WORLD_PARTY, inner, CLIENT)));
    }
}

#[test]
fn only_nodes_are_listened_to_and_only_endpoints_of_this_node_that_the_service_has_get_it() {
    for (outer, inner) in each() {
        let mut datapath = served(inner);
        let packet = question(inner).tcp(CLIENT, PORT, SYN);
        let web = half(WEB_PARTY, inner);
        // What is no node's is the stack's, untouched.
        let strange = sent_on(PARTNER_PARTY, outer, web, &packet);
        let (reason, outcome) = datapath.reason(FROM_UPLINK, &strange);
        assert_eq!((reason, &outcome.packet), (Reason::DeliveredStack, &strange));
        for other in [half(UNTOLD_PARTY, inner), [0, 0]] {
            let sent = sent_on(DB_NODE_PARTY, outer, other, &packet);
            assert_eq!(datapath.fate(FROM_UPLINK, &sent), Reason::NoEndpoint, "{other:?}");
        }
        let nowhere = arriving(WORLD_PARTY, WEB_PARTY, inner).tcp(CLIENT, PORT, SYN);
        assert_eq!(
            datapath.fate(FROM_UPLINK, &sent_on(DB_NODE_PARTY, outer, web, &nowhere)),
            Reason::NoEndpoint
        );
        // Sources are judged as of any packet from outside.
        for liar in [DB_PARTY, HOST_PARTY] {
            let packet = arriving(liar, FRONTEND, inner).tcp(CLIENT, PORT, SYN);
            let (reason, _) = datapath.reason(FROM_UPLINK, &sent_on(DB_NODE_PARTY, outer, web, &packet));
            assert!(matches!(reason, Reason::PoolSourceOutsideOverlay | Reason::Spoofed), "{reason:?}");
        }
        // The kernel makes no shorter ones.
        let least = if outer == Family::V4 { 20 } else { 40 };
        for length in OUTER + least..sent_on(DB_NODE_PARTY, outer, web, &packet).len() - 1 {
            let sent = sent_on(DB_NODE_PARTY, outer, web, &packet);
            let (reason, outcome) = datapath.reason(FROM_UPLINK, &sent[..length]);
            assert!(reason.is_drop() || reason == Reason::DeliveredStack, "{length} {reason:?} {outcome:?}");
        }
        datapath.change(|world| {
            for_all(world, &deny_all());
        });
        let sent = sent_on(DB_NODE_PARTY, outer, web, &question(inner).tcp(CLIENT + 7, PORT, SYN));
        assert_eq!(datapath.fate(FROM_UPLINK, &sent), Reason::PolicyDenied);
    }
}
