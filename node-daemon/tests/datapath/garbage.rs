//! I1: whatever comes in, nothing leaves that policy does not allow.

use weft_shared::layout::{Class, Point};

use crate::{
    harness::{
        Datapath, FROM_OVERLAY, FROM_UPLINK, Outcome, Place, TO_OVERLAY, TO_UPLINK, Verdict, from_endpoint,
        to_endpoint,
    },
    packets::{ACK, SYN, Way, arriving, out_of},
    spoil::{self, Spoiler},
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
const PACKETS: u32 = 200_000;

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
        way.tcp(1000, 80, ACK),
        way.udp(1000, 8472),
        way.ping(7),
        way.icmp(3, 1),
        way.protocol(132, &[0; 16]),
        way.protocol(60, &[17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 8, 0, 0]),
    ];
    whole.into_iter().chain(pieces).collect()
}

/// With nothing allowed, what still passes: answers to ARP and ND, what an endpoint says to itself, what the node says to
/// its own endpoint, and what is not for an endpoint at all.
fn check(place: Place, packet: &[u8], outcome: &Outcome) {
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
    assert!(may, "{place:?} let pass ({:?}): {packet:02x?}", outcome.verdict);
}

/// ARP's reply, ND's advertisement.
pub(crate) fn is_answer(packet: &[u8]) -> bool {
    match packet[12..14] {
        [0x08, 0x06] => packet.get(20..22) == Some(&[0, 2]),
        [0x86, 0xdd] => packet[20] == 58 && packet.get(54) == Some(&136),
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
    let mut spoiler = Spoiler::new(seeds());
    datapath.judge_spoilt(&PLACES, &mut spoiler, spoil::packets(PACKETS), check);
    for (key, flow) in datapath.object.flows().unwrap() {
        assert_eq!(u32::from(flow.source_class), Class::Host as u32, "{key:?} {flow:?}");
    }
}
