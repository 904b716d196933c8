//! Services at XDP on uplinks: what is sent on to backends elsewhere, and how it then looks. Packets that come out are taken apart by
//! another implementation (etherparse), checksums and all.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::Arc,
};

use aya::programs::{TestRun as _, TestRunOptions, XdpMode};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use weft_noded::{
    balance::tables::{OwnAddresses, Step},
    kernel::Datapath as _,
};
use weft_shared::{
    balance::table::{Backend, Manner, Sources, Table},
    layout::{
        Config, Point, Reason,
        service::{Frontend, FrontendKey, frontend_flags},
    },
};

use crate::{
    harness::{Datapath, FROM_UPLINK},
    packets::{ACK, SYN, TCP, UDP, Way, arriving},
    spoil::{self, Spoiler},
    world::{
        self, CACHE_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, NOBODY_PARTY, PARTNER_PARTY, Party,
        UPLINK, WEB_PARTY, WORLD_PARTY,
    },
};

pub(crate) const DROP: u32 = 1;
pub(crate) const PASS: u32 = 2;
pub(crate) const TX: u32 = 3;

/// Frontend of the tests.
pub(crate) const VIP: Party = Party {
    v4: std::net::Ipv4Addr::new(198, 18, 0, 10),
    v6: std::net::Ipv6Addr::new(0x2001, 0xdb8, 0x96, 0, 0, 0, 0, 0x10),
};
/// A backend outside of the fleet.
pub(crate) const OUTSIDE: Party = Party {
    v4: std::net::Ipv4Addr::new(192, 0, 2, 77),
    v6: std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77),
};

pub(crate) const UPLINK_MAC: [u8; 6] = [2, 9, 9, 9, 9, 2];
const ROUTER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 1];
const DB_NODE_MAC: [u8; 6] = [2, 9, 9, 9, 9, 3];
const CACHE_NODE_MAC: [u8; 6] = [2, 9, 9, 9, 9, 4];
const OUTSIDE_MAC: [u8; 6] = [2, 9, 9, 9, 9, 5];

pub(crate) const MANNER: Manner = Manner::plain(251);
pub(crate) const DSR: Manner = Manner { dsr: true, ..MANNER };

const CONFIG: Config = Config { overlay_ifindex: world::OVERLAY, ..Config::DEFAULT };

/// Outside of the fleet, on the uplink's link, and nobody has heard of it.
pub(crate) const UNREACHED: Party = Party {
    v4: std::net::Ipv4Addr::new(192, 0, 2, 99),
    v6: std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99),
};
const SCTP: u8 = 132;

/// What came of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Fate {
    pub(crate) verdict: u32,
    /// `None`: nothing was counted.
    pub(crate) reason: Option<Reason>,
    pub(crate) packet: Vec<u8>,
}

pub(crate) struct Uplink {
    pub(crate) datapath: Datapath,
}

impl Uplink {
    /// The uplink is up, with the node's addresses, and knows its neighbours.
    pub(crate) fn new() -> Self {
        Self::with_config(CONFIG)
    }

