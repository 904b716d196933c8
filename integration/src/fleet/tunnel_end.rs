//! The end of tunnels of IP in IP (RFC 2003, RFC 2473), as a backend outside of the fleet has it that answers clients itself. Not every
//! kernel has a device for it, so this takes the packets out itself.
use std::{
    fs,
    io::Read as _,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::{
    system::ip_batch,
    tap::{Device, Kind},
};
use crate::traffic::Namespace;

/// The device by which comes what was inside.
const DEVICE: &str = "inside0";
/// Protocols of the outer header: IPv4 in IPv4, IPv6 in IPv6.
const IN_V4: i32 = 4;
const IN_V6: i32 = 41;
/// The largest packet there is.
const PACKET_BYTES_MAX: usize = 65_535;
/// How often a waiting end looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// Takes out what comes to a namespace, until it is dropped.
#[derive(Debug)]
pub struct TunnelEnd {
    end: Arc<AtomicBool>,
}

impl TunnelEnd {
    /// These are the addresses of what is inside; the namespace has them from now on.
    pub fn start(namespace: &Namespace, frontends: &[IpAddr]) -> Result<Self> {
        let device = Arc::new(Device::make(Kind::Tun, DEVICE, namespace)?);
        let mut setup = vec!["link set lo up".to_owned(), format!("link set {DEVICE} up")];
        setup.extend(frontends.iter().map(|address| format!("address add {address} dev lo")));
        ip_batch(namespace.name(), &setup)?;
        // Clients are not where the device leads to.
        namespace.within(|| {
            let filters = ["all", DEVICE].map(|name| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
            filters.iter().try_for_each(|path| fs::write(path, "0").with_context(|| path.clone()))
        })?;
        let end = Arc::new(AtomicBool::new(false));
        for (domain, protocol) in [(Domain::IPV4, IN_V4), (Domain::IPV6, IN_V6)] {
            let outer =
                namespace.within(move || Ok(Socket::new(domain, Type::RAW, Some(protocol.into()))?))?;
            outer.set_read_timeout(Some(LOOK))?;
            let (device, ending) = (Arc::clone(&device), Arc::clone(&end));
            thread::spawn(move || take_out(&outer, domain, &device, &ending));
        }
        Ok(Self { end })
    }
}

impl Drop for TunnelEnd {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn take_out(mut outer: &Socket, domain: Domain, device: &Device, end: &AtomicBool) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    while !end.load(Ordering::Relaxed) {
        let Ok(length) = outer.read(&mut packet) else { continue };
        // Raw sockets of IPv4 alone read the outer header.
        let header = if domain == Domain::IPV4 { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
        // What is no packet the device does not take.
        let _ = device.write(&packet[header.min(length)..length]);
    }
}
