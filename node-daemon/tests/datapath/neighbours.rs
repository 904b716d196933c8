//! Questions for addresses are answered in place; nothing else of ARP and ND passes.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpNumber, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, icmpv6,
};
use weft_shared::layout::Reason;

use crate::{
    harness::{Datapath, Verdict, from_endpoint, to_endpoint},
    world::{API_PARTY, INIT, WEB, WEB_PARTY, gateway_mac, mac},
};

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 10);

fn arp(operation: ArpOperation, sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender_mac,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    )
    .unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(WEB), [0xff; 6]).arp(packet).write(&mut bytes).unwrap();
    bytes
}

fn question(target: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::REQUEST, mac(WEB), WEB_PARTY.v4, target)
}

#[test]
fn an_arp_question_is_answered_with_the_gateways_mac() {
    let mut datapath = Datapath::new();
    for target in [GATEWAY_V4, API_PARTY.v4, Ipv4Addr::new(8, 8, 8, 8)] {
        let (reason, outcome) = datapath.reason(from_endpoint(WEB), &question(target));
        assert_eq!(reason, Reason::NeighbourAnswered);
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let answer = SlicedPacket::from_ethernet(&outcome.packet).unwrap();
        let Some(NetSlice::Arp(arp)) = answer.net else { panic!("{answer:?}") };
        assert_eq!(arp.operation(), ArpOperation::REPLY);
        assert_eq!(
            (arp.sender_hw_addr(), arp.sender_protocol_addr()),
            (&gateway_mac(WEB)[..], &target.octets()[..])
        );
        assert_eq!(
            (arp.target_hw_addr(), arp.target_protocol_addr()),
            (&mac(WEB)[..], &WEB_PARTY.v4.octets()[..])
        );
        assert_eq!(outcome.packet[..12], [mac(WEB), gateway_mac(WEB)].concat());
    }
}

#[test]
fn the_own_address_is_nobody_elses() {
    let mut datapath = Datapath::new();
    assert_eq!(datapath.fate(from_endpoint(WEB), &question(WEB_PARTY.v4)), Reason::NeighbourIgnored);
    let probe = arp(ArpOperation::REQUEST, mac(WEB), Ipv4Addr::UNSPECIFIED, WEB_PARTY.v4);
    assert_eq!(datapath.fate(from_endpoint(WEB), &probe), Reason::NeighbourIgnored);
    let probe = solicitation(Ipv6Addr::UNSPECIFIED, WEB_PARTY.v6, 255, true);
    assert_eq!(datapath.fate(from_endpoint(WEB), &probe), Reason::NeighbourIgnored);
    let own = solicitation(LINK_LOCAL, WEB_PARTY.v6, 255, true);
    assert_eq!(datapath.fate(from_endpoint(WEB), &own), Reason::NeighbourIgnored);
}

#[test]
fn arp_that_lies_about_its_sender_is_spoofed() {
    let mut datapath = Datapath::new();
    let address = arp(ArpOperation::REQUEST, mac(WEB), API_PARTY.v4, GATEWAY_V4);
    let hardware = arp(ArpOperation::REQUEST, mac(INIT), WEB_PARTY.v4, GATEWAY_V4);
    for packet in [address, hardware] {
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::Spoofed);
    }
}

#[test]
fn arp_answers_nobody_asked_for_are_ignored() {
    let mut datapath = Datapath::new();
    let reply = arp(ArpOperation::REPLY, mac(WEB), WEB_PARTY.v4, GATEWAY_V4);
    assert_eq!(datapath.fate(from_endpoint(WEB), &reply), Reason::NeighbourIgnored);
}

/// A neighbour solicitation, with or without the option that carries the sender's MAC.
fn solicitation(from: Ipv6Addr, target: Ipv6Addr, hops: u8, option: bool) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut body = target.octets().to_vec();
    if option {
        body.extend([1, 1]);
        body.extend(mac(WEB));
    }
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(WEB), [0x33, 0x33, 0xff, a, b, c])
        .ipv6(from.octets(), group.octets(), hops)
        .icmpv6_raw(icmpv6::TYPE_NEIGHBOR_SOLICITATION, 0, [0; 4])
        .write(&mut bytes, &body)
        .unwrap();
    bytes
}