    pub(crate) fn with_config(config: Config) -> Self {
        let mut uplink = Self { datapath: Datapath::with_config(config) };
        // The other end has nothing of its own to say, which would be counted.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/p{UPLINK}/disable_ipv6"), "1").unwrap();
        for line in [
            "link set lo up".to_owned(),
            format!("link set t{UPLINK} address {} up", text(UPLINK_MAC)),
            format!("link set p{UPLINK} up"),
            format!("address add {}/24 dev t{UPLINK}", HOST_PARTY.v4),
            format!("address add {}/64 dev t{UPLINK} nodad", HOST_PARTY.v6),
        ] {
            ip(&line);
        }
        forward();
        for (address, mac) in [
            ("192.0.2.2", DB_NODE_MAC),
            ("2001:db8::2", DB_NODE_MAC),
            ("2001:db8::3", CACHE_NODE_MAC),
            ("192.0.2.77", OUTSIDE_MAC),
            ("2001:db8::77", OUTSIDE_MAC),
            ("192.0.2.254", ROUTER_MAC),
            ("2001:db8::fe", ROUTER_MAC),
        ] {
            ip(&format!("neighbour add {address} lladdr {} dev t{UPLINK} nud permanent", text(mac)));
        }
        ip("route add default via 192.0.2.254");
        ip("-6 route add default via 2001:db8::fe");
        // A device takes packets of test runs only where a program is on it.
        let program = uplink.datapath.object.uplink_program().unwrap();
        program.attach_to_if_index(UPLINK, XdpMode::Driver).unwrap();
        let own = OwnAddresses { v4: Some(HOST_PARTY.v4), v6: Some(HOST_PARTY.v6) };
        uplink.write(&[Step::OwnAddresses(own)]);
        uplink
    }

    pub(crate) fn write(&mut self, steps: &[Step]) {
        self.datapath.object.write_services(steps).unwrap();
    }

    /// A service of one table.
    pub(crate) fn serve(&mut self, key: FrontendKey, slot: u32, table: &Table) {
        self.set_table(slot, table);
        let frontend = Frontend { inside: slot, outside: slot, flags: 0 };
        self.write(&[Step::Frontend { key, frontend: Some(frontend) }]);
    }

    pub(crate) fn set_table(&mut self, slot: u32, table: &Table) {
        self.write(&[Step::Tables { tables: vec![(slot, Some(Arc::new(table.clone())))] }]);
    }

    /// Runs the program on a packet that comes in by the uplink.
    pub(crate) fn run(&mut self, packet: &[u8]) -> (u32, Vec<u8>) {
        let mut answer = vec![0; packet.len() + 256];
        let context = context(packet.len());
        let program = self.datapath.object.uplink_program().unwrap();
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut answer),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).unwrap();
        answer.truncate(result.data_size_out as usize);
        (result.return_value, answer)
    }

    /// … and gives what the counters say of it.
    pub(crate) fn fate(&mut self, packet: &[u8]) -> Fate {
        let before = self.datapath.object.counters().unwrap();
        let (verdict, answer) = self.run(packet);
        let after = self.datapath.object.counters().unwrap();
        let mut changed = after.into_iter().filter(|row| !before.contains(row));
        let reason = changed.next().map(|(point, reason, _)| {
            assert_eq!(point, Point::XdpUplink);
            reason
        });
        assert_eq!(changed.next(), None);
        assert_eq!(verdict == DROP, reason.is_some_and(Reason::is_drop), "{reason:?}");
        if verdict == PASS {
            assert_eq!(answer, packet, "what goes up is untouched");
        }
        Fate { verdict, reason, packet: answer }
    }

    pub(crate) fn reason(&mut self, packet: &[u8]) -> Option<Reason> {
        self.fate(packet).reason
    }
}

/// `struct xdp_md`: data, its end, no metadata, and the device with its queue.
pub(crate) fn context(length: usize) -> [u8; 24] {
    let words = [0, u32::try_from(length).unwrap(), 0, UPLINK, 0, 0];
    let mut context = [0; 24];
    for (bytes, word) in context.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    context
}

pub(crate) fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip (iproute2)");
    assert!(output.status.success(), "ip {line}: {output:?}");
}

/// As the daemon sets it.
fn forward() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub(crate) fn key(address: IpAddr, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey::address(address.into(), port.to_be(), protocol)
}

pub(crate) fn backend(address: IpAddr, port: u16) -> Backend {
    Backend { address, port, weight: 1, new_flows: true, local: false }
}

pub(crate) fn table(manner: Manner, backends: &[(IpAddr, u16)]) -> Table {
    Table::new(manner, backends.iter().map(|(address, port)| backend(*address, *port)).collect())
}

