//! The XDP program of uplinks: what listed sources send is dropped and counted, everything else goes up as it came.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use aya::programs::{TestRun as _, TestRunOptions};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner},
};
use weft_noded::{
    kernel::Datapath as _,
    plan::diff::Sweep,
    prefilter::{self, Desired, LIMITS, Prefilter, lists::Lists},
};
use weft_shared::{
    layout::{Point, Reason, maps::Counter},
    policy::model::{Direction, Failsafe},
};

use crate::{
    harness::Datapath,
    packets::{ACK, SYN, TCP, UDP, Way, arriving},
    spoil::{self, Spoiler},
    world::{FAMILIES, Family, HOST_PARTY, PARTNER_PARTY, Party, WEB_PARTY, WORLD_PARTY},
};

const PASS: u32 = 2;
const DROP: u32 = 1;

/// The program with its lists.
struct Uplink {
    datapath: Datapath,
    lists: Lists,
    slots: BTreeMap<String, u32>,
}

impl Uplink {
    fn new() -> Self {
        Self { datapath: Datapath::new(), lists: Lists::default(), slots: BTreeMap::new() }
    }

    /// Brings the maps to these prefilters.
    fn set(&mut self, desired: &Desired, failsafe: &[Failsafe]) {
        let plan = prefilter::plan(desired, failsafe, &self.lists, Sweep::Remove, LIMITS);
        assert_eq!(plan.unrealised, []);
        self.datapath.object.write_prefilters(&plan.steps).unwrap();
        plan.steps.iter().for_each(|step| self.lists.apply(step));
        self.slots = plan.slots;
        assert_eq!(self.datapath.object.read_prefilters().unwrap(), self.lists, "what is read is as written");
    }

    /// Whether the packet is dropped. One that passes is as it was.
    fn drops(&mut self, packet: &[u8]) -> bool {
        let mut answer = vec![0; packet.len() + 256];
        let program = self.datapath.object.uplink_program().unwrap();
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut answer),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).unwrap();
        answer.truncate(result.data_size_out as usize);
        assert_eq!(answer, packet, "touched");
        match result.return_value {
            PASS => false,
            DROP => true,
            other => panic!("verdict {other}"),
        }
    }

    /// What the packet is counted as; `None`: as nothing, which what simply passes is.
    fn fate(&mut self, packet: &[u8]) -> Option<Reason> {
        let before = self.datapath.object.counters().unwrap();
        let dropped = self.drops(packet);
        let after = self.datapath.object.counters().unwrap();
        let mut changed = after.into_iter().filter(|row| !before.contains(row));
        let counted = changed.next().map(|(point, reason, _)| {
            assert_eq!(point, Point::XdpUplink);
            reason
        });
        assert_eq!(changed.next(), None);
        assert_eq!(dropped, counted.is_some_and(Reason::is_drop), "{counted:?}");
        counted
    }

    fn dropped(&mut self, list: &str) -> Counter {
        let slot = self.slots[list];
        self.datapath.object.prefiltered(&[slot]).unwrap()[&slot]
    }
}

fn list(prefixes: &[&str], senders: &[&str]) -> Arc<Prefilter> {
    Arc::new(Prefilter {
        prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
        senders: senders.iter().map(|text| text.parse().unwrap()).collect(),
    })
}

fn one_list(prefilter: Arc<Prefilter>) -> Desired {
    [("scanners".to_owned(), prefilter)].into()
}

fn from(source: Party, family: Family) -> Way {
    arriving(source, HOST_PARTY, family)
}

fn arp(operation: ArpOperation, sender: [u8; 4]) -> Vec<u8> {
    let [source, nobody] = [[2, 9, 9, 9, 9, 1], [0; 6]];
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &source,
        &sender,
        &nobody,
        &[192, 0, 2, 1],
    );
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(source, [255; 6]).arp(arp.unwrap()).write(&mut packet).unwrap();
    packet
}