#[test]
fn a_neighbour_solicitation_is_answered_with_an_advertisement() {
    let mut datapath = Datapath::new();
    for (from, target) in [(LINK_LOCAL, GATEWAY_V6), (WEB_PARTY.v6, API_PARTY.v6), (WEB_PARTY.v6, GATEWAY_V6)]
    {
        for option in [true, false] {
            let question = solicitation(from, target, 255, option);
            let (reason, outcome) = datapath.reason(from_endpoint(WEB), &question);
            assert_eq!((reason, outcome.verdict), (Reason::NeighbourAnswered, Verdict::Redirect));
            check_advertisement(&outcome.packet, from, target);
        }
    }
}

fn check_advertisement(bytes: &[u8], to: Ipv6Addr, target: Ipv6Addr) {
    let answer = SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &answer.net else { panic!("{answer:?}") };
    let header = ip.header();
    assert_eq!((header.source_addr(), header.destination_addr()), (target, to));
    assert_eq!((header.hop_limit(), header.next_header()), (255, IpNumber::IPV6_ICMP));
    let Some(TransportSlice::Icmpv6(icmp)) = &answer.transport else { panic!("{answer:?}") };
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (icmpv6::TYPE_NEIGHBOR_ADVERTISEMENT, 0));
    // Router, solicited, override; the target; the option with its MAC.
    let mut expected = vec![0xe0, 0, 0, 0];
    expected.extend(target.octets());
    expected.extend([2, 1]);
    expected.extend(gateway_mac(WEB));
    assert_eq!(icmp.slice()[4..], expected);
    assert_eq!(bytes[..12], [mac(WEB), gateway_mac(WEB)].concat());
}

#[test]
fn other_discovery_is_ignored() {
    let mut datapath = Datapath::new();
    let forwarded = solicitation(LINK_LOCAL, GATEWAY_V6, 254, true);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forwarded), Reason::NeighbourIgnored);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    for kind in [133, 134, 136, 137] {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(mac(WEB), [0x33, 0x33, 0, 0, 0, 1])
            .ipv6(LINK_LOCAL.octets(), all_nodes.octets(), 255)
            .icmpv6_raw(kind, 0, [0; 4])
            .write(&mut packet, &[0; 24])
            .unwrap();
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::NeighbourIgnored, "type {kind}");
    }
}

#[test]
fn a_solicitation_from_a_foreign_address_is_spoofed() {
    let mut datapath = Datapath::new();
    let packet = solicitation(API_PARTY.v6, GATEWAY_V6, 255, true);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::Spoofed);
}

#[test]
fn an_endpoint_that_is_not_open_gets_no_answer() {
    let mut datapath = Datapath::new();
    assert_eq!(datapath.fate(from_endpoint(INIT), &question(GATEWAY_V4)), Reason::EndpointInit);
    let nd = solicitation(LINK_LOCAL, GATEWAY_V6, 255, true);
    assert_eq!(datapath.fate(from_endpoint(INIT), &nd), Reason::EndpointInit);
}

#[test]
fn answers_pass_on_their_way_back_and_the_hosts_questions_do_not() {
    let mut datapath = Datapath::new();
    let (_, answer) = datapath.reason(from_endpoint(WEB), &question(GATEWAY_V4));
    assert_eq!(datapath.fate(to_endpoint(WEB, WEB), &answer.packet), Reason::NeighbourAnswered);
    assert_eq!(datapath.fate(to_endpoint(WEB, 0), &answer.packet), Reason::NeighbourIgnored);
    let (_, answer) = datapath.reason(from_endpoint(WEB), &solicitation(LINK_LOCAL, GATEWAY_V6, 255, true));
    assert_eq!(datapath.fate(to_endpoint(WEB, WEB), &answer.packet), Reason::NeighbourAnswered);
    assert_eq!(datapath.fate(to_endpoint(WEB, 0), &answer.packet), Reason::NeighbourIgnored);
}