pub(crate) fn question(family: Family) -> Way {
    arriving(WORLD_PARTY, VIP, family)
}

/// A packet inside another one, as its receiver reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrapped {
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// What tells the receiver which endpoint is meant.
    pub(crate) mark: u16,
    /// From the inner Ethernet-less header on.
    pub(crate) inner: Vec<u8>,
}

/// Takes an IPIP packet apart, and checks all of it.
pub(crate) fn unwrap(packet: &[u8]) -> Wrapped {
    let wrapped = take_apart(packet);
    check(&wrapped.inner);
    wrapped
}

/// The same, of one whose packet inside may be any.
pub(crate) fn take_apart(packet: &[u8]) -> Wrapped {
    let to_mac: [u8; 6] = packet[..6].try_into().unwrap();
    let from_mac: [u8; 6] = packet[6..12].try_into().unwrap();
    let outer = SlicedPacket::from_ethernet(packet).unwrap();
    let (from, to, mark, length, header, inside) = match outer.net.unwrap() {
        NetSlice::Ipv4(outer) => {
            let header = outer.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "the outer header's checksum");
            assert!(header.dont_fragment && !header.more_fragments && header.time_to_live == 64);
            let ends: (IpAddr, IpAddr) = (header.source.into(), header.destination.into());
            (ends.0, ends.1, header.identification, usize::from(header.total_len), 20, header.protocol.0)
        }
        NetSlice::Ipv6(outer) => {
            let header = outer.header().to_header();
            assert_eq!(header.hop_limit, 64);
            let ends: (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
            let length = 40 + usize::from(header.payload_length);
            let mark = u16::try_from(header.flow_label.value()).unwrap();
            (ends.0, ends.1, mark, length, 40, header.next_header.0)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let inner = packet[14 + header..14 + length].to_vec();
    assert_eq!(inside, if inner[0] >> 4 == 4 { 4 } else { 41 }, "the protocol says the inner version");
    Wrapped { macs: (to_mac, from_mac), from, to, mark, inner }
}

/// Checks every checksum of an IP packet.
pub(crate) fn check(packet: &[u8]) {
    let parsed = SlicedPacket::from_ip(packet).unwrap();
    let transport = parsed.transport.unwrap();
    match (parsed.net.unwrap(), transport) {
        (NetSlice::Ipv4(net), transport) => {
            let header = net.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "the IPv4 header's checksum");
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let right = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
                    assert_eq!(tcp.checksum(), right, "TCP's checksum");
                }
                TransportSlice::Udp(udp) if udp.checksum() != 0 => {
                    let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), right, "UDP's checksum");
                }
                _ => {}
            }
        }
        (NetSlice::Ipv6(net), transport) => {
            let header = net.header().to_header();
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let right = tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap();
                    assert_eq!(tcp.checksum(), right, "TCP's checksum");
                }
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), right, "UDP's checksum");
                }
                _ => {}
            }
        }
        (NetSlice::Arp(_), _) => panic!("ARP"),
    }
}

type Make<'a> = &'a dyn Fn(&Way) -> Vec<u8>;

/// The packet as it is one hop further, without its frame's header.
fn hop_later(way: Way, packet: impl Fn(&Way) -> Vec<u8>) -> Vec<u8> {
    packet(&Way { hops: way.hops - 1, ..way })[14..].to_vec()
}