#[test]
fn what_listed_sources_send_is_dropped_and_counted_for_their_list() {
    let mut uplink = Uplink::new();
    let wide = list(&["203.0.0.0/16", "2001:db8:ffff::/48"], &[]);
    let narrow = list(&["203.0.113.0/24", "2001:db8:ffff::5/128"], &["192.0.2.66"]);
    uplink.set(&[("narrow".to_owned(), narrow), ("wide".to_owned(), wide)].into(), &[]);
    let mut bytes = 0;
    for family in FAMILIES {
        let packet = from(WORLD_PARTY, family).tcp(1000, 80, SYN);
        bytes += packet.len() as u64;
        assert_eq!(uplink.fate(&packet), Some(Reason::Prefiltered), "{family:?}");
        // To an endpoint, too.
        let packet = arriving(WORLD_PARTY, WEB_PARTY, family).datagram(1000, 53, 1000);
        bytes += packet.len() as u64;
        assert_eq!(uplink.fate(&packet), Some(Reason::Prefiltered), "{family:?}");
        let elsewhere = from(PARTNER_PARTY, family);
        for packet in [elsewhere.tcp(1000, 80, SYN), elsewhere.udp(1000, 53), elsewhere.ping(7)] {
            assert_eq!(uplink.fate(&packet), None, "{family:?}");
        }
        // Destinations are nothing to it.
        assert_eq!(uplink.fate(&arriving(PARTNER_PARTY, WORLD_PARTY, family).ping(1)), None);
    }
    assert_eq!(uplink.dropped("narrow"), Counter { packets: 4, bytes }, "the longest prefix counts");
    assert_eq!(uplink.dropped("wide"), Counter { packets: 0, bytes: 0 });
    let next_door = Party { v4: [203, 0, 114, 1].into(), v6: "2001:db8:ffff::6".parse().unwrap() };
    for family in FAMILIES {
        assert!(uplink.drops(&from(next_door, family).ping(1)));
    }
    assert_eq!(uplink.dropped("wide").packets, 2);
}

#[test]
fn arp_requests_of_listed_senders_are_dropped_and_nothing_else_of_arp() {
    let mut uplink = Uplink::new();
    uplink.set(&one_list(list(&["203.0.113.0/24"], &["192.0.2.66"])), &[]);
    assert_eq!(uplink.fate(&arp(ArpOperation::REQUEST, [192, 0, 2, 66])), Some(Reason::Prefiltered));
    assert_eq!(uplink.fate(&arp(ArpOperation::REPLY, [192, 0, 2, 66])), None);
    assert_eq!(uplink.fate(&arp(ArpOperation::REQUEST, [192, 0, 2, 67])), None);
    assert_eq!(uplink.fate(&arp(ArpOperation::REQUEST, [203, 0, 113, 5])), None, "a prefix is no sender");
    let sender = Party { v4: [192, 0, 2, 66].into(), v6: WORLD_PARTY.v6 };
    assert_eq!(uplink.fate(&from(sender, Family::V4).ping(1)), None, "a sender is no prefix");
    assert_eq!(uplink.dropped("scanners").packets, 1);
}

#[test]
fn tagged_frames_and_those_that_cant_be_read_go_up_and_are_counted() {
    let mut uplink = Uplink::new();
    uplink.set(&one_list(list(&["203.0.113.0/24", "2001:db8:ffff::/48"], &["192.0.2.66"])), &[]);
    let arp = arp(ArpOperation::REQUEST, [192, 0, 2, 66]);
    for (packet, header) in [
        (from(WORLD_PARTY, Family::V4).tcp(1000, 80, SYN), 20),
        (from(WORLD_PARTY, Family::V6).tcp(1000, 80, SYN), 40),
        (arp, 28),
    ] {
        for tag in [[0x81, 0, 0, 5], [0x88, 0xa8, 0, 5]] {
            let tagged = [&packet[..12], &tag[..], &packet[12..]].concat();
            assert_eq!(uplink.fate(&tagged), Some(Reason::PassedTagged));
        }
        for length in 14..14 + header {
            assert_eq!(uplink.fate(&packet[..length]), Some(Reason::PassedUnread), "{length} bytes");
        }
        assert_eq!(
            uplink.fate(&packet[..14 + header]),
            Some(Reason::Prefiltered),
            "the header is all it needs"
        );
    }
    let mut packet = from(WORLD_PARTY, Family::V4).tcp(1000, 80, SYN);
    for first in [0x44, 0x65] {
        packet[14] = first;
        assert_eq!(uplink.fate(&packet), Some(Reason::PassedUnread), "{first:#x}");
    }
}

