//! Services that nobody answers, and connections whose backend has gone.

use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice};
use weft_shared::{balance::table::Table, layout::Reason};

use super::{
    FRONTEND, MANNER, PORT, Place, SLOT, at, backend,
    packets::{parties, sctp},
    served_by, table,
};
use crate::{
    harness::{Datapath, Verdict, from_endpoint, to_endpoint},
    packets::{ACK, FIN, RST, SYN, Way, out_of},
    world::{
        API_PARTY, DB_PARTY, FAMILIES, Family, Party, TAP, TAP_PARTY, WEB, WEB_PARTY, deny_all, for_all,
        gateway_mac, mac,
    },
};

const CLIENT: u16 = 40_000;

const CLIENTS: [(u32, Party); 2] = [(WEB, WEB_PARTY), (TAP, TAP_PARTY)];

/// Without anybody, and with somebody who takes no new connections.
fn nobody(family: Family) -> [Table; 2] {
    let leaving = super::Backend { new_flows: false, ..backend(API_PARTY, family, 0) };
    [Table::new(MANNER, Vec::new()), Table::new(MANNER, vec![leaving])]
}

/// Who calls a service that nobody answers, where policies allow nothing.
struct Caller {
    datapath: Datapath,
    family: Family,
    ifindex: u32,
    party: Party,
}

fn callers() -> impl Iterator<Item = Caller> {
    let cases = FAMILIES
        .into_iter()
        .flat_map(|family| CLIENTS.into_iter().zip(nobody(family)).map(move |case| (family, case)));
    cases.map(|(family, ((ifindex, party), table))| {
        let mut datapath = Datapath::new();
        datapath.change(|tables| for_all(tables, &deny_all()));
        datapath.serve(FRONTEND, family, &table);
        Caller { datapath, family, ifindex, party }
    })
}

/// What the client gets: it is sent back, and the client's own hook lets it pass.
fn refused(datapath: &mut Datapath, ifindex: u32, packet: &[u8]) -> Vec<u8> {
    let (reason, outcome) = datapath.reason(from_endpoint(ifindex), packet);
    assert_eq!((reason, outcome.verdict), (Reason::ServiceRejected, Verdict::Redirect));
    assert_eq!(outcome.packet[..12], [mac(ifindex), gateway_mac(ifindex)].concat());
    assert_eq!(datapath.fate(to_endpoint(ifindex, ifindex), &outcome.packet), Reason::DeliveredLocal);
    outcome.packet
}

fn reset(packet: &[u8], from: Place, to: Place) -> TcpHeader {
    assert_eq!(parties(packet), (from, to));
    match SlicedPacket::from_ethernet(packet).unwrap().transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert!(tcp.rst() && tcp.payload().is_empty());
            tcp.to_header()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_to_nobody_are_reset_whatever_policies_say() {
    for Caller { mut datapath, family, ifindex, party } in callers() {
        let way = out_of(ifindex, party, FRONTEND, family);
        let (frontend, client) = (at(FRONTEND, family, PORT), at(party, family, CLIENT));
        // RFC 9293 §3.5.2: the SYN counts, and is acknowledged.
        let packet = refused(&mut datapath, ifindex, &way.tcp(CLIENT, PORT, SYN));
        let header = reset(&packet, frontend, client);
        assert!(header.ack && header.sequence_number == 0 && header.acknowledgment_number == 1001);
        // In the midst of a connection, from where the client expects it.
        let packet = refused(&mut datapath, ifindex, &way.tcp(CLIENT, PORT, ACK | FIN));
        let header = reset(&packet, frontend, client);
        assert!(!header.ack && header.sequence_number == 1);
        assert_eq!(datapath.object.flows().unwrap().len(), 0);
    }
}

#[test]
fn the_payload_of_what_is_reset_is_acknowledged() {
    let mut datapath = Datapath::new();
    datapath.serve(FRONTEND, Family::V4, &nobody(Family::V4)[0]);
    let mut packet = out_of(WEB, WEB_PARTY, FRONTEND, Family::V4).tcp(CLIENT, PORT, SYN);
    packet.extend([7; 5]);
    packet[16..18].copy_from_slice(&45_u16.to_be_bytes());
    let answer = refused(&mut datapath, WEB, &packet);
    let header = reset(&answer, at(FRONTEND, Family::V4, PORT), at(WEB_PARTY, Family::V4, CLIENT));
    assert_eq!(header.acknowledgment_number, 1000 + 1 + 5);
}

#[test]
fn datagrams_to_nobody_are_told_that_the_port_is_unreachable() {
    for Caller { mut datapath, family, ifindex, party } in callers() {
        let way = out_of(ifindex, party, FRONTEND, family);
        for packet in
            [way.datagram(CLIENT, PORT, 0), way.datagram(CLIENT, PORT, 1000), sctp(&way, CLIENT, PORT, 4)]
        {
            let answer = refused(&mut datapath, ifindex, &packet);
            let (from, to) = parties(&answer);
            assert_eq!((from.0, to.0), (FRONTEND.address(family), party.address(family)));
            let (header, kind) = if family == Family::V4 { (20, [3, 3]) } else { (40, [1, 4]) };
            assert_eq!(answer[14 + header..14 + header + 2], kind);
            assert_eq!(answer[14 + header + 8..], packet[14..14 + header + 8], "quoted as it was sent");
            let sliced = SlicedPacket::from_ethernet(&answer).unwrap();
            match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => assert_eq!(ip.header().ttl(), 64),
                NetSlice::Ipv6(ip) => assert_eq!(ip.header().hop_limit(), 64),
                other @ NetSlice::Arp(_) => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn what_cannot_be_refused_is_dropped() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        datapath.serve(FRONTEND, family, &nobody(family)[0]);
        let way: Way = out_of(WEB, WEB_PARTY, FRONTEND, family);
        let first = &way.cut(&way.datagram(CLIENT, PORT, 64), &[24, 48], 7)[0];
        for packet in [first, &way.tcp(CLIENT, PORT, RST)] {
            assert_eq!(datapath.fate(from_endpoint(WEB), packet), Reason::ServiceUnanswered);
        }
    }
}

#[test]
fn a_connection_whose_backend_has_gone_is_reset_and_others_go_on() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let way = out_of(WEB, WEB_PARTY, FRONTEND, family);
        datapath.run(from_endpoint(WEB), &way.tcp(CLIENT, PORT, SYN));
        datapath.put_table(SLOT, Some(&table(&[API_PARTY, DB_PARTY], family)));
        let outcome = datapath.run(from_endpoint(WEB), &way.tcp(CLIENT, PORT, ACK));
        assert_eq!(parties(&outcome.packet).1.0, API_PARTY.address(family));
        datapath.put_table(SLOT, Some(&table(&[DB_PARTY], family)));
        let packet = refused(&mut datapath, WEB, &way.tcp(CLIENT, PORT, ACK));
        let header = reset(&packet, at(FRONTEND, family, PORT), at(WEB_PARTY, family, CLIENT));
        assert_eq!(header.sequence_number, 1);
        // The service has gone as a whole.
        datapath.put_table(SLOT, None);
        refused(&mut datapath, WEB, &way.tcp(CLIENT, PORT, ACK));
        for protocol in [crate::packets::TCP, crate::packets::UDP] {
            datapath.put_frontend(super::key(FRONTEND, family, protocol), None);
        }
        datapath.put_frontend(super::key(super::TWIN, family, crate::packets::TCP), Some(SLOT));
        refused(&mut datapath, WEB, &way.tcp(CLIENT, PORT, ACK));
    }
}