#[test]
fn a_packet_to_a_service_goes_on_inside_another_one_to_its_backends_node_or_to_the_backend() {
    // Where the backend is, the outer destination, the way's MAC, and the lower half of the backend's address.
    let v4 = |last: u8| IpAddr::from([192, 0, 2, last]);
    let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    let cases = [
        (Family::V4, DB_PARTY, v4(2), DB_NODE_MAC, 0x0202),
        (Family::V6, DB_PARTY, v4(2), DB_NODE_MAC, 0x0002),
        (Family::V4, CACHE_PARTY, v6(3), CACHE_NODE_MAC, 0x0302),
        (Family::V6, CACHE_PARTY, v6(3), CACHE_NODE_MAC, 0x0002),
        (Family::V4, OUTSIDE, v4(77), OUTSIDE_MAC, 0x024d),
        (Family::V6, OUTSIDE, v6(0x77), OUTSIDE_MAC, 0x0077),
    ];
    let mut uplink = Uplink::new();
    for (index, (family, party, to, mac, mark)) in (1..).zip(cases) {
        let table = table(DSR, &[(party.address(family), 0)]);
        let port = u16::try_from(80 + index).unwrap();
        for protocol in [TCP, UDP] {
            uplink.serve(key(VIP.address(family), port, protocol), index, &table);
        }
        let own = if to.is_ipv4() { HOST_PARTY.v4.into() } else { HOST_PARTY.v6.into() };
        let way = question(family);
        let packets: [Make<'_>; 4] = [
            &|way| way.tcp(4000, port, SYN),
            &|way| way.tcp(4000, port, ACK),
            &|way| way.udp(4000, port),
            &|way| way.datagram(4001, port, 1201),
        ];
        for (packet, make) in packets.iter().enumerate() {
            let fate = uplink.fate(&make(&way));
            assert_eq!(
                (fate.verdict, fate.reason),
                (TX, Some(Reason::ServiceForwarded)),
                "{family:?} {to} {packet}"
            );
            let expected =
                Wrapped { macs: (mac, UPLINK_MAC), from: own, to, mark, inner: hop_later(way, make) };
            assert_eq!(unwrap(&fate.packet), expected, "{family:?} {to} {packet}");
        }
    }
}

#[test]
fn only_sources_that_the_service_is_for_are_sent_on_and_others_dropped() {
    let mut uplink = Uplink::new();
    for (index, family) in (0..).zip(FAMILIES) {
        let near = |text: &str| -> IpNet { text.parse().unwrap() };
        let (set, outside) = match family {
            Family::V4 => (vec![near("203.0.113.0/29"), near("10.0.0.0/8")], near("203.0.113.5/32")),
            Family::V6 => (vec![near("2001:db8:ffff::/64")], near("2001:db8:ffff::5/128")),
        };
        uplink.write(&[
            Step::Sources { number: 10 * index + 1, set: Some(Arc::new(set.into_iter().collect())) },
            Step::Sources { number: 10 * index + 2, set: Some(Arc::new([outside].into())) },
        ]);
        let backends = [(DB_PARTY.address(family), 0)];
        let slot = index + 1;
        // Port, set, whether those in it are refused; whether the client is let in, and a stranger.
        let cases = [
            (81, 10 * index + 1, false, true, false),
            (82, 10 * index + 1, true, false, true),
            (83, 10 * index + 2, true, false, true),
            (84, 0, false, false, false),
            (85, 0, true, true, true),
            (86, 99, false, false, false),
        ];
        for (port, set, denied, client, stranger) in cases {
            let manner = Manner { sources: Some(Sources { set, denied, node: false }), ..DSR };
            let slot = slot * 100 + u32::from(port);
            uplink.serve(key(VIP.address(family), port, TCP), slot, &table(manner, &backends));
            let strange = arriving(PARTNER_PARTY, VIP, family);
            for (way, admitted) in [(question(family), client), (strange, stranger)] {
                let expected = if admitted { Reason::ServiceForwarded } else { Reason::SourceRefused };
                for packet in [way.tcp(4000, port, SYN), way.tcp(4000, port, ACK), way.tcp(4001, port, ACK)] {
                    assert_eq!(uplink.reason(&packet), Some(expected), "{family:?} {port} {way:?}");
                }
            }
        }
        // Those who are known are looked at again when the ranges change.
        let manner =
            Manner { sources: Some(Sources { set: 10 * index + 1, denied: true, node: false }), ..DSR };
        uplink.set_table(slot * 100 + 81, &table(manner, &backends));
        let known = question(family).tcp(4000, 81, ACK);
        assert_eq!(uplink.reason(&known), Some(Reason::SourceRefused), "{family:?}");
    }
    let read = uplink.datapath.object.read_services().unwrap().sources;
    assert_eq!(
        read.iter().map(|(number, set)| (*number, set.len())).collect::<Vec<_>>(),
        [(1, 2), (2, 1), (11, 1), (12, 1)]
    );
    uplink.write(&[Step::Sources { number: 1, set: None }]);
    assert_eq!(uplink.datapath.object.read_services().unwrap().sources.len(), 3);
}

