//! Packets that a workload has no business sending: tunnels to a node, as a raw socket can make them.
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;

/// A tunnel that an endpoint may not open to a node address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forged {
    /// UDP to port 8472, with a VXLAN header (RFC 7348) and a packet inside.
    Vxlan,
    /// IP protocol 50.
    Esp,
    /// IP protocol 4, and 41 where the outer packet is IPv6.
    Ipip,
}

const VXLAN_PORT: u16 = 8472;

impl Forged {
    pub const ALL: [Self; 3] = [Self::Vxlan, Self::Esp, Self::Ipip];

    /// Sends some from the namespace to an address.
    pub fn send(self, from: &Namespace, to: IpAddr, packets: u32) -> Result<()> {
        from.within(move || {
            let payload = self.payload()?;
            let socket = self.socket(to)?;
            let port = if self == Self::Vxlan { VXLAN_PORT } else { 0 };
            for _ in 0..packets {
                socket
                    .send_to(&payload, SocketAddr::new(to, port))
                    .with_context(|| format!("send {self:?}"))?;
            }
            Ok(())
        })
    }

    fn socket(self, to: IpAddr) -> Result<UdpSocket> {
        let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let protocol = match self {
            Self::Vxlan => return Ok(UdpSocket::bind(any)?),
            Self::Esp => 50,
            Self::Ipip if to.is_ipv4() => 4,
            Self::Ipip => 41,
        };
        let domain = Domain::for_address(SocketAddr::new(to, 0));
        let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).context("raw socket")?;
        Ok(UdpSocket::from(raw))
    }

    /// What follows the outer IP (and UDP) header.
    fn payload(self) -> Result<Vec<u8>> {
        let inner = inner()?;
        Ok(match self {
            // Flags with a valid VNI, 256: the first identity that an endpoint can have; then an Ethernet frame.
            Self::Vxlan => [&[8, 0, 0, 0, 0, 1, 0, 0][..], &[2; 12], &[8, 0], &inner].concat(),
            // Security parameters index and sequence number, then what would be encrypted.
            Self::Esp => [&256_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), &inner].concat(),
            Self::Ipip => inner,
        })
    }
}

fn inner() -> Result<Vec<u8>> {
    let (source, destination) = (Ipv4Addr::new(10, 200, 0, 1), Ipv4Addr::new(10, 200, 0, 2));
    let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), 64).udp(1000, 2000);
    let mut packet = Vec::new();
    builder.write(&mut packet, b"forged")?;
    Ok(packet)
}
