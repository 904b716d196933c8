//! What a workload must not send, whatever the policy says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_shared::layout::Reason;

use crate::{
    harness::{Datapath, from_endpoint},
    packets::{SYN, Way, out_of},
    world::{
        API_PARTY, DB_NODE_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, INIT, INIT_PARTY, NOBODY_PARTY,
        STRANGE, WEB, WEB_PARTY, WORLD_PARTY, mac,
    },
};

/// Every refusal is tried where the policy allows everything.
fn refused(packet: &[u8]) -> Reason {
    Datapath::new().fate(from_endpoint(WEB), packet)
}

#[test]
fn a_foreign_mac_is_spoofed() {
    for family in FAMILIES {
        let way = Way { source_mac: mac(INIT), ..out_of(WEB, WEB_PARTY, API_PARTY, family) };
        assert_eq!(refused(&way.tcp(1000, 80, SYN)), Reason::Spoofed);
    }
}

#[test]
fn a_foreign_address_is_spoofed() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        for foreign in [API_PARTY, DB_PARTY, HOST_PARTY, WORLD_PARTY, NOBODY_PARTY] {
            let way = out_of(WEB, foreign, API_PARTY, family);
            assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1000, 53)), Reason::Spoofed);
        }
    }
}

#[test]
fn an_interface_without_an_endpoint_sends_nothing() {
    let way = out_of(STRANGE, WEB_PARTY, API_PARTY, Family::V4);
    assert_eq!(Datapath::new().fate(from_endpoint(STRANGE), &way.udp(1, 2)), Reason::UnknownEndpoint);
}

#[test]
fn an_endpoint_that_is_not_open_neither_sends_nor_receives() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let out = out_of(INIT, INIT_PARTY, WEB_PARTY, family);
        assert_eq!(datapath.fate(from_endpoint(INIT), &out.tcp(1000, 80, SYN)), Reason::EndpointInit);
        let to = out_of(WEB, WEB_PARTY, INIT_PARTY, family);
        assert_eq!(datapath.fate(from_endpoint(WEB), &to.tcp(1000, 80, SYN)), Reason::EndpointInit);
    }
}

#[test]
fn encapsulation_to_a_nodes_address_is_forged() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        for (node, delivered) in
            [(HOST_PARTY, Reason::DeliveredStack), (DB_NODE_PARTY, Reason::DeliveredOverlay)]
        {
            let way = out_of(WEB, WEB_PARTY, node, family);
            for port in [8472, 4789] {
                assert_eq!(
                    datapath.fate(from_endpoint(WEB), &way.udp(1000, port)),
                    Reason::ForgedEncapsulation
                );
            }
            for protocol in [4, 41, 47, 50, 51] {
                let packet = way.protocol(protocol, &[0; 40]);
                assert_eq!(
                    datapath.fate(from_endpoint(WEB), &packet),
                    Reason::ForgedEncapsulation,
                    "{protocol}"
                );
            }
            assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1000, 53)), delivered);
        }
        let elsewhere = out_of(WEB, WEB_PARTY, WORLD_PARTY, family);
        assert_eq!(datapath.fate(from_endpoint(WEB), &elsewhere.udp(1000, 4789)), Reason::DeliveredStack);
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &elsewhere.protocol(50, &[0; 40])),
            Reason::DeliveredStack
        );
    }
}

/// Next header, length in units of eight bytes beyond the first, padding.
fn extension(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

#[test]
fn extension_headers_hide_no_encapsulation() {
    let mut datapath = Datapath::new();
    let way = out_of(WEB, WEB_PARTY, DB_NODE_PARTY, Family::V6);
    let udp = &way.udp(1000, 8472)[54..];
    for (chain, last) in
        [(vec![60], 17), (vec![0, 60], 17), (vec![0, 60, 60], 17), (vec![60], 50), (vec![0], 4)]
    {
        let mut payload = Vec::new();
        for next in chain[1..].iter().copied().chain([last]) {
            payload.extend(extension(next));
        }
        payload.extend(udp);
        let packet = way.protocol(chain[0], &payload);
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &packet),
            Reason::ForgedEncapsulation,
            "{chain:?} {last}"
        );
    }
}

#[test]
fn too_many_or_misplaced_extension_headers_are_malformed() {
    let mut datapath = Datapath::new();
    let way = out_of(WEB, WEB_PARTY, API_PARTY, Family::V6);
    let many: Vec<u8> = (0..7).flat_map(|_| extension(60)).chain(extension(17)).chain([0; 16]).collect();
    assert_eq!(datapath.fate(from_endpoint(WEB), &way.protocol(60, &many)), Reason::Malformed);
    let misplaced: Vec<u8> = extension(0).into_iter().chain(extension(17)).chain([0; 16]).collect();
    assert_eq!(datapath.fate(from_endpoint(WEB), &way.protocol(60, &misplaced)), Reason::Malformed);
    let too_long = [17, 200, 0, 0, 0, 0, 0, 0];
    assert_eq!(datapath.fate(from_endpoint(WEB), &way.protocol(60, &too_long)), Reason::Malformed);
}

#[test]
fn source_routes_are_forbidden() {
    let mut datapath = Datapath::new();
    let way = out_of(WEB, WEB_PARTY, API_PARTY, Family::V6);
    for kind in [0, 2, 4] {
        let routing: Vec<u8> = [17, 0, kind, 1, 0, 0, 0, 0].into_iter().chain([0; 16]).collect();
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.protocol(43, &routing)), Reason::ForbiddenAddress);
    }
    for option in [131, 137] {
        let packet = with_options(&[1, option, 7, 4, 8, 8, 8, 8]);
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::ForbiddenAddress);
    }
}