/// Who a packet is from and to, as etherparse reads it, with its ports. All checksums are right.
pub(crate) fn ends(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    check(&packet[14..]);
    let parsed = SlicedPacket::from_ethernet(packet).unwrap();
    let (from, to): (IpAddr, IpAddr) = match parsed.net.unwrap() {
        NetSlice::Ipv4(net) => (net.header().source_addr().into(), net.header().destination_addr().into()),
        NetSlice::Ipv6(net) => (net.header().source_addr().into(), net.header().destination_addr().into()),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let (source, destination) = match parsed.transport.unwrap() {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        other => panic!("{other:?}"),
    };
    (SocketAddr::new(from, source), SocketAddr::new(to, destination))
}

/// A packet of a way, of a protocol, between these ports.
fn packet_of(protocol: u8, way: &Way, from: u16, to: u16, flags: u8) -> Vec<u8> {
    if protocol == TCP { way.tcp(from, to, flags) } else { way.datagram(from, to, 41) }
}

#[test]
fn a_backend_outside_answers_through_this_node_by_a_port_of_its_own() {
    let mut uplink = Uplink::new();
    for (index, family) in (0..).zip(FAMILIES) {
        let (vip, own, outside) = (VIP.address(family), HOST_PARTY.address(family), OUTSIDE.address(family));
        let table = table(MANNER, &[(outside, 8080)]);
        for protocol in [TCP, UDP] {
            uplink.serve(key(vip, 80, protocol), 1 + index, &table);
            let mut ports = BTreeSet::new();
            for client in 4000..4050 {
                let asked = packet_of(protocol, &question(family), client, 80, SYN);
                let sent = uplink.fate(&asked);
                assert_eq!((sent.verdict, sent.reason), (TX, Some(Reason::ServiceForwarded)), "{family:?}");
                let (from, to) = ends(&sent.packet);
                assert_eq!((from.ip(), to), (own, SocketAddr::new(outside, 8080)));
                assert!((61_000..=65_535).contains(&from.port()), "{from}");
                assert!(ports.insert(from.port()), "{from} is another connection's");
                assert_eq!(sent.packet[..12], [OUTSIDE_MAC, UPLINK_MAC].concat());
                // Its next packets are sent alike, and each answer goes to the client that asked.
                let again = uplink.fate(&packet_of(protocol, &question(family), client, 80, ACK));
                assert_eq!(ends(&again.packet), (from, to));
                let way = arriving(OUTSIDE, HOST_PARTY, family);
                let answer = uplink.fate(&packet_of(protocol, &way, 8080, from.port(), SYN | ACK));
                assert_eq!(answer.reason, Some(Reason::ServiceForwarded), "{family:?}");
                let client = SocketAddr::new(WORLD_PARTY.address(family), client);
                assert_eq!(ends(&answer.packet), (SocketAddr::new(vip, 80), client));
                assert_eq!(answer.packet[..12], [ROUTER_MAC, UPLINK_MAC].concat());
                assert_eq!(answer.packet[if family == Family::V4 { 22 } else { 21 }], way.hops - 1);
            }
            // What nobody asked for is the stack's.
            let way = arriving(PARTNER_PARTY, HOST_PARTY, family);
            let port = *ports.first().unwrap();
            assert_eq!(uplink.reason(&packet_of(protocol, &way, 8080, port, ACK)), None);
        }
        // A datagram without a checksum stays one (IPv4 alone may).
        if family == Family::V4 {
            let mut asked = question(family).datagram(4000, 80, 41);
            asked[40..42].fill(0);
            assert_eq!(uplink.fate(&asked).packet[40..42], [0, 0]);
        }
    }
}

#[test]
fn a_connection_that_finds_no_port_is_dropped_and_ports_of_others_stay_theirs() {
    let config = Config { snat_first_port: 61_000, snat_last_port: 61_003, ..CONFIG };
    let mut uplink = Uplink::with_config(config);
    let family = Family::V4;
    uplink.serve(key(VIP.address(family), 80, TCP), 1, &table(MANNER, &[(OUTSIDE.address(family), 80)]));
    let ask = |uplink: &mut Uplink, client, flags| uplink.fate(&question(family).tcp(client, 80, flags));
    let first: Vec<_> = (1..=4).map(|client| ends(&ask(&mut uplink, client, SYN).packet)).collect();
    assert_eq!(
        first.iter().map(|(from, _)| from.port()).collect::<BTreeSet<_>>(),
        (61_000..=61_003).collect()
    );
    let fifth = ask(&mut uplink, 5, SYN);
    assert_eq!((fifth.verdict, fifth.reason), (DROP, Some(Reason::NoPortLeft)));
    for (client, had) in (1..).zip(first) {
        assert_eq!(ends(&ask(&mut uplink, client, ACK).packet), had);
    }
}

#[test]
fn what_xdp_does_not_do_goes_up_untouched_and_says_why() {
    let mut uplink = Uplink::new();
    for (index, family) in (0..).zip(FAMILIES) {
        let serve = |uplink: &mut Uplink, port: u16, manner, members: Vec<Backend>| {
            let table = Table::new(manner, members);
            for protocol in [TCP, UDP, SCTP] {
                uplink.serve(
                    key(VIP.address(family), port, protocol),
                    100 * (index + 1) + u32::from(port),
                    &table,
                );
            }
        };
        let of = |party: Party| vec![backend(party.address(family), 0)];
        serve(&mut uplink, 1, DSR, vec![Backend { local: true, ..backend(WEB_PARTY.address(family), 0) }]);
        serve(&mut uplink, 2, MANNER, of(DB_PARTY));
        serve(&mut uplink, 3, DSR, of(UNREACHED));
        serve(&mut uplink, 4, DSR, vec![]);
        serve(&mut uplink, 5, DSR, of(DB_PARTY));
        serve(&mut uplink, 6, MANNER, of(OUTSIDE));
        serve(&mut uplink, 7, DSR, of(NOBODY_PARTY));
        let way = question(family);
        let fates = [
            (way.tcp(4000, 1, SYN), Some(Reason::PassedLocalBackend)),
            (way.tcp(4000, 2, SYN), Some(Reason::PassedToTc)),
            (way.tcp(4000, 3, SYN), Some(Reason::PassedNoNeighbour)),
            (way.tcp(4000, 4, SYN), Some(Reason::PassedNoBackend)),
            (way.datagram(4000, 5, 1472), Some(Reason::PassedTooLong)),
            (way.protocol(132, &[16, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]), Some(Reason::PassedToTc)),
            (way.tcp(4000, 7, SYN), Some(Reason::PassedNoNeighbour)),
            (way.tcp(4000, 8, SYN), None),
            (way.ping(7), None),
            (Way { hops: 1, ..way }.tcp(4000, 5, SYN), Some(Reason::TimeExceeded)),
            (Way { destination_mac: [2, 8, 8, 8, 8, 8], ..way }.tcp(4000, 5, SYN), None),
        ];
        for (packet, expected) in fates {
            assert_eq!(uplink.reason(&packet), expected, "{family:?} {packet:x?}");
        }
        let whole = way.datagram(4000, 5, 1000);
        for piece in way.cut(&whole, &[512], 7) {
            assert_eq!(uplink.reason(&piece), Some(Reason::PassedNotPlain), "{family:?}");
        }
        let short = way.tcp(4000, 5, ACK);
        for length in 14..short.len() {
            let expected = Some(Reason::PassedUnread);
            assert_eq!(uplink.reason(&short[..length]), expected, "{family:?} {length} bytes");
        }
        // An address of the fleet's is not for those outside.
        let frontend = Some(Frontend { inside: 1, outside: 1, flags: frontend_flags::CLUSTER });
        uplink.write(&[Step::Frontend { key: key(VIP.address(family), 5, TCP), frontend }]);
        assert_eq!(uplink.reason(&way.tcp(4001, 5, SYN)), None, "{family:?}");
    }
    // Where the node itself is judged, what comes back to it is tc's.
    let packet = question(Family::V4).tcp(4000, 6, SYN);
    assert_eq!(uplink.reason(&packet), Some(Reason::ServiceForwarded));
    uplink.datapath.change(|fleet| fleet.judge_host(world::allow_all(), false));
    assert_eq!(uplink.reason(&packet), Some(Reason::PassedToTc));
    assert_eq!(uplink.reason(&question(Family::V4).tcp(4000, 6, ACK)), Some(Reason::PassedToTc));
}

/// Spoilt packets through the program.
const PACKETS: u32 = 500_000;

/// Whether every checksum of an IP packet that is read is right; `None`: it is none that is.
fn is_sound(packet: &[u8]) -> Option<bool> {
    let parsed = SlicedPacket::from_ip(packet).ok()?;
    let transport = parsed.transport?;
    Some(match parsed.net? {
        NetSlice::Ipv4(net) => {
            let header = net.header().to_header();
            let own = header.header_checksum == header.calc_header_checksum();
            own && match transport {
                TransportSlice::Tcp(tcp) => {
                    tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()) == Ok(tcp.checksum())
                }
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
                    udp.checksum() == 0 || right == Ok(udp.checksum())
                }
                _ => return None,
            }
        }
        NetSlice::Ipv6(net) => {
            let header = net.header().to_header();
            match transport {
                TransportSlice::Tcp(tcp) => {
                    tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()) == Ok(tcp.checksum())
                }
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv6(&header, udp.payload()) == Ok(udp.checksum())
                }
                _ => return None,
            }
        }
        NetSlice::Arp(_) => return None,
    })
}

