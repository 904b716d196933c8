//! ICMP and ICMPv6 echo over raw sockets.
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::checksum;

/// Types of request and reply (RFC 792, RFC 4443).
const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);

static PINGERS: AtomicU32 = AtomicU32::new(0);

/// A raw socket that sends echo requests to one address, with an identifier of its own.
#[derive(Debug)]
pub(super) struct Pinger {
    /// A raw socket has the calls of a datagram one.
    socket: UdpSocket,
    to: IpAddr,
    identifier: u16,
}

impl Pinger {
    /// In the namespace of the calling thread. A receive gives up after `patience`.
    pub(super) fn open(to: IpAddr, patience: Duration) -> Result<Self> {
        let protocol = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let domain = Domain::for_address(SocketAddr::new(to, 0));
        let socket = UdpSocket::from(Socket::new(domain, Type::RAW, Some(protocol)).context("raw socket")?);
        socket.set_read_timeout(Some(patience))?;
        // All raw sockets of a namespace see all replies: the low half tells them apart.
        let number = process::id().wrapping_add(PINGERS.fetch_add(1, Ordering::Relaxed));
        let identifier = u16::try_from(number & 0xffff).unwrap_or_default();
        Ok(Self { socket, to, identifier })
    }

    pub(super) fn send(&self, sequence: u16) -> Result<()> {
        let (request, _) = self.types();
        let mut packet = vec![request, 0, 0, 0];
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend([0x77; 48]);
        // The kernel fills in ICMPv6's, which covers addresses.
        if self.to.is_ipv4() {
            let sum = checksum::internet(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send_to(&packet, SocketAddr::new(self.to, 0))?;
        Ok(())
    }

    /// The sequence number of one of our replies; none when nothing came in time.
    pub(super) fn receive(&self) -> Result<Option<u16>> {
        let mut buffer = [0; 2048];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => Ok(self.reply(&buffer[..length], from.ip())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn reply(&self, packet: &[u8], from: IpAddr) -> Option<u16> {
        let (_, reply) = self.types();
        // A raw IPv4 socket also gives the IP header.
        let skip = if self.to.is_ipv4() { usize::from(packet.first()? & 15) * 4 } else { 0 };
        let icmp = packet.get(skip..)?;
        let ours =
            from == self.to && *icmp.first()? == reply && icmp.get(4..6)? == self.identifier.to_be_bytes();
        ours.then(|| icmp.get(6..8).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])))?
    }

    fn types(&self) -> (u8, u8) {
        if self.to.is_ipv4() { V4 } else { V6 }
    }
}