/// UDP from web to api, port 53, behind IPv4 options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut packet = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4).udp(1000, 53);
    packet.splice(34..34, options.iter().copied());
    packet[14] = 0x45 + u8::try_from(options.len() / 4).unwrap();
    let total = u16::try_from(packet.len() - 14).unwrap();
    packet[16..18].copy_from_slice(&total.to_be_bytes());
    packet
}

#[test]
fn other_options_pass() {
    let mut datapath = Datapath::new();
    for options in [&[1, 1, 1, 0][..], &[148, 4, 0, 0], &[7, 7, 4, 0, 0, 0, 0, 0]] {
        assert_eq!(datapath.fate(from_endpoint(WEB), &with_options(options)), Reason::DeliveredLocal);
    }
}

fn to(address: impl Into<IpAddr>, family: Family) -> Way {
    Way { to: address.into(), ..out_of(WEB, WEB_PARTY, API_PARTY, family) }
}

#[test]
fn multicast_and_broadcast_are_dropped_with_their_own_reason() {
    let mut datapath = Datapath::new();
    for group in [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 1, 2, 3), Ipv4Addr::BROADCAST] {
        assert_eq!(datapath.fate(from_endpoint(WEB), &to(group, Family::V4).udp(1, 5353)), Reason::Multicast);
    }
    for group in [Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb), Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1)] {
        assert_eq!(datapath.fate(from_endpoint(WEB), &to(group, Family::V6).udp(1, 5353)), Reason::Multicast);
    }
    for family in FAMILIES {
        let way = Way { destination_mac: [0xff; 6], ..out_of(WEB, WEB_PARTY, API_PARTY, family) };
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1, 53)), Reason::Multicast);
    }
}

#[test]
fn mapped_addresses_are_forbidden() {
    let mut datapath = Datapath::new();
    let mapped = API_PARTY.v4.to_ipv6_mapped();
    assert_eq!(
        datapath.fate(from_endpoint(WEB), &to(mapped, Family::V6).udp(1, 53)),
        Reason::ForbiddenAddress
    );
    let from_mapped =
        Way { from: WEB_PARTY.v4.to_ipv6_mapped().into(), ..out_of(WEB, WEB_PARTY, API_PARTY, Family::V6) };
    assert_eq!(datapath.fate(from_endpoint(WEB), &from_mapped.udp(1, 53)), Reason::ForbiddenAddress);
}

#[test]
fn destinations_that_mean_the_link_or_the_host_itself_are_forbidden() {
    let mut datapath = Datapath::new();
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9), Ipv4Addr::UNSPECIFIED] {
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &to(address, Family::V4).udp(1, 53)),
            Reason::ForbiddenAddress
        );
    }
    for address in [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)] {
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &to(address, Family::V6).udp(1, 53)),
            Reason::ForbiddenAddress
        );
    }
}

#[test]
fn what_is_no_ip_is_dropped() {
    let mut datapath = Datapath::new();
    for ethertype in [0x88cc_u16, 0x8847, 0x0027] {
        let mut packet = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4).udp(1, 53);
        packet[12..14].copy_from_slice(&ethertype.to_be_bytes());
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::UnknownEtherType);
    }
}

#[test]
fn truncated_and_inconsistent_packets_are_malformed() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
        let packets = [way.tcp(1000, 80, SYN), way.udp(1000, 53), way.ping(7), way.protocol(132, &[0; 12])];
        for packet in packets {
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
            // The kernel's test run takes no less than the IP header.
            let headers = if family == Family::V4 { 34 } else { 54 };
            for length in headers..packet.len() {
                let reason = datapath.fate(from_endpoint(WEB), &packet[..length]);
                assert_eq!(reason, Reason::Malformed, "{family:?} cut to {length}: {packet:x?}");
            }
        }
    }
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    let mut datapath = Datapath::new();
    let v4 = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4).tcp(1000, 80, SYN);
    let v6 = out_of(WEB, WEB_PARTY, API_PARTY, Family::V6).tcp(1000, 80, SYN);
    let changes: [(&[u8], usize, u8); 9] = [
        (&v4, 14, 0x65), // version
        (&v4, 14, 0x44), // header shorter than it can be
        (&v4, 14, 0x4f), // header longer than the packet
        (&v4, 17, 10),   // total shorter than the header
        (&v4, 46, 0x40), // TCP header shorter than it can be
        (&v4, 46, 0xf0), // TCP header longer than the packet
        (&v6, 14, 0x40), // version
        (&v6, 20, 1),    // ICMP of the other family
        (&v6, 66, 0x10), // TCP header shorter than it can be
    ];
    for (packet, offset, value) in changes {
        let mut packet = packet.to_vec();
        packet[offset] = value;
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &packet),
            Reason::Malformed,
            "byte {offset} = {value:#x}"
        );
    }
}

#[test]
fn a_packet_with_no_hop_left_goes_no_further() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        for (to, expected) in [
            (API_PARTY, Reason::TimeExceeded),
            (DB_PARTY, Reason::TimeExceeded),
            // The stack counts its own hops, and answers.
            (WORLD_PARTY, Reason::DeliveredStack),
        ] {
            for hops in [0, 1] {
                let way = Way { hops, ..out_of(WEB, WEB_PARTY, to, family) };
                assert_eq!(datapath.fate(from_endpoint(WEB), &way.udp(1, 53)), expected);
            }
        }
    }
}
