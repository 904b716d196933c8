//! Services whose backends answer clients themselves: what XDP can't send on, tc does, inside other packets; who sends what is too long is
//! told; and errors about answers reach the backend. Packets that come out are taken apart by another implementation (etherparse).

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use weft_noded::balance::tables::Step;
use weft_shared::{
    balance::table::{Backend, Manner, Sources, Table},
    layout::{Reason, service::Frontend},
};

use super::packets::parties;
use crate::{
    forwarding::{
        DSR, MANNER, OUTSIDE, PASS, UNREACHED, Uplink, VIP, Wrapped, backend, ip, key, question, table,
        take_apart, unwrap,
    },
    harness::{FROM_UPLINK, Verdict},
    packets::{ACK, SYN, TCP, UDP, Way, arriving},
    spoil::{self, Spoiler},
    world::{
        CACHE_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, PARTNER_PARTY, Party, STRANGE, UPLINK,
        WEB_PARTY, WORLD_PARTY,
    },
};

const PORT: u16 = 80;
const CLIENT: u16 = 4000;
/// Of the service: the first that is tried.
const SLOT: u32 = 1;
/// What an error quotes.
const QUOTED: usize = 128;

/// A service of these backends, which XDP could not send all packets to.
fn serving(family: Family, backends: &[Party]) -> Uplink {
    let mut uplink = Uplink::new();
    let backends: Vec<_> = backends.iter().map(|party| (party.address(family), 0)).collect();
    for protocol in [TCP, UDP] {
        uplink.serve(key(VIP.address(family), PORT, protocol), SLOT, &table(DSR, &backends));
    }
    uplink
}

/// What tc makes of a packet that XDP passes for this reason.
fn passed_on(uplink: &mut Uplink, reason: Option<Reason>, packet: &[u8]) -> (Reason, Vec<u8>) {
    let fate = uplink.fate(packet);
    assert_eq!((fate.verdict, fate.reason), (PASS, reason));
    let (reason, outcome) = uplink.datapath.reason(FROM_UPLINK, packet);
    (reason, outcome.packet)
}

/// As it is one hop further, without its frame's header.
fn hop_later(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet[14..].to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 0xf) * 4;
        let sum: u32 =
            packet[..header].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet[7] -= 1;
    }
    packet
}

/// Inside another one from this node to there; who puts it on the wire gives it other MACs.
fn around(packet: &[u8], to: IpAddr, mark: u16) -> Wrapped {
    let macs = (packet[..6].try_into().unwrap(), packet[6..12].try_into().unwrap());
    let from = if to.is_ipv4() { HOST_PARTY.v4.into() } else { HOST_PARTY.v6.into() };
    Wrapped { macs, from, to, mark, inner: hop_later(packet) }
}

fn lower_half(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(v4) => u16::from_be_bytes([v4.octets()[2], v4.octets()[3]]),
        IpAddr::V6(v6) => v6.segments()[7],
    }
}

#[test]
fn a_backend_behind_a_neighbour_that_is_not_resolved_or_by_another_device_is_reached() {
    for family in FAMILIES {
        for party in [UNREACHED, PARTNER_PARTY] {
            let to = party.address(family);
            let mut uplink = serving(family, &[party]);
            ip(&format!("link set t{STRANGE} up"));
            ip(&format!("link set p{STRANGE} up"));
            ip(&format!("route add {} dev t{STRANGE}", PARTNER_PARTY.address(family)));
            let way = question(family);
            for packet in [
                way.tcp(CLIENT, PORT, SYN),
                way.tcp(CLIENT, PORT, ACK),
                way.udp(CLIENT, PORT),
                way.datagram(CLIENT, PORT, 1201),
            ] {
                for _ in 0..2 {
                    let (reason, sent) = passed_on(&mut uplink, Some(Reason::PassedNoNeighbour), &packet);
                    assert_eq!(reason, Reason::ServiceForwarded, "{family:?} {to}");
                    assert_eq!(unwrap(&sent), around(&packet, to, lower_half(to)), "{family:?} {to}");
                }
            }
            // A row for each connection, and none for answers, which don't come here.
            assert_eq!(uplink.datapath.object.connections().unwrap().len(), 2);
            let last = Way { hops: 1, ..way };
            assert_eq!(uplink.datapath.fate(FROM_UPLINK, &last.udp(CLIENT, PORT)), Reason::TimeExceeded);
            // What was flooded to all devices is another's.
            let others = Way { destination_mac: [2, 8, 8, 8, 8, 8], ..way }.udp(CLIENT, PORT);
            let (reason, outcome) = uplink.datapath.reason(FROM_UPLINK, &others);
            assert_eq!((reason, outcome.packet), (Reason::DeliveredStack, others));
        }
    }
}

