//! Frames with tags of VLAN 0 (IEEE 802.1Q: a priority alone), which a receiver takes as if there were none.
use std::{net::IpAddr, os::fd::AsRawFd as _};

use anyhow::{Context, Result, bail};
use etherparse::{PacketBuilder, VlanId};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket},
};

use super::Namespace;

/// Sends datagrams with so many tags (0 to 2) by a device of a namespace to the device of the same name of another.
pub fn send_tagged(
    (from, to): (&Namespace, &Namespace),
    device: &'static str,
    (source, destination): (IpAddr, IpAddr),
    port: u16,
    tags: u8,
) -> Result<()> {
    let receiver = mac(to.within(move || link(device))?)?;
    from.within(move || {
        let own = link(device)?;
        let frame = frame(mac(own)?, receiver, (source, destination), port, tags)?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
        bind(socket.as_raw_fd(), &own).context("bind to the device")?;
        match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
            // So says the kernel of a frame that a program dropped on its way out.
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error).context("send a frame"),
        }
    })
}

fn link(device: &str) -> Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|found| found.interface_name == device);
    all.find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("no device {device}"))
}

fn mac(link: LinkAddr) -> Result<[u8; 6]> {
    link.addr().context("the device has no MAC")
}

fn frame(
    source: [u8; 6],
    destination: [u8; 6],
    addresses: (IpAddr, IpAddr),
    port: u16,
    tags: u8,
) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(source, destination);
    let ip = match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, from.octets(), to.octets())?,
            etherparse::Ipv4Extensions::default(),
        ),
        (IpAddr::V6(from), IpAddr::V6(to)) => etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..etherparse::Ipv6Header::default()
            },
            etherparse::Ipv6Extensions::default(),
        ),
        _ => bail!("addresses of two families"),
    };
    let with_ip = match tags {
        0 => ethernet.ip(ip),
        1 => ethernet.single_vlan(VlanId::ZERO).ip(ip),
        _ => ethernet.double_vlan(VlanId::ZERO, VlanId::ZERO).ip(ip),
    };
    let mut frame = Vec::new();
    with_ip.udp(1000, port).write(&mut frame, b"tagged")?;
    Ok(frame)
}