/// Services of both modes and families, and packets to them.
fn services_and_packets(uplink: &mut Uplink) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (index, family) in (0..).zip(FAMILIES) {
        let fleet = table(DSR, &[(DB_PARTY.address(family), 0), (CACHE_PARTY.address(family), 0)]);
        let outside = table(MANNER, &[(OUTSIDE.address(family), 8080)]);
        for protocol in [TCP, UDP] {
            uplink.serve(key(VIP.address(family), 80, protocol), 10 * index + 1, &fleet);
            uplink.serve(key(VIP.address(family), 81, protocol), 10 * index + 2, &outside);
        }
        for port in [80, 81] {
            let way = question(family);
            seeds.extend([way.tcp(4000, port, SYN), way.tcp(4000, port, ACK), way.datagram(4000, port, 40)]);
        }
        // Answers of connections that are known.
        for protocol in [TCP, UDP] {
            let asked = packet_of(protocol, &question(family), 4000, 81, SYN);
            let own = ends(&uplink.fate(&asked).packet).0;
            let way = arriving(OUTSIDE, HOST_PARTY, family);
            seeds.push(packet_of(protocol, &way, 8080, own.port(), ACK));
        }
    }
    seeds
}

/// Where packets may go at all: nodes and backends with which the tables are, and clients of whom a backend's answer tells.
fn is_named(to: IpAddr) -> bool {
    let nodes: [IpAddr; 2] = ["192.0.2.2".parse().unwrap(), "2001:db8::3".parse().unwrap()];
    let outside = FAMILIES.map(|family| OUTSIDE.address(family));
    nodes.contains(&to) || outside.contains(&to)
}