#[test]
fn tc_and_xdp_send_a_connection_to_the_same_backend_whoever_sees_it_first() {
    for family in FAMILIES {
        let backends = [DB_PARTY, OUTSIDE, CACHE_PARTY];
        let (mut one, mut two) = (serving(family, &backends), serving(family, &backends));
        let mut met = std::collections::BTreeSet::new();
        for client in 4000..4016 {
            let packet = question(family).udp(client, PORT);
            let at_xdp = unwrap(&one.fate(&packet).packet);
            let at_tc = unwrap(&two.datapath.run(FROM_UPLINK, &packet).packet);
            assert_eq!((at_tc.to, at_tc.mark, &at_tc.inner), (at_xdp.to, at_xdp.mark, &at_xdp.inner));
            met.insert(at_tc.to);
            // Each goes on by what the other has remembered, also when the table has become another one.
            let rows = two.datapath.object.connections().unwrap().len();
            assert_eq!(unwrap(&two.fate(&packet).packet).to, at_tc.to);
            assert_eq!(unwrap(&one.datapath.run(FROM_UPLINK, &packet).packet).to, at_tc.to);
            assert_eq!(two.datapath.object.connections().unwrap().len(), rows);
        }
        assert!(met.len() > 1, "{met:?}");
    }
}

/// An IPv4 option that says nothing, and an IPv6 hop-by-hop header that says nothing.
fn with_options(family: Family, packet: &[u8]) -> Vec<u8> {
    let mut long = packet.to_vec();
    match family {
        Family::V4 => {
            long.splice(34..34, [1, 1, 1, 0]);
            let length = u16::try_from(long.len() - 14).unwrap();
            long[14] = 0x46;
            long[16..18].copy_from_slice(&length.to_be_bytes());
            // One hop more, of which one is taken: the header's checksum is then right.
            long[22] += 1;
            let right = hop_later(&long);
            long[14..].copy_from_slice(&right);
        }
        Family::V6 => {
            long.splice(54..54, [long[20], 0, 1, 4, 0, 0, 0, 0]);
            let length = u16::try_from(long.len() - 54).unwrap();
            long[18..20].copy_from_slice(&length.to_be_bytes());
            long[20] = 0;
        }
    }
    long
}

#[test]
fn packets_with_options_and_fragments_go_on_as_well() {
    for family in FAMILIES {
        for party in [DB_PARTY, CACHE_PARTY, OUTSIDE] {
            let mut uplink = serving(family, &[party]);
            let way = question(family);
            let packet = with_options(family, &way.tcp(CLIENT, PORT, SYN));
            let (reason, sent) = passed_on(&mut uplink, Some(Reason::PassedNotPlain), &packet);
            assert_eq!(reason, Reason::ServiceForwarded);
            let wrapped = unwrap(&sent);
            assert_eq!(wrapped, around(&packet, wrapped.to, lower_half(party.address(family))));

            let whole = way.datagram(CLIENT, PORT, 1000);
            let mut pieces = Vec::new();
            for piece in way.cut(&whole, &[512, 800], 7) {
                // As a client sends them: with a right checksum.
                let piece = match family {
                    Family::V4 => {
                        let mut longer = piece.clone();
                        longer[22] += 1;
                        [&piece[..14], &hop_later(&longer)].concat()
                    }
                    Family::V6 => piece,
                };
                let (reason, sent) = passed_on(&mut uplink, Some(Reason::PassedNotPlain), &piece);
                assert_eq!(reason, Reason::ServiceForwarded, "{family:?}");
                let sent = take_apart(&sent);
                assert_eq!(sent, around(&piece, sent.to, lower_half(party.address(family))));
                pieces.push(sent.to);
            }
            assert!(pieces.len() == 3 && pieces.iter().all(|to| *to == wrapped.to), "{pieces:?}");
            // Whose first did not come by here, nobody can place.
            let strange = &way.cut(&whole, &[512], 8)[1];
            let (reason, _) = uplink.datapath.reason(FROM_UPLINK, strange);
            assert_eq!(reason, Reason::DeliveredStack, "as without services");
        }
    }
}

