//! I1: whatever comes in, nothing leaves that policy does not allow.

use std::cell::RefCell;

use proptest::{
    prelude::*,
    test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner},
};
use weft_shared::layout::{Class, Point, Reason};

use crate::{
    harness::{
        Datapath, FROM_OVERLAY, FROM_UPLINK, Outcome, Place, TO_OVERLAY, TO_UPLINK, Verdict, from_endpoint,
        to_endpoint,
    },
    packets::{SYN, Way, arriving, out_of},
    world::{
        self, API_PARTY, DB_NODE_PARTY, DB_PARTY, FAMILIES, HOST_PARTY, Party, TAP, UPLINK, WEB, WEB_PARTY,
        WORLD_PARTY, deny_all, for_all,
    },
};

const PLACES: [Place; 9] = [
    from_endpoint(WEB),
    to_endpoint(WEB, UPLINK),
    to_endpoint(WEB, 0),
    to_endpoint(TAP, WEB),
    FROM_OVERLAY,
    FROM_UPLINK,
    TO_UPLINK,
    TO_OVERLAY,
    Place { ingress_ifindex: WEB, ..TO_OVERLAY },
];

/// Through every place, each.
const PACKETS: u32 = 110_000;

/// Packets that are right, to be spoilt.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for family in FAMILIES {
        for to in [API_PARTY, DB_PARTY, WORLD_PARTY, HOST_PARTY, DB_NODE_PARTY, WEB_PARTY] {
            for way in [out_of(WEB, WEB_PARTY, to, family), arriving(to, WEB_PARTY, family)] {
                seeds.extend(of_every_kind(&way));
            }
        }
        seeds.extend(of_every_kind(&arriving(HOST_PARTY, DB_PARTY, family)));
    }
    seeds
}

fn of_every_kind(way: &Way) -> Vec<Vec<u8>> {
    let pieces = way.cut(&way.datagram(1000, 80, 40), &[16, 32], 7);
    let error = way.back().error((3, 3), &way.datagram(1000, 80, 8), 100);
    let whole = [
        error,
        way.tcp(1000, 80, SYN),
        way.tcp(1000, 80, crate::packets::ACK),
        way.udp(1000, 8472),
        way.ping(7),
        way.icmp(3, 1),
        way.protocol(132, &[0; 16]),
        way.protocol(60, &[17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 8, 0, 0]),
    ];
    whole.into_iter().chain(pieces).collect()
}

/// Right headers with some bytes changed and some cut off, or nothing but noise behind a type that is looked at.
pub(crate) fn garbage(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let spoilt = (
        proptest::sample::select(seeds),
        proptest::collection::vec((0..80_usize, any::<u8>()), 0..4),
        proptest::option::weighted(0.3, 14..100_usize),
    )
        .prop_map(|(mut packet, changes, length)| {
            for (offset, value) in changes {
                if let Some(byte) = packet.get_mut(offset) {
                    *byte = value;
                }
            }
            packet.truncate(length.unwrap_or(packet.len()));
            packet
        });
    let noise = (
        proptest::sample::select(vec![[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00], [0x12, 0x34]]),
        proptest::collection::vec(any::<u8>(), 14..200),
    )
        .prop_map(|(ethertype, mut packet)| {
            packet[12..14].copy_from_slice(&ethertype);
            packet[6..12].copy_from_slice(&world::mac(WEB));
            packet
        });
    prop_oneof![4 => spoilt, 1 => noise]
}

/// What the kernel's test run itself refuses: an IP type without an IP header.
pub(crate) fn can_be_run(packet: &[u8]) -> bool {
    match packet[12..14] {
        [0x08, 0x00] => packet.len() >= 34,
        [0x86, 0xdd] => packet.len() >= 54,
        _ => true,
    }
}