#[test]
fn no_spoilt_packet_goes_where_no_table_names_anybody_and_none_gets_a_wrong_checksum() {
    let packets = spoil::packets(PACKETS);
    let mut uplink = Uplink::new();
    let mut spoiler = Spoiler::new(services_and_packets(&mut uplink));
    let (mut sent, mut passed, mut sound) = (0_u32, 0_u32, 0_u32);
    let mut clients: BTreeSet<IpAddr> = FAMILIES.map(|family| WORLD_PARTY.address(family)).into();
    for _ in 0..packets {
        let packet = spoiler.frame();
        let (verdict, answer) = uplink.run(packet);
        // Whoever asked may be answered, if what it asked was too long or too old to be sent on, too.
        clients.extend(client_of(packet));
        match verdict {
            PASS => {
                assert_eq!(answer, packet, "what goes up is untouched");
                passed += 1;
            }
            DROP => {}
            TX => {
                sent += 1;
                let was_sound = is_sound(&packet[14..]);
                let (to, inner) = outer_of(&answer);
                assert!(is_named(to) || clients.contains(&to), "{to}: {packet:x?}");
                if was_sound == Some(true) {
                    assert_eq!(is_sound(&answer[inner..]), Some(true), "{packet:x?} {answer:x?}");
                    sound += 1;
                }
            }
            other => panic!("verdict {other}: {packet:x?}"),
        }
    }
    assert!(sent > packets / 20 && passed > packets / 20 && sound > packets / 40, "{sent} {passed} {sound}");
}