#[test]
fn a_list_changes_in_the_maps_alone_and_one_that_comes_counts_from_zero() {
    let mut uplink = Uplink::new();
    let packet = from(WORLD_PARTY, Family::V4).ping(1);
    assert!(!uplink.drops(&packet));
    uplink.set(&one_list(list(&["203.0.113.0/24"], &[])), &[]);
    assert!(uplink.drops(&packet));
    let first = uplink.slots.clone();
    uplink.set(&one_list(list(&["203.0.113.5/32", "198.51.100.0/24"], &[])), &[]);
    assert!(uplink.drops(&packet));
    assert_eq!(uplink.slots, first);
    assert_eq!(uplink.dropped("scanners").packets, 2, "it counts on");
    uplink.set(&Desired::new(), &[]);
    assert!(!uplink.drops(&packet));
    assert_eq!(uplink.lists, Lists::default());
    let slots = uplink.slots.len();
    uplink.set(&[("others".to_owned(), list(&["203.0.113.0/24"], &[]))].into(), &[]);
    assert_eq!((slots, uplink.slots["others"]), (0, first["scanners"]), "the slot is given again");
    assert_eq!(uplink.dropped("others").packets, 0);
}

#[test]
fn short_prefixes_are_found_at_both_ends() {
    let mut uplink = Uplink::new();
    uplink.set(&one_list(list(&["224.0.0.0/3", "e000::/3"], &[])), &[]);
    let low = Party { v4: [223, 255, 255, 255].into(), v6: "dfff:ffff::1".parse().unwrap() };
    let first = Party { v4: [224, 0, 0, 0].into(), v6: "e000::".parse().unwrap() };
    let last = Party { v4: [255; 4].into(), v6: [255; 16].into() };
    for family in FAMILIES {
        let drops = [low, first, last].map(|party| uplink.drops(&from(party, family).ping(1)));
        assert_eq!(drops, [false, true, true], "{family:?}");
    }
}

/// Everybody may come to port 22, and to no other; the node may ask everybody for names.
fn open() -> Vec<Failsafe> {
    let entry = |protocol, port, direction| Failsafe {
        protocol,
        first: port,
        last: port,
        direction,
        prefixes: Vec::new(),
    };
    vec![
        entry(TCP, 22, Direction::Ingress),
        entry(UDP, 53, Direction::Egress),
        entry(50, 0, Direction::Ingress),
    ]
}

#[test]
fn what_failsafe_entries_hold_open_for_everybody_passes_from_listed_sources() {
    let mut uplink = Uplink::new();
    let listed = one_list(list(&["203.0.113.0/24", "2001:db8:ffff::/48"], &[]));
    uplink.set(&listed, &open());
    for family in FAMILIES {
        let way = from(WORLD_PARTY, family);
        for packet in [way.tcp(1000, 22, SYN), way.udp(53, 1000), way.protocol(50, &[0; 16])] {
            assert_eq!(uplink.fate(&packet), Some(Reason::PassedFailsafe), "{family:?} {packet:x?}");
        }
        let elsewhere = arriving(WORLD_PARTY, WEB_PARTY, family);
        let pieces = way.cut(&way.datagram(53, 1000, 40), &[16], 7);
        let others = [
            way.tcp(22, 1000, ACK),
            way.udp(1000, 22),
            way.udp(1000, 53),
            way.protocol(51, &[0; 16]),
            way.ping(1),
            elsewhere.tcp(1000, 22, SYN),
            pieces[1].clone(),
            way.tcp(1000, 22, SYN)[..if family == Family::V4 { 36 } else { 56 }].to_vec(),
        ];
        for packet in others {
            assert_eq!(uplink.fate(&packet), Some(Reason::Prefiltered), "{family:?} {packet:x?}");
        }
    }
    uplink.set(&listed, &[]);
    assert!(uplink.drops(&from(WORLD_PARTY, Family::V4).tcp(1000, 22, SYN)), "nothing is held open any more");
}

/// Few bits, so that prefixes meet, and their ends too. None is very short: each is many blocks, which takes its time without
/// optimisation.
fn net() -> impl Strategy<Value = IpNet> {
    let edge = || prop_oneof![Just(0_u8), Just(1), Just(127), Just(128), Just(255), any::<u8>()];
    let v4 = (edge(), edge(), 12_u8..=32).prop_map(|(second, last, length)| {
        IpNet::new([203, second, 0, last].into(), length).unwrap().trunc()
    });
    let v6 = (edge(), edge(), 4_u8..=128).prop_map(|(second, last, length)| {
        let mut octets = [0; 16];
        (octets[0], octets[1], octets[7], octets[15]) = (0x20, second, last, last);
        IpNet::new(octets.into(), length).unwrap().trunc()
    });
    prop_oneof![v4, v6]
}

