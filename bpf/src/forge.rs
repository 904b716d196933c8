//! What an endpoint must not send, because on the wire it would pass for a node's word.

use weft_shared::layout::{Address, Endpoint, Reason};

use crate::{
    frame::Frame,
    maps,
    parse::{Packet, protocol},
    verdict::has_address,
};

/// The port that IANA gave VXLAN; refused as well as the one in use.
const VXLAN_PORT: u16 = 4789;

/// Encapsulation to a node's address, whatever the flow table says.
#[inline(always)]
pub fn refuse_encapsulation(packet: &Packet) -> Result<(), Reason> {
    let encapsulates = match packet.protocol {
        protocol::UDP => is_vxlan(packet),
        protocol::ESP | protocol::AH | protocol::IPIP | protocol::IPV6 | protocol::GRE => true,
        _ => false,
    };
    if encapsulates && maps::node_slot(&packet.destination).is_some() {
        return Err(Reason::ForgedEncapsulation);
    }
    Ok(())
}

/// Whether a UDP packet goes to a port of VXLAN.
#[inline(always)]
pub fn is_vxlan(packet: &Packet) -> bool {
    let port = u16::from_be(packet.destination_port);
    port == VXLAN_PORT || u32::from(port) == maps::config().vxlan_port
}

/// Broadcast and multicast, by MAC or by address, and destinations that only mean something on the link or the host
/// itself: through them a workload would reach what its node has behind the policy's back.
#[inline(always)]
pub fn refuse_destination(frame: &Frame, packet: &Packet) -> Result<(), Reason> {
    const GROUP_BIT: u8 = 1;
    let [first_of_mac, _] = frame.read::<[u8; 2]>(0)?;
    if is_group(&packet.destination, packet.v6) || first_of_mac & GROUP_BIT != 0 {
        return Err(Reason::Multicast);
    }
    if is_of_the_link(&packet.destination, packet.v6) { Err(Reason::ForbiddenAddress) } else { Ok(()) }
}

/// The first four octets.
#[inline(always)]
fn octets(address: &Address, v6: bool) -> [u8; 4] {
    if v6 { address.words[0].to_ne_bytes() } else { address.words[3].to_ne_bytes() }
}

/// Multicast, and the broadcast of every link.
#[inline(always)]
pub fn is_group(address: &Address, v6: bool) -> bool {
    let octets = octets(address, v6);
    if v6 { octets[0] == 0xff } else { octets[0] & 0xf0 == 0xe0 || octets == [255; 4] }
}

/// What only means something on the link or the host itself.
#[inline(always)]
pub fn is_of_the_link(address: &Address, v6: bool) -> bool {
    let octets = octets(address, v6);
    let words = address.words;
    if v6 {
        let link_local = octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
        let unspecified_or_loopback =
            words[0] == 0 && words[1] == 0 && words[2] == 0 && u32::from_be(words[3]) <= 1;
        link_local || unspecified_or_loopback
    } else {
        octets[0] == 0 || octets[0] == 127
    }
}

/// The source must be the endpoint's own address.
#[inline(always)]
pub fn refuse_source(endpoint: &Endpoint, packet: &Packet) -> Result<(), Reason> {
    if has_address(endpoint, &packet.source) { Ok(()) } else { Err(Reason::Spoofed) }
}
