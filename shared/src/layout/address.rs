//! Addresses as the maps hold them: both families in one form.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96` (RFC 4291 §2.5.5.2), in network order. Packets that
/// carry mapped addresses as IPv6 are dropped, so one form never stands for two parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Address {
    /// Network order, most significant word first.
    pub words: [u32; 4],
}

impl Address {
    /// No address.
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };
    /// Bits of an IPv4 address that the mapping puts in front.
    pub const MAPPED_PREFIX_BITS: u32 = 96;
    const MAPPED_WORD: u32 = 0xffff_u32.to_be();

    /// From an IPv4 address as it stands in a packet (network order).
    #[inline(always)]
    pub const fn from_v4(network_order: u32) -> Self {
        Self { words: [0, 0, Self::MAPPED_WORD, network_order] }
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == Self::MAPPED_WORD
    }
}

#[cfg(feature = "std")]
impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        let octets = match address {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        Self { words: bytemuck::cast(octets) }
    }
}

#[cfg(feature = "std")]
impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        core::net::Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(address.words)).to_canonical()
    }
}

/// Key of a longest-prefix-match map of addresses; `bits` counts the mapping's 96 for IPv4. The kernel wants the length
/// first, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PrefixKey {
    pub bits: u32,
    pub address: Address,
}
