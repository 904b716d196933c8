//! A workload in a machine of its own, as a node sees it: behind a tap, with addresses that its operator gave it. The machine is a
//! namespace with another tap, and frames are carried between the two.
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Result;

use super::{
    Home, Node, Party,
    system::ip_batch,
    tap::{Device, Kind, join_taps},
    workload,
};

/// The machine's own device.
const INSIDE: &str = "eth0";
/// What workloads have as their gateways.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];
/// What every way in a fleet has room for.
const MTU_BYTES: u16 = 1400;

static MACHINES: AtomicU8 = AtomicU8::new(1);

/// Makes the machine and its tap, attaches that, and returns when it is ready.
pub(super) fn attach(home: &Home, node: &Node, name: &str, labels: &[(&str, &str)]) -> Result<Party> {
    let namespace = workload::namespace(home, name)?;
    let tap = format!("tap-{name}");
    let outside = Device::make(Kind::Tap, &tap, &node.host().namespace()?)?;
    let inside = Device::make(Kind::Tap, INSIDE, &namespace)?;
    join_taps(outside, inside);
    let mac = format!("02:00:00:00:01:{:02x}", MACHINES.fetch_add(1, Ordering::Relaxed));
    let party = workload::add(node, name, namespace, &["--interface", &tap, "--mac", &mac], labels)?;
    let mut setup = vec![
        "link set lo up".to_owned(),
        format!("link set {INSIDE} address {mac} mtu {MTU_BYTES} addrgenmode none"),
        format!("link set {INSIDE} up"),
    ];
    for address in &party.addresses {
        let gateway = GATEWAYS[usize::from(address.is_ipv6())];
        setup.push(format!("address add {address} dev {INSIDE} nodad"));
        setup.push(format!("route add default via {gateway} dev {INSIDE} onlink"));
    }
    ip_batch(party.namespace.name(), &setup)?;
    Ok(party)
}
