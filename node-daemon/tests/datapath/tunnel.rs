//! Packets with tunnel metadata, which the kernel's test run can't give: they come to a VXLAN device as other nodes send
//! them, by UDP between addresses of the test's namespace.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use aya::programs::{TcAttachType, tc::qdisc_add_clsact};
use tokio::time::Instant;
use weft_noded::kernel::Datapath as _;
use weft_shared::layout::{Event, Point, Reason, maps::Counter};

use crate::{
    harness::Datapath,
    world::{DB_NODE_PARTY, FAMILIES, Family, HOST_PARTY},
};

const DEVICE: &str = "vx";
const PORT: u16 = 8472;

/// The device of a node, with the program that looks at what comes out of it; and another node's sockets.
pub(crate) struct Tunnel {
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Tunnel {
    /// In the datapath's namespace, where the other node's addresses are this machine's, too.
    pub(crate) fn new(datapath: &mut Datapath) -> Self {
        ip("link set lo up");
        for party in [HOST_PARTY, DB_NODE_PARTY] {
            ip(&format!("addr add {}/32 dev lo", party.v4));
            ip(&format!("addr add {}/128 dev lo nodad", party.v6));
        }
        ip(&format!("link add {DEVICE} type vxlan external dstport {PORT} udp6zerocsumrx"));
        ip(&format!("link set {DEVICE} up"));
        // Kernels before 6.6 attach to it.
        qdisc_add_clsact(DEVICE).unwrap();
        let program = datapath.object.program(Point::FromOverlay.name()).unwrap();
        // It stays as long as the object is there.
        program.attach(DEVICE, TcAttachType::Ingress).unwrap();
        let bind = |family| UdpSocket::bind((DB_NODE_PARTY.address(family), 0)).unwrap();
        Self { v4: bind(Family::V4), v6: bind(Family::V6) }
    }

    /// What became of a packet that the other node sends, by its address of this family.
    pub(crate) fn fate(&self, datapath: &mut Datapath, outer: Family, vni: u32, packet: &[u8]) -> Reason {
        self.judge(datapath, outer, vni, packet).0
    }

    /// With the drop's event, if it was dropped.
    pub(crate) fn judge(
        &self,
        datapath: &mut Datapath,
        outer: Family,
        vni: u32,
        packet: &[u8],
    ) -> (Reason, Option<Event>) {
        while datapath.events.try_next().is_some() {}
        let before = counted(datapath);
        self.send(outer, vni, packet);
        let reason = wait_for("the packet is counted", || {
            let after = counted(datapath);
            after.into_iter().find(|row| !before.contains(row)).map(|(reason, _)| reason)
        });
        let mut event = datapath.events.try_next();
        if reason.is_drop() {
            // Told after it was counted.
            event = event.or_else(|| Some(wait_for("the drop is told", || datapath.events.try_next())));
        }
        datapath.audited = event.filter(|event| event.audit_action != 0);
        (reason, event.filter(|event| event.allowed == 0 && reason.is_drop()))
    }

    /// RFC 7348: eight bytes before the frame, of which one says that there is a VNI, and three are it.
    fn send(&self, outer: Family, vni: u32, packet: &[u8]) {
        let [_, high, middle, low] = vni.to_be_bytes();
        let datagram = [&[8, 0, 0, 0, high, middle, low, 0], packet].concat();
        let socket = if outer == Family::V4 { &self.v4 } else { &self.v6 };
        socket.send_to(&datagram, SocketAddr::new(HOST_PARTY.address(outer), PORT)).unwrap();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2)");
    assert!(status.success(), "ip {arguments}");
}

fn counted(datapath: &mut Datapath) -> Vec<(Reason, Counter)> {
    let all = datapath.object.counters().unwrap();
    all.into_iter()
        .filter(|(point, ..)| *point == Point::FromOverlay)
        .map(|(_, reason, counter)| (reason, counter))
        .collect()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "not before the deadline: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_tunnel_is_known_by_its_outer_source_of_either_family() {
    use crate::{
        packets::arriving,
        world::{DB_IDENTITY, DB_PARTY, WEB_PARTY},
    };
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    for outer in FAMILIES {
        for family in FAMILIES {
            let packet = arriving(DB_PARTY, WEB_PARTY, family).udp(1000, 80);
            assert_eq!(tunnel.fate(&mut datapath, outer, DB_IDENTITY, &packet), Reason::DeliveredLocal);
        }
    }
    datapath.change(|world| world.node_addresses.clear());
    let packet = arriving(DB_PARTY, WEB_PARTY, Family::V4).udp(1000, 80);
    for outer in FAMILIES {
        assert_eq!(tunnel.fate(&mut datapath, outer, DB_IDENTITY, &packet), Reason::UnknownTunnelPeer);
    }
}

/// Spoilt packets through the program.
const PACKETS: u32 = 200_000;

#[test]
fn no_spoilt_packet_of_another_node_passes_where_nothing_is_allowed() {
    use crate::{
        packets::{SYN, arriving},
        spoil::{self, Spoiler},
        world::{API_PARTY, DB_IDENTITY, DB_PARTY, Party, WEB_PARTY, deny_all, for_all},
    };
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &deny_all()));
    let tunnel = Tunnel::new(&mut datapath);
    let ways =
        |from: Party| [WEB_PARTY, API_PARTY].map(|to| FAMILIES.map(|family| arriving(from, to, family)));
    let mut seeds = Vec::new();
    for way in ways(DB_PARTY).into_iter().chain(ways(DB_NODE_PARTY)).flatten() {
        let asked = way.back().datagram(80, 1000, 8);
        seeds.extend([
            way.tcp(1000, 80, SYN),
            way.datagram(1000, 80, 40),
            way.ping(7),
            way.error((3, 3), &asked, 100),
        ]);
        seeds.extend(way.cut(&way.datagram(1000, 80, 40), &[16, 32], 7));
    }
    let (mut spoiler, packets) = (Spoiler::new(seeds), spoil::packets(PACKETS));
    let (mut sent, mut judged) = (0, 0);
    // The kernel itself drops what it can't take out of the tunnel.
    while judged < u64::from(packets) {
        for outer in FAMILIES {
            for vni in [DB_IDENTITY, 0, 1, 0xff_ffff] {
                (0..100).for_each(|_| tunnel.send(outer, vni, spoiler.frame()));
            }
        }
        sent += 800;
        judged = counted(&mut datapath).iter().map(|(_, counter)| counter.packets).sum();
        assert!(sent < 4 * u64::from(packets.max(1000)), "of {sent}, {judged} came");
    }
    for (reason, counter) in counted(&mut datapath) {
        assert!(reason.is_drop(), "{reason:?}: {counter:?}");
    }
    assert_eq!(datapath.object.flows().unwrap(), []);
}