/// What an error says: the bytes that fit, and what it quotes. Its checksums are right, and it goes from the frontend to the client.
fn told(family: Family, error: &[u8]) -> (u32, Vec<u8>) {
    let ((from, _), (to, _)) = parties(error);
    assert_eq!((from, to), (VIP.address(family), WORLD_PARTY.address(family)));
    let sliced = SlicedPacket::from_ethernet(error).unwrap();
    match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            assert!(ip.header().ttl() == 64 && ip.header().dont_fragment());
            let Icmpv4Type::DestinationUnreachable(
                etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
            ) = icmp.icmp_type()
            else {
                panic!("{:?}", icmp.icmp_type())
            };
            (next_hop_mtu.into(), icmp.payload().to_vec())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            assert_eq!(ip.header().hop_limit(), 64);
            let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { panic!("{:?}", icmp.icmp_type()) };
            (mtu, icmp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_sends_what_is_too_long_is_told_what_fits() {
    for family in FAMILIES {
        for (party, fits) in [(DB_PARTY, 1480), (CACHE_PARTY, 1460)] {
            let mut uplink = serving(family, &[party]);
            let way = question(family);
            let header = if family == Family::V4 { 28 } else { 48 };
            // What just fits is sent on at XDP; with one byte more it is answered.
            let most = usize::try_from(fits).unwrap() - header;
            assert_eq!(uplink.reason(&way.datagram(CLIENT, PORT, most)), Some(Reason::ServiceForwarded));
            let long = way.datagram(CLIENT, PORT, most + 1);
            let mut may_be_cut = long.clone();
            if family == Family::V4 {
                // Without DF: the checksum grows by as much as the bit takes.
                assert_eq!(may_be_cut[20], 0x40);
                may_be_cut[20] = 0;
                may_be_cut[22] += 1;
                may_be_cut = [&long[..14], &hop_later(&may_be_cut)].concat();
            }
            let options = with_options(family, &long);
            let first = way.cut(&way.datagram(CLIENT, PORT, 2000), &[1472], 9).remove(0);
            for (packet, why) in [
                (&long, Reason::PassedTooLong),
                (&may_be_cut, Reason::PassedTooLong),
                (&options, Reason::PassedNotPlain),
                (&first, Reason::PassedNotPlain),
            ] {
                let (reason, error) = passed_on(&mut uplink, Some(why), packet);
                assert_eq!(reason, Reason::ServiceToldLength, "{family:?} {party:?}");
                assert_eq!(error[..6], packet[6..12]);
                assert_eq!(error[6..12], packet[..6]);
                assert_eq!(told(family, &error), (fits, packet[14..14 + QUOTED].to_vec()));
            }
            // A way that is shorter than its device.
            let node = if party.v4 == DB_PARTY.v4 { "192.0.2.2/32" } else { "2001:db8::3/128" };
            ip(&format!("route add {node} dev t{UPLINK} mtu lock 1400"));
            // Of ways that XDP remembers it asks again.
            uplink.datapath.change(|_| ());
            let (_, error) =
                passed_on(&mut uplink, Some(Reason::PassedTooLong), &way.datagram(9, PORT, 1400));
            assert_eq!(told(family, &error).0, fits - 100);
        }
    }
}

#[test]
fn nobody_is_told_too_often_or_of_what_can_not_be_shorter() {
    for family in FAMILIES {
        let mut uplink = serving(family, &[DB_PARTY]);
        let way = question(family);
        let long = way.datagram(CLIENT, PORT, 1470);
        let first_dropped = (0..100_000)
            .find(|_| uplink.datapath.run(FROM_UPLINK, &long).verdict == Verdict::Shot)
            .expect("there is a limit");
        assert!(first_dropped >= 1000, "{first_dropped}");
        assert_eq!(uplink.datapath.fate(FROM_UPLINK, &long), Reason::ServiceTooLong);

        // Later fragments; and who is nobody in particular.
        let mut uplink = serving(family, &[DB_PARTY]);
        let pieces = way.cut(&way.datagram(CLIENT, PORT, 2960), &[1400, 2800], 9);
        assert_eq!(uplink.datapath.fate(FROM_UPLINK, &pieces[0]), Reason::ServiceForwarded);
        ip(&format!("link set t{UPLINK} mtu 1300"));
        assert_eq!(uplink.datapath.fate(FROM_UPLINK, &pieces[1]), Reason::ServiceTooLong);
        assert_eq!(uplink.datapath.fate(FROM_UPLINK, &pieces[2]), Reason::ServiceForwarded);
        let group = Party { v4: [224, 0, 0, 5].into(), v6: "ff02::5".parse().unwrap() };
        let packet = arriving(group, VIP, family).datagram(CLIENT, PORT, 1400);
        assert_eq!(uplink.datapath.fate(FROM_UPLINK, &packet), Reason::ServiceTooLong);
        // Of IPv6 every way must take 1280 bytes (RFC 8200), and no sender sends shorter ones for our header's sake.
        if family == Family::V6 {
            let least = way.datagram(CLIENT, PORT, 1280 - 40 - 8);
            let fate = uplink.datapath.fate(FROM_UPLINK, &least);
            assert_eq!(fate, Reason::ServiceForwarded, "1,300 bytes with the header");
            ip(&format!("link set t{UPLINK} mtu 1290"));
            assert_eq!(uplink.datapath.fate(FROM_UPLINK, &least), Reason::ServiceTooLong);
            let longer = way.datagram(CLIENT, PORT, 1280 - 40 - 7);
            assert_eq!(told(family, &uplink.datapath.run(FROM_UPLINK, &longer).packet).0, 1280);
        }
    }
}

const fn kinds(family: Family) -> [(u8, u8); 3] {
    match family {
        Family::V4 => [(3, 4), (3, 1), (11, 0)],
        Family::V6 => [(2, 0), (1, 3), (3, 0)],
    }
}

/// An error of a router's about what the frontend's backend sent a client.
fn error_about(family: Family, kind: (u8, u8), client: u16, protocol: u8) -> Vec<u8> {
    let answered = arriving(VIP, WORLD_PARTY, family);
    let answer =
        if protocol == TCP { answered.tcp(PORT, client, ACK) } else { answered.datagram(PORT, client, 1400) };
    arriving(PARTNER_PARTY, VIP, family).error(kind, &answer, 500)
}

#[test]
fn errors_about_answers_go_on_to_the_backend_also_where_its_connection_is_not_known() {
    for family in FAMILIES {
        let backends = [DB_PARTY, OUTSIDE, CACHE_PARTY];
        let (mut knows, mut does_not) = (serving(family, &backends), serving(family, &backends));
        let mut met = std::collections::BTreeSet::new();
        for client in 4000..4008 {
            for protocol in [TCP, UDP] {
                let way = question(family);
                let asked = if protocol == TCP { way.tcp(client, PORT, SYN) } else { way.udp(client, PORT) };
                let question = unwrap(&knows.fate(&asked).packet);
                met.insert(question.to);
                for kind in kinds(family) {
                    let error = error_about(family, kind, client, protocol);
                    for uplink in [&mut knows, &mut does_not] {
                        let (reason, sent) = passed_on(uplink, None, &error);
                        assert_eq!(reason, Reason::ServiceForwarded, "{family:?} {kind:?}");
                        assert_eq!(take_apart(&sent), around(&error, question.to, question.mark));
                    }
                }
            }
        }
        assert!(met.len() > 1, "{met:?}");
        assert_eq!(does_not.datapath.object.connections().unwrap(), [], "an error opens nothing");
        // A connection keeps its backend, whatever new ones would get.
        let error = error_about(family, kinds(family)[0], 4000, TCP);
        let before = take_apart(&knows.datapath.run(FROM_UPLINK, &error).packet).to;
        knows.set_table(SLOT, &table(DSR, &[(UNREACHED.address(family), 0)]));
        assert_eq!(take_apart(&knows.datapath.run(FROM_UPLINK, &error).packet).to, before);
        does_not.set_table(SLOT, &table(DSR, &[(UNREACHED.address(family), 0)]));
        let now = take_apart(&does_not.datapath.run(FROM_UPLINK, &error).packet).to;
        assert_eq!(now, UNREACHED.address(family));
    }
}

#[test]
fn errors_that_quote_nothing_of_such_a_service_are_the_nodes_untouched() {
    for family in FAMILIES {
        let mut uplink = serving(family, &[DB_PARTY]);
        let kind = kinds(family)[0];
        let good = error_about(family, kind, CLIENT, UDP);
        assert_eq!(uplink.datapath.fate(FROM_UPLINK, &good), Reason::ServiceForwarded);
        let untouched = |uplink: &mut Uplink, error: &[u8], what: &str| {
            let (reason, outcome) = uplink.datapath.reason(FROM_UPLINK, error);
            assert_eq!((reason, &outcome.packet[..]), (Reason::DeliveredStack, error), "{family:?} {what}");
        };
        // Cut anywhere before the eighth byte of the quoted transport.
        let answer = arriving(VIP, WORLD_PARTY, family).datagram(PORT, CLIENT, 1400);
        let router = arriving(PARTNER_PARTY, VIP, family);
        let header = if family == Family::V4 { 20 } else { 40 };
        for bytes in 0..header + 8 {
            untouched(&mut uplink, &router.error(kind, &answer, bytes), "cut");
        }
        assert_eq!(
            uplink.datapath.fate(FROM_UPLINK, &router.error(kind, &answer, header + 8)),
            Reason::ServiceForwarded
        );
        // Of another version, a later fragment, another port, the other direction.
        let start = good.len() - 500;
        for (place, byte) in [(start, 0x15), (start + header + 1, 81)] {
            let mut spoilt = good.clone();
            spoilt[place] = byte;
            untouched(&mut uplink, &spoilt, "spoilt");
        }
        if family == Family::V4 {
            let mut later = good.clone();
            later[start + 7] = 1;
            untouched(&mut uplink, &later, "a later fragment");
        }
        let asked = question(family).udp(CLIENT, PORT);
        untouched(&mut uplink, &router.error(kind, &asked, 100), "of a question");
        untouched(&mut uplink, &arriving(WORLD_PARTY, VIP, family).ping(7), "no error");
        // Services of others, for others, of this node's endpoints, and through which answers come.
        let frontend = |slot| Some(Frontend { inside: slot, outside: slot, flags: 0 });
        let address = WEB_PARTY.address(family);
        let own = Table::new(DSR, vec![Backend { local: true, ..backend(address, 0) }]);
        let refused = Manner { sources: Some(Sources { set: 0, denied: false, node: false }), ..DSR };
        let backends = [(DB_PARTY.address(family), 0)];
        for (what, table) in [
            ("of an endpoint of this node", own),
            ("of nobody's", table(DSR, &[])),
            ("for others", table(refused, &backends)),
            ("through this node", table(MANNER, &backends)),
        ] {
            uplink.set_table(7, &table);
            let key = key(VIP.address(family), PORT, UDP);
            uplink.write(&[Step::Frontend { key, frontend: frontend(7) }]);
            untouched(&mut uplink, &good, what);
        }
    }
}

/// Nobody outside is an endpoint, or the node.
#[test]
fn errors_and_questions_by_liars_are_dropped() {
    for family in FAMILIES {
        let mut uplink = serving(family, &[UNREACHED]);
        for (liar, expected) in [(WEB_PARTY, Reason::PoolSourceOutsideOverlay), (HOST_PARTY, Reason::Spoofed)]
        {
            let packet = arriving(liar, VIP, family).udp(CLIENT, PORT);
            assert_eq!(uplink.datapath.fate(FROM_UPLINK, &packet), expected);
            let answer = arriving(VIP, WORLD_PARTY, family).datagram(PORT, CLIENT, 900);
            let error = arriving(liar, VIP, family).error(kinds(family)[0], &answer, 100);
            assert_eq!(uplink.datapath.fate(FROM_UPLINK, &error), expected);
        }
        assert_eq!(uplink.datapath.object.connections().unwrap(), []);
    }
}

/// Packets in all; some of questions, of pieces, of what is too long, and of errors.
const PACKETS: u32 = 100_000;
/// So many errors at least; a second has a thousand at most, and on a fast machine all of it is over in one.
const TOLD: u32 = 500;

/// Whatever comes in: what leaves inside another packet is what came in, one hop later, to somebody whom the tables name; and who is told of
/// something is who sent it.
#[test]
fn no_spoilt_packet_is_changed_or_goes_where_no_table_names_anybody() {
    let mut uplink = Uplink::new();
    let mut seeds = Vec::new();
    for (slot, family) in (1..).zip(FAMILIES) {
        let backends = [DB_PARTY, UNREACHED, CACHE_PARTY].map(|party| (party.address(family), 0));
        for protocol in [TCP, UDP] {
            uplink.serve(key(VIP.address(family), PORT, protocol), slot, &table(DSR, &backends));
        }
        let way = question(family);
        seeds.extend([way.tcp(CLIENT, PORT, SYN), way.udp(CLIENT, PORT), way.datagram(CLIENT, PORT, 1472)]);
        seeds.extend(way.cut(&way.datagram(CLIENT, PORT, 80), &[40], 7));
        seeds.push(with_options(family, &way.tcp(CLIENT, PORT, ACK)));
        seeds.extend(kinds(family).map(|kind| error_about(family, kind, CLIENT, UDP)));
    }
    let named: Vec<IpAddr> = FAMILIES
        .into_iter()
        .map(|family| UNREACHED.address(family))
        .chain(["192.0.2.2", "2001:db8::3"].map(|address| address.parse().unwrap()))
        .collect();
    let packets = spoil::packets(PACKETS);
    let mut spoiler = Spoiler::new(seeds);
    let [mut sent, mut told] = [0; 2];
    for _ in 0..packets {
        let packet = spoiler.packet();
        let outcome = uplink.datapath.run(FROM_UPLINK, packet);
        match outcome.verdict {
            Verdict::Ok => assert_eq!(outcome.packet, packet),
            Verdict::Shot => {}
            Verdict::Redirect if is_icmp(&outcome.packet) => {
                let (answer, asked) = (&outcome.packet, packet);
                let addresses = if asked[14] >> 4 == 4 { 26..30 } else { 22..38 };
                let places = (addresses.start + addresses.len(), addresses.end + addresses.len());
                assert_eq!(&answer[places.0..places.1], &asked[addresses]);
                told += 1;
            }
            Verdict::Redirect => {
                let wrapped = take_apart(&outcome.packet);
                assert!(named.contains(&wrapped.to), "{wrapped:?}");
                let mut expected = packet.to_vec();
                let (hops, sum) = if packet[14] >> 4 == 4 { (22, Some(24)) } else { (21, None) };
                expected[hops] -= 1;
                let mut inner = wrapped.inner;
                if let Some(sum) = sum {
                    // As wrong as it was: hop_later makes a right one.
                    expected[sum..sum + 2].fill(0);
                    inner[sum - 14..sum - 12].fill(0);
                }
                assert_eq!(&inner[..], &expected[14..14 + inner.len()]);
                sent += 1;
            }
        }
    }
    assert!(sent > packets / 20 && told >= (packets / 200).min(TOLD), "{sent} {told}");
}

/// Whether the packet itself tells of something, and carries no other.
fn is_icmp(packet: &[u8]) -> bool {
    match packet[12..14] {
        [0x08, 0x00] => packet[23] == 1,
        _ => packet[20] == 58,
    }
}
