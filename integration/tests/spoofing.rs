//! Promise: an endpoint speaks with its own addresses only.
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use weft_integration::{
    fleet::{Party, scenario},
    limits::READY,
    traffic::UdpServer,
    wait,
};

const PACKETS: u64 = 5;
const PORT: u16 = 1000;

/// Sends datagrams with this source out of the party's namespace.
fn send_as(party: &Party, source: IpAddr, to: SocketAddr) -> Result<()> {
    party.namespace.within(move || {
        let socket = UdpSocket::bind((source, 0)).with_context(|| format!("bind {source}"))?;
        for _ in 0..PACKETS {
            socket.send_to(b"spoofed", to)?;
        }
        Ok(())
    })
}

#[test]
fn a_source_address_that_is_another_endpoints_or_nobodys_is_dropped_and_counted_as_spoofed() -> Result<()> {
    scenario("spoof", 2, |fleet| {
        let liar = fleet.attach(1, "liar", &[("app", "liar")])?;
        let near = fleet.attach(1, "near", &[("app", "near")])?;
        let server = fleet.attach(2, "server", &[("app", "server")])?;
        let received = UdpServer::start(&server.namespace, PORT)?;
        for family in [4, 6] {
            let to = (server.address(family)?, PORT).into();
            // With its own address first: the way is open, and the gateway's neighbour entry is there.
            let honest = received.received() + PACKETS;
            send_as(&liar, liar.address(family)?, to)?;
            wait::until_true("honest packets arrive", READY, || Ok(received.received() == honest))?;
            let nobodys: IpAddr =
                if family == 4 { "198.51.100.9".parse()? } else { "2001:db8:99::9".parse()? };
            for source in [near.address(family)?, nobodys] {
                let prefix = if family == 4 { "/32" } else { "/128" };
                fleet.ip(&liar.namespace, &format!("address add {source}{prefix} dev eth0 nodad"))?;
                let expected = fleet.node(1).dropped("spoofed")? + PACKETS;
                send_as(&liar, source, to)?;
                wait::until_true(&format!("packets from {source} are counted as spoofed"), READY, || {
                    Ok(fleet.node(1).dropped("spoofed")? >= expected)
                })?;
            }
            assert_eq!(received.received(), honest, "spoofed packets arrived");
        }
        Ok(())
    })
}
