//! I1 with services: whatever comes in, nothing leaves that policy does not allow, and what leaves has checksums that are as right, or
//! as wrong, as those that came in.

use weft_shared::layout::Point;

use super::{FRONTEND, PORT, TARGET, TWIN, packets::sctp, table};
use crate::{
    garbage::is_answer,
    harness::{
        Datapath, FROM_UPLINK, Outcome, Place, TO_OVERLAY, TO_UPLINK, Verdict, from_endpoint, to_endpoint,
    },
    packets::{ACK, SYN, Way, arriving, out_of},
    spoil::{self, Spoiler},
    world::{
        API, API_PARTY, FAMILIES, HOST_PARTY, Party, TAP, TAP_PARTY, UPLINK, WEB, WEB_PARTY, WORLD_PARTY,
        deny_all, for_all,
    },
};

const BACKENDS: [Party; 3] = [API_PARTY, TAP_PARTY, WORLD_PARTY];

const PLACES: [Place; 7] = [
    from_endpoint(WEB),
    from_endpoint(API),
    to_endpoint(TAP, WEB),
    to_endpoint(WEB, UPLINK),
    FROM_UPLINK,
    Place { ingress_ifindex: API, ..TO_UPLINK },
    Place { ingress_ifindex: UPLINK, ..TO_OVERLAY },
];

/// Through every place, each.
const PACKETS: u32 = 100_000;

/// Of clients and backends, inside and outside: what they say, and what they are told about it.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for family in FAMILIES {
        let calling = [
            out_of(WEB, WEB_PARTY, FRONTEND, family),
            out_of(WEB, WEB_PARTY, TWIN, family),
            arriving(WORLD_PARTY, FRONTEND, family),
        ];
        let answering = [
            out_of(API, API_PARTY, WEB_PARTY, family),
            out_of(API, API_PARTY, WORLD_PARTY, family),
            arriving(WORLD_PARTY, WEB_PARTY, family),
            arriving(TAP_PARTY, WEB_PARTY, family),
        ];
        for way in calling {
            seeds.extend(of_every_kind(&way, 1000, PORT));
        }
        for way in answering {
            seeds.extend(of_every_kind(&way, TARGET, 1000));
        }
    }
    seeds
}

fn of_every_kind(way: &Way, from: u16, to: u16) -> Vec<Vec<u8>> {
    let pieces = way.cut(&way.datagram(from, to, 40), &[16, 32], 7);
    let udp = [17, 0, 1, 4, 0, 0, 0, 0];
    let behind_options = [&udp[..], &from.to_be_bytes(), &to.to_be_bytes(), &[0, 8, 0, 0]].concat();
    let whole = [
        way.error((3, 3), &way.back().datagram(to, from, 8), 100),
        way.error((1, 4), &way.back().datagram(to, from, 8), 100),
        way.tcp(from, to, SYN),
        way.tcp(from, to, ACK),
        way.datagram(from, to, 30),
        sctp(way, from, to, 20),
        way.protocol(60, &behind_options),
    ];
    whole.into_iter().chain(pieces).collect()
}

fn served() -> Datapath {
    let mut datapath = Datapath::new();
    for (slot, (frontend, backends)) in
        [(FRONTEND, BACKENDS.to_vec()), (TWIN, vec![])].into_iter().enumerate()
    {
        for (place, family) in FAMILIES.into_iter().enumerate() {
            let slot = u32::try_from(1 + 2 * slot + place).unwrap();
            datapath.put_table(slot, Some(&table(&backends, family)));
            for protocol in [6, 17, 132] {
                datapath.put_frontend(super::key(frontend, family, protocol), Some(slot));
            }
        }
    }
    datapath
}

fn run(datapath: &mut Datapath, check: impl FnMut(Place, &[u8], &Outcome)) {
    datapath.judge_spoilt(&PLACES, &mut Spoiler::new(seeds()), spoil::packets(PACKETS), check);
}

/// Refusals, answers to ARP and ND, and what is not for an endpoint at all.
#[test]
fn nothing_passes_to_a_backend_that_policies_do_not_allow() {
    let mut datapath = served();
    datapath.change(|tables| for_all(tables, &deny_all()));
    run(&mut datapath, |place, packet, outcome| {
        let own = ends(packet).is_some_and(|(from, to)| from == to) || host_is_in(packet);
        let may = match place.point {
            Point::FromEndpoint => is_answer(&outcome.packet) || is_refusal(packet, outcome) || own,
            Point::ToEndpoint => own,
            Point::FromUplink => outcome.packet == packet || is_refusal(packet, outcome),
            _ => true,
        };
        assert!(may, "{place:?} let pass ({:?}): {packet:02x?}", outcome.verdict);
    });
    assert_eq!(datapath.object.connections().unwrap(), Vec::new());
}

