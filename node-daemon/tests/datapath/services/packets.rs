//! Takes packets apart by etherparse, and says whether their checksums are right.

use std::net::IpAddr;

use etherparse::{Icmpv4Slice, Icmpv6Slice, NetSlice, SlicedPacket, TransportSlice};

use super::{Place, SCTP};
use crate::packets::Way;

/// Who sends to whom, by a packet whose checksums are all right.
pub(super) fn parties(packet: &[u8]) -> (Place, Place) {
    let (source, destination) = addresses(packet);
    let [from, to] = sound(packet);
    ((source, from), (destination, to))
}

pub(super) fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    match SlicedPacket::from_ethernet(packet).expect("a packet").net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header {packet:02x?}");
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other @ NetSlice::Arp(_) => panic!("{other:?}"),
    }
}

/// The ports, of what has some.
fn sound(packet: &[u8]) -> [u16; 2] {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let (source, destination) = addresses(packet);
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let header = tcp.to_header();
            let sum = match (source, destination) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.calc_checksum_ipv4_raw(from.octets(), to.octets(), tcp.payload())
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    header.calc_checksum_ipv6_raw(from.octets(), to.octets(), tcp.payload())
                }
                _ => panic!("two families"),
            };
            assert_eq!(header.checksum, sum.unwrap(), "TCP {packet:02x?}");
            [header.source_port, header.destination_port]
        }
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            if header.checksum == 0 {
                assert!(source.is_ipv4(), "IPv6 wants a checksum");
                return [header.source_port, header.destination_port];
            }
            let sum = match (source, destination) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.calc_checksum_ipv4_raw(from.octets(), to.octets(), udp.payload())
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    header.calc_checksum_ipv6_raw(from.octets(), to.octets(), udp.payload())
                }
                _ => panic!("two families"),
            };
            assert_eq!(header.checksum, sum.unwrap(), "UDP {packet:02x?}");
            [header.source_port, header.destination_port]
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert!(Icmpv4Slice::from_slice(icmp.slice()).is_ok());
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), sum, "ICMP {packet:02x?}");
            [0; 2]
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            assert!(Icmpv6Slice::from_slice(icmp.slice()).is_ok());
            let (IpAddr::V6(from), IpAddr::V6(to)) = (source, destination) else { panic!("IPv6") };
            let sum = icmp.icmp_type().calc_checksum(from.octets(), to.octets(), icmp.payload());
            assert_eq!(icmp.checksum(), sum.unwrap(), "ICMPv6 {packet:02x?}");
            [0; 2]
        }
        None => {
            let payload = payload(&sliced);
            assert_eq!(payload[8..12], checksum_of_sctp(payload), "SCTP {packet:02x?}");
            [u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]])]
        }
    }
}

fn payload<'a>(sliced: &'a SlicedPacket<'_>) -> &'a [u8] {
    sliced.net.as_ref().unwrap().ip_payload_ref().unwrap().payload
}

/// SCTP with a body of that many bytes.
pub(super) fn sctp(way: &Way, source: u16, destination: u16, bytes: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([1, 2, 3, 4, 0, 0, 0, 0]);
    packet.extend((0..bytes).map(|place| place.to_le_bytes()[0]));
    let checksum = checksum_of_sctp(&packet);
    packet[8..12].copy_from_slice(&checksum);
    way.protocol(SCTP, &packet)
}

/// `CRC32c` as RFC 9260 has it: bit by bit, with the field zero.
fn checksum_of_sctp(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (place, byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&place) { 0 } else { *byte });
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

#[test]
fn the_checksum_of_sctp_is_the_known_one() {
    // CRC32c of "123456789"; here with a field of zeros in the midst, which is not summed up as such.
    assert_eq!(checksum_of_sctp(b"12345678"), (!crc(b"12345678")).to_le_bytes());
    assert_eq!(!crc(b"123456789"), 0xe306_9283);
}

#[cfg(test)]
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}
