//! The wires: a fabric with one bridge, and on it every host with an address of both families.
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::{
    home::Home,
    host::Host,
    system::{ip_batch, run, tool},
};

/// The interface of every host that leads to the fabric.
pub const UPLINK: &str = "uplink0";
const FABRIC: &str = "fabric";
const BRIDGE: &str = "bridge0";

/// The place of a host on the fabric: the last octet of its address, and the last group of its IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u8);

impl Place {
    pub const CONTROLLER: Self = Self(1);

    /// Of the host of the world with this number, from 0.
    pub const fn outside(number: u8) -> Self {
        Self(200 + number)
    }

    /// Of the node with this number, from 1.
    pub const fn node(number: u8) -> Self {
        Self(10 + number)
    }

    /// Out of 192.0.2.0/24 (RFC 5737).
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.0)
    }

    /// Out of `2001:db8:77::/64` (RFC 3849).
    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, u16::from(self.0))
    }
}

/// The namespace that stands for the switch between hosts.
#[derive(Debug)]
pub struct Fabric {
    netns: String,
}

impl Fabric {
    pub fn create(home: &Home) -> Result<Self> {
        let netns = home.netns(FABRIC);
        run(tool("ip").args(["netns", "add", &netns]))?;
        // Without snooping and delay the first packet of a test passes like any other.
        let bridge = format!("link add {BRIDGE} type bridge mcast_snooping 0 forward_delay 0");
        ip_batch(&netns, &[bridge, format!("link set {BRIDGE} up")])?;
        Ok(Self { netns })
    }

    /// Makes a host and plugs it in.
    pub fn plug(&self, home: &Home, name: &str, place: Place) -> Result<Host> {
        let host = Host::create(home, name)?;
        ip_batch(
            &self.netns,
            &[
                format!("link add {name} type veth peer name {UPLINK} netns {}", host.netns()),
                format!("link set {name} master {BRIDGE} up"),
            ],
        )?;
        ip_batch(
            host.netns(),
            &[
                format!("address add {}/24 dev {UPLINK}", place.v4()),
                format!("address add {}/64 dev {UPLINK} nodad", place.v6()),
                format!("link set {UPLINK} up"),
            ],
        )?;
        Ok(host)
    }
}