/// With nothing allowed, what still passes: answers to ARP and ND, what an endpoint says to itself, what the node says to
/// its own endpoint, and what is not for an endpoint at all.
fn check(place: Place, packet: &[u8], outcome: &Outcome) -> Result<(), TestCaseError> {
    let may = match (place.point, outcome.verdict) {
        (Point::FromEndpoint, Verdict::Redirect) => {
            is_answer(&outcome.packet) || is_between(packet, WEB_PARTY, WEB_PARTY)
        }
        // Its replies to the node: the seeds have the node's questions, too.
        (Point::FromEndpoint, Verdict::Ok) => is_between(packet, WEB_PARTY, HOST_PARTY),
        (Point::ToEndpoint, Verdict::Ok) => {
            is_between(packet, HOST_PARTY, WEB_PARTY) || is_between(packet, HOST_PARTY, world::TAP_PARTY)
        }
        (Point::FromUplink | Point::ToUplink, Verdict::Ok) => {
            !is_for_the_pools(packet) && outcome.packet == packet
        }
        // The node is not judged.
        (Point::ToOverlay, Verdict::Ok) => {
            place.ingress_ifindex == 0 && is_to_another_nodes_part(packet) && outcome.packet == packet
        }
        _ => false,
    };
    prop_assert!(may, "{place:?} let pass ({:?}): {packet:02x?}", outcome.verdict);
    Ok(())
}

/// ARP's reply, ND's advertisement.
pub(crate) fn is_answer(packet: &[u8]) -> bool {
    match packet[12..14] {
        [0x08, 0x06] => packet[20..22] == [0, 2],
        [0x86, 0xdd] => packet[20] == 58 && packet[54] == 136,
        _ => false,
    }
}

fn addresses(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    match packet[12..14] {
        [0x08, 0x00] => Some((&packet[26..30], &packet[30..34])),
        [0x86, 0xdd] => Some((&packet[22..38], &packet[38..54])),
        _ => None,
    }
}

fn is_between(packet: &[u8], from: Party, to: Party) -> bool {
    match addresses(packet) {
        Some((source, destination)) if source.len() == 4 => {
            source == from.v4.octets() && destination == to.v4.octets()
        }
        Some((source, destination)) => source == from.v6.octets() && destination == to.v6.octets(),
        None => false,
    }
}

/// From the node, to the pools, and not to this node's part of them.
fn is_to_another_nodes_part(packet: &[u8]) -> bool {
    let parts = match addresses(packet) {
        Some((source, to)) if to.len() == 4 => source == HOST_PARTY.v4.octets() && [2, 3].contains(&to[2]),
        Some((source, to)) => source == HOST_PARTY.v6.octets() && [[0, 2], [0, 3]].contains(&[to[6], to[7]]),
        None => false,
    };
    parts && is_for_the_pools(packet)
}

fn is_for_the_pools(packet: &[u8]) -> bool {
    match addresses(packet) {
        Some((_, destination)) if destination.len() == 4 => destination[..2] == [10, 200],
        Some((_, destination)) => destination[..6] == [0xfd, 0, 0, 0x77, 0, 0],
        None => false,
    }
}

#[test]
fn nothing_passes_where_nothing_is_allowed() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &deny_all()));
    let datapath = RefCell::new(datapath);
    let cases = Cases { cases: PACKETS, failure_persistence: None, ..Cases::default() };
    let mut runner = TestRunner::new_with_rng(cases, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let garbage =
        garbage(seeds()).prop_filter("the kernel's test run refuses it", |packet| can_be_run(packet));
    runner
        .run(&garbage, |packet| {
            for place in PLACES {
                match datapath.borrow_mut().judge(place, &packet) {
                    Err(event) => {
                        let reason = Reason::from_number(event.reason);
                        prop_assert!(reason.is_some_and(Reason::is_drop), "{event:?}");
                    }
                    Ok(outcome) => check(place, &packet, &outcome)?,
                }
            }
            Ok(())
        })
        .unwrap();
    for (key, flow) in datapath.borrow().object.flows().unwrap() {
        assert_eq!(u32::from(flow.source_class), Class::Host as u32, "{key:?} {flow:?}");
    }
}