/// Checksums by the sums of the IP header, and of all that TCP, UDP and ICMP checksums are about. Refusals are new packets, which are right.
#[test]
fn what_is_translated_goes_to_backends_of_the_table_with_checksums_as_right_as_they_were() {
    let mut datapath = served();
    run(&mut datapath, |place, packet, outcome| {
        if !is_answer(&outcome.packet) && !is_refusal(packet, outcome) {
            let named = leads_where_tables_say(packet, &outcome.packet);
            assert!(named, "{place:?}: {packet:02x?} {:02x?}", outcome.packet);
        }
        let (Some(before), Some(after)) = (Sums::of(packet), Sums::of(&outcome.packet)) else { return };
        if !before.without && !is_answer(&outcome.packet) {
            let is_new = is_refusal(packet, outcome) && after.sums == [0, 0];
            assert!(is_new || after.sums == before.sums, "{place:?}: {packet:02x?} {:02x?}", outcome.packet);
        }
    });
    assert!(!datapath.object.connections().unwrap().is_empty(), "nothing was translated");
}

/// Sent back to where it came from, from where it went. So is what a backend sends itself, by the frontend or not.
fn is_refusal(packet: &[u8], outcome: &Outcome) -> bool {
    let there = ends(packet);
    let back = ends(&outcome.packet).map(|(from, to)| (to, from));
    outcome.verdict == Verdict::Redirect && there == back
}

/// Another destination than the packet's is a backend, and another source a frontend.
fn leads_where_tables_say(packet: &[u8], translated: &[u8]) -> bool {
    let (Some((from, to)), Some((shown_from, led_to))) = (ends(packet), ends(translated)) else {
        return packet == translated;
    };
    (led_to == to || is_one_of(&BACKENDS, &led_to))
        && (shown_from == from || is_one_of(&[FRONTEND, TWIN], &shown_from))
}

fn is_one_of(parties: &[Party], address: &[u8]) -> bool {
    parties.iter().any(|party| address == party.v4.octets() || address == party.v6.octets())
}

/// Addresses, of what has some.
fn ends(packet: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (from, to) = match packet.get(12..14)? {
        [0x08, 0x00] => (packet.get(26..30)?, packet.get(30..34)?),
        [0x86, 0xdd] => (packet.get(22..38)?, packet.get(38..54)?),
        _ => return None,
    };
    Some((from.to_vec(), to.to_vec()))
}

fn host_is_in(packet: &[u8]) -> bool {
    ends(packet).is_some_and(|(from, to)| [from, to].iter().any(|end| is_one_of(&[HOST_PARTY], end)))
}

/// What is in the checksums of a whole packet: each sum is 0 where the checksum is right.
struct Sums {
    /// UDP without a checksum.
    without: bool,
    sums: [u32; 2],
}

impl Sums {
    fn of(packet: &[u8]) -> Option<Self> {
        let ip = packet.get(14..)?;
        let (header, protocol, length, v4) = match packet.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(ip[0] & 15) * 4;
                let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
                let cut = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x3fff;
                (cut == 0).then_some((header, *ip.get(9)?, total.checked_sub(header)?, true))?
            }
            [0x86, 0xdd] => {
                (40, *ip.get(6)?, usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?])), false)
            }
            _ => return None,
        };
        if !matches!((protocol, v4), (6 | 17, _) | (1, true) | (58, false)) {
            return None;
        }
        let (from, to) = ends(packet)?;
        let body = ip.get(header..header + length)?;
        let of_header = if v4 { sum(ip.get(..header)?) } else { 0 };
        let numbers = u32::from(protocol) + u32::try_from(length).ok()?;
        let pseudo = if protocol == 1 { 0 } else { sum(&from) + sum(&to) + numbers };
        let without = protocol == 17 && body.get(6..8)? == [0, 0];
        Some(Self { without, sums: [of_header % 0xffff, (pseudo + sum(body)) % 0xffff] })
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}
