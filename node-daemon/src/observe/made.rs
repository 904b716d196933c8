//! A made packet: the first of a flow, as its sender would send it. What is in it beyond what policy looks at is zero;
//! checksums too, because the programs don't verify them.

use std::net::IpAddr;

/// The flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP, UDP, SCTP: destination port; ICMP: type * 256 + code.
    pub port: u16,
    /// TCP, UDP, SCTP.
    pub source_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MadeError {
    #[error("{0} and {1} are of different families")]
    Families(IpAddr, IpAddr),
    #[error("protocol {protocol} is the other family's ICMP")]
    Icmp { protocol: u8 },
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
/// Of the ports that systems give to clients (RFC 6335), for whoever asks without a certain one in mind.
pub const SOURCE_PORT: u16 = 49_152;
const HOPS: u8 = 64;
const ETHERNET: usize = 14;

/// The frame.
pub fn packet(made: &Made, source_mac: [u8; 6], destination_mac: [u8; 6]) -> Result<Vec<u8>, MadeError> {
    let payload = transport(made);
    let mut frame = [destination_mac, source_mac].concat();
    match (made.source, made.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) if made.protocol == ICMPV6 => {
            return Err(MadeError::Icmp { protocol: ICMPV6 });
        }
        (IpAddr::V6(_), IpAddr::V6(_)) if made.protocol == ICMP => {
            return Err(MadeError::Icmp { protocol: ICMP });
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(length(20 + payload.len()));
            frame.extend([0, 0, 0, 0, HOPS, made.protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length(payload.len()));
            frame.extend([made.protocol, HOPS]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => return Err(MadeError::Families(source, destination)),
    }
    frame.extend(payload);
    Ok(frame)
}

/// Where a frame goes that was [`packet`]'s and was changed since: the address, and the port of a protocol that has ports.
pub fn destination(frame: &[u8]) -> Option<(IpAddr, u16)> {
    let octets = |from: usize, count: usize| frame.get(from..from + count);
    let port = |at| Some(u16::from_be_bytes(octets(at, 2)?.try_into().ok()?));
    match octets(12, 2)? {
        [0x08, 0x00] => {
            Some((<[u8; 4]>::try_from(octets(ETHERNET + 16, 4)?).ok()?.into(), port(ETHERNET + 22)?))
        }
        [0x86, 0xdd] => {
            Some((<[u8; 16]>::try_from(octets(ETHERNET + 24, 16)?).ok()?.into(), port(ETHERNET + 42)?))
        }
        _ => None,
    }
}

/// Of some tens of bytes.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

fn transport(made: &Made) -> Vec<u8> {
    const SYN: u8 = 2;
    let ports = [made.source_port.to_be_bytes(), made.port.to_be_bytes()].concat();
    match made.protocol {
        // Five words of header.
        TCP => [&ports[..], &[0; 8], &[0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        UDP => [&ports[..], &length(8), &[0; 2]].concat(),
        SCTP => [&ports[..], &[0; 8]].concat(),
        ICMP | ICMPV6 => [&made.port.to_be_bytes()[..], &[0; 6]].concat(),
        _ => vec![0; 32],
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn made(source: &str, destination: &str, protocol: u8, port: u16) -> Made {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Made { source, destination, protocol, port, source_port: SOURCE_PORT }
    }

    #[test]
    fn a_packet_is_whole_and_of_the_flow() {
        for (source, destination) in [("10.200.1.2", "203.0.113.5"), ("fd00:77:0:1::2", "2001:db8::5")] {
            for (protocol, port) in [(TCP, 443), (UDP, 53)] {
                let made = made(source, destination, protocol, port);
                let frame = packet(&made, [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).unwrap();
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                let (from, to) = match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        (ip.header().source_addr().into(), ip.header().destination_addr().into())
                    }
                    NetSlice::Ipv6(ip) => {
                        (ip.header().source_addr().into(), ip.header().destination_addr().into())
                    }
                    NetSlice::Arp(_) => panic!("no ARP"),
                };
                assert_eq!((made.source, made.destination), (from, to));
                let found = match sliced.transport.unwrap() {
                    TransportSlice::Tcp(tcp) => {
                        assert!(tcp.syn() && !tcp.ack());
                        tcp.destination_port()
                    }
                    TransportSlice::Udp(udp) => udp.destination_port(),
                    other => panic!("{other:?}"),
                };
                assert_eq!(found, port);
                assert_eq!(super::destination(&frame), Some((made.destination, port)));
            }
        }
    }

    #[test]
    fn what_no_packet_can_be_is_refused() {
        let error = |made| packet(&made, [0; 6], [0; 6]).unwrap_err().to_string();
        assert_eq!(
            error(made("10.0.0.1", "fd00::1", TCP, 1)),
            "10.0.0.1 and fd00::1 are of different families"
        );
        assert_eq!(error(made("10.0.0.1", "10.0.0.2", ICMPV6, 0)), "protocol 58 is the other family's ICMP");
        assert_eq!(error(made("fd00::1", "fd00::2", ICMP, 0)), "protocol 1 is the other family's ICMP");
    }
}