/// To whom a packet is sent, and where the packet of the client begins.
fn outer_of(packet: &[u8]) -> (IpAddr, usize) {
    let v4 = packet[14] >> 4 == 4;
    let (to, next, header): (IpAddr, u8, usize) = if v4 {
        (<[u8; 4]>::try_from(&packet[30..34]).unwrap().into(), packet[23], 20)
    } else {
        (<[u8; 16]>::try_from(&packet[38..54]).unwrap().into(), packet[20], 40)
    };
    (to, if next == 4 || next == 41 { 14 + header } else { 14 })
}

/// Who calls the frontend, if the packet does.
fn client_of(packet: &[u8]) -> Option<IpAddr> {
    let (from, to): (IpAddr, IpAddr) = match packet.get(14)? >> 4 {
        4 => (v4_at(packet, 26)?.into(), v4_at(packet, 30)?.into()),
        _ => (v6_at(packet, 22)?.into(), v6_at(packet, 38)?.into()),
    };
    (to == VIP.v4 || to == VIP.v6).then_some(from)
}

fn v4_at(packet: &[u8], place: usize) -> Option<[u8; 4]> {
    packet.get(place..place + 4)?.try_into().ok()
}

fn v6_at(packet: &[u8], place: usize) -> Option<[u8; 16]> {
    packet.get(place..place + 16)?.try_into().ok()
}

/// Also once tc has sent the first of them into the overlay, and knows the connection.
#[test]
fn what_goes_to_endpoints_of_other_nodes_through_this_one_stays_tcs() {
    for family in FAMILIES {
        let mut uplink = Uplink::new();
        uplink.serve(
            key(VIP.address(family), 80, UDP),
            1,
            &table(MANNER, &[(DB_PARTY.address(family), 8080)]),
        );
        let packet = question(family).udp(4000, 80);
        for _ in 0..3 {
            let fate = uplink.fate(&packet);
            assert_eq!((fate.verdict, fate.reason), (PASS, Some(Reason::PassedToTc)), "{family:?}");
            assert_eq!(uplink.datapath.fate(FROM_UPLINK, &packet), Reason::DeliveredOverlay, "{family:?}");
        }
    }
}