fn random(cases: u32) -> TestRunner {
    let cases = Cases { cases, failure_persistence: None, ..Cases::default() };
    TestRunner::new_with_rng(cases, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Of the prefixes around the address, the longest; of lists that have it, the first by name.
fn walk(desired: &Desired, address: IpAddr) -> Option<&str> {
    let around = desired.iter().flat_map(|(name, list)| {
        list.prefixes.iter().filter(move |net| net.contains(&address)).map(move |net| (name, net))
    });
    let longest = around.max_by(|(name, net), (other, than)| {
        net.prefix_len().cmp(&than.prefix_len()).then_with(|| other.cmp(name))
    });
    longest.map(|(name, _)| name.as_str())
}

#[test]
fn random_lists_drop_what_a_walk_over_their_prefixes_finds() {
    let lists = prop::collection::vec(prop::collection::vec(net(), 0..12), 1..5);
    let uplink = std::cell::RefCell::new(Uplink::new());
    let property = |lists: Vec<Vec<IpNet>>| {
        let mut uplink = uplink.borrow_mut();
        let named = lists.iter().enumerate().map(|(number, prefixes)| {
            let prefilter = Prefilter { prefixes: prefixes.clone(), senders: Vec::new() };
            (format!("list-{number}"), Arc::new(prefilter))
        });
        let desired: Desired = named.collect();
        uplink.set(&desired, &[]);
        for net in lists.iter().flatten() {
            for address in [net.network(), net.broadcast(), beside(net.network()), beside(net.broadcast())] {
                let (family, to) = match address {
                    IpAddr::V4(_) => (Family::V4, HOST_PARTY),
                    IpAddr::V6(_) => (Family::V6, HOST_PARTY),
                };
                let way = Way { from: address, ..arriving(WORLD_PARTY, to, family) };
                let expected = walk(&desired, address);
                let before = expected.map(|name| uplink.dropped(name).packets);
                prop_assert_eq!(uplink.drops(&way.udp(1000, 2000)), expected.is_some(), "{}", address);
                let after = expected.map(|name| uplink.dropped(name).packets);
                prop_assert_eq!(before.map(|packets| packets + 1), after, "{} counts for its list", address);
            }
        }
        Ok(())
    };
    random(100).run(&lists, property).unwrap();
}

/// The address with its last bit turned.
fn beside(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() ^ 1).into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() ^ 1).into(),
    }
}

/// Whether the packet is of a listed source, by another parser.
fn is_listed(packet: &[u8], desired: &Desired) -> bool {
    let is_in = |address: IpAddr| walk(desired, address).is_some();
    let Some(body) = packet.get(14..) else { return false };
    match packet.get(12..14) {
        Some([8, 0]) => {
            let header = body.first().is_some_and(|first| first >> 4 == 4 && first & 15 >= 5);
            header && body.len() >= 20 && is_in(<[u8; 4]>::try_from(&body[12..16]).unwrap().into())
        }
        Some([0x86, 0xdd]) => {
            let header = body.first().is_some_and(|first| first >> 4 == 6);
            header && body.len() >= 40 && is_in(<[u8; 16]>::try_from(&body[8..24]).unwrap().into())
        }
        Some([8, 6]) => {
            let request = body.get(..8) == Some(&[0, 1, 8, 0, 6, 4, 0, 1]) && body.len() >= 28;
            request
                && desired
                    .values()
                    .any(|list| list.senders.iter().any(|sender| sender.octets()[..] == body[14..18]))
        }
        _ => false,
    }
}

#[test]
fn spoilt_packets_pass_untouched_unless_their_source_is_listed() {
    const PACKETS: u32 = 1_000_000;
    let mut uplink = Uplink::new();
    let desired = one_list(list(&["203.0.113.0/24", "2001:db8:ffff::/48"], &["192.0.2.66"]));
    uplink.set(&desired, &[]);
    let mut seeds =
        vec![arp(ArpOperation::REQUEST, [192, 0, 2, 66]), arp(ArpOperation::REPLY, [192, 0, 2, 1])];
    for family in FAMILIES {
        for party in [WORLD_PARTY, PARTNER_PARTY] {
            let way = from(party, family);
            seeds.extend([way.tcp(1000, 22, SYN), way.datagram(1000, 80, 40), way.ping(1)]);
        }
    }
    let packets = spoil::packets(PACKETS);
    let mut spoiler = Spoiler::new(seeds);
    let (mut dropped, mut passed) = (0_u32, 0_u32);
    for _ in 0..packets {
        let packet = spoiler.frame();
        let drops = uplink.drops(packet);
        assert_eq!(drops, is_listed(packet, &desired), "{packet:x?}");
        if drops { dropped += 1 } else { passed += 1 }
    }
    assert!(dropped > packets / 10 && passed > packets / 10, "{dropped} dropped, {passed} passed");
}
