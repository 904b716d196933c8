//! Rates of endpoints. At a thousand bytes a second a packet takes as long as it is long: how fast the test is hardly matters.

use aya::programs::{TestRun as _, TestRunOptions};
use weft_noded::plan::tables::Step;
use weft_shared::layout::{
    Endpoint, Reason, endpoint_flags,
    shaping::{AHEAD_BYTES_MIN, nanoseconds},
};

use crate::{
    harness::{Datapath, Place, context, from_endpoint, to_endpoint},
    packets::{Way, arriving, out_of},
    world::{
        API, API_PARTY, DB_PARTY, FAMILIES, Family, TAP, TAP_PARTY, UPLINK, WEB, WEB_PARTY, WORLD_PARTY,
    },
};

const RATE: u64 = 1000;
const PACKETS: usize = 60;
/// Of the payload: with headers, a packet takes a second and a bit.
const PAYLOAD: usize = 1000;

fn limited(ifindex: u32, limit: impl FnOnce(&mut Endpoint)) -> Datapath {
    let mut datapath = Datapath::new();
    datapath.change(|world| limit(world.endpoints.get_mut(&ifindex).unwrap()));
    datapath
}

fn packet(way: Way) -> Vec<u8> {
    way.datagram(1000, 80, PAYLOAD)
}

/// What of many packets at once passes is what may be ahead, and what the time has brought.
fn assert_limited(datapath: &mut Datapath, place: Place, packet: &[u8]) {
    let began = tokio::time::Instant::now();
    let fates: Vec<Reason> = (0..PACKETS).map(|_| datapath.fate(place, packet)).collect();
    let count = fates.iter().take_while(|fate| !fate.is_drop()).count();
    let passed = count as u64;
    let bytes = packet.len() as u64;
    let at_once = AHEAD_BYTES_MIN / bytes + 1;
    let meanwhile = RATE * (began.elapsed().as_secs() + 1) / bytes + 1;
    assert!((at_once..=at_once + meanwhile).contains(&passed), "{passed} of {at_once}: {fates:?}");
    assert_eq!(fates[count], Reason::RateExceeded);
}

fn ways(family: Family) -> [Way; 2] {
    [out_of(WEB, WEB_PARTY, API_PARTY, family), out_of(WEB, WEB_PARTY, WORLD_PARTY, family)]
}

#[test]
fn what_a_workload_sends_is_limited_wherever_it_goes() {
    for family in FAMILIES {
        for way in ways(family) {
            let mut datapath = limited(WEB, |web| web.egress_rate = RATE);
            assert_limited(&mut datapath, from_endpoint(WEB), &packet(way));
            // The other direction is not.
            let back = arriving(API_PARTY, WEB_PARTY, family);
            assert_eq!(datapath.fate(to_endpoint(WEB, API), &packet(back)), Reason::DeliveredLocal);
        }
    }
}

#[test]
fn what_is_delivered_to_a_workload_is_limited_wherever_it_comes_from() {
    for family in FAMILIES {
        let inline = packet(out_of(WEB, WEB_PARTY, API_PARTY, family));
        let limit = || limited(API, |api| api.ingress_rate = RATE);
        assert_limited(&mut limit(), from_endpoint(WEB), &inline);
        let from_world = packet(arriving(WORLD_PARTY, API_PARTY, family));
        assert_limited(&mut limit(), to_endpoint(API, UPLINK), &from_world);
    }
}

#[test]
fn a_workload_behind_a_tap_is_limited_once_by_its_own_hook() {
    let mut datapath = limited(TAP, |tap| tap.ingress_rate = RATE);
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, TAP_PARTY, family);
        for _ in 0..PACKETS {
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet(way)), Reason::DeliveredLocal);
        }
    }
    let family = FAMILIES[0];
    let arriving = packet(arriving(WEB_PARTY, TAP_PARTY, family));
    assert_limited(&mut datapath, to_endpoint(TAP, WEB), &arriving);
}

#[test]
fn a_workload_without_a_rate_is_not_limited_and_a_new_one_begins_with_a_full_bucket() {
    let mut datapath = limited(WEB, |web| web.egress_rate = RATE);
    let packet = packet(out_of(WEB, WEB_PARTY, WORLD_PARTY, FAMILIES[0]));
    assert_limited(&mut datapath, from_endpoint(WEB), &packet);
    datapath.change(|world| world.endpoints.get_mut(&WEB).unwrap().egress_rate = 0);
    for _ in 0..PACKETS {
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredStack);
    }
    // The interface's number is another endpoint's now.
    datapath.write(&[Step::Endpoint { ifindex: WEB, endpoint: None }]);
    datapath.change(|world| world.endpoints.get_mut(&WEB).unwrap().egress_rate = RATE);
    assert_limited(&mut datapath, from_endpoint(WEB), &packet);
}

/// Where fields are in `struct __sk_buff`.
const TIME_AT: usize = 152;
const WIRE_LENGTH_AT: usize = 160;

/// When the packet is to depart; 0: at once.
fn departure(datapath: &mut Datapath, packet: &[u8], wire_bytes: u32) -> u64 {
    let mut given = context(from_endpoint(WEB));
    given[WIRE_LENGTH_AT..][..4].copy_from_slice(&wire_bytes.to_ne_bytes());
    let (mut taken, mut answer) = (given, vec![0; packet.len() + 256]);
    let program = datapath.object.program("tc_from_endpoint").unwrap();
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut answer),
            ctx_in: Some(&given),
            ctx_out: Some(&mut taken),
            ..TestRunOptions::default()
        })
        .unwrap();
    assert_ne!(result.return_value, 2, "it is dropped");
    u64::from_ne_bytes(taken[TIME_AT..][..8].try_into().unwrap())
}

#[test]
fn what_leaves_the_node_departs_at_its_rate_where_queues_wait() {
    for family in FAMILIES {
        let mut datapath = limited(WEB, |web| {
            web.egress_rate = RATE;
            web.flags |= endpoint_flags::DEPARTURES;
        });
        let outside = packet(out_of(WEB, WEB_PARTY, WORLD_PARTY, family));
        let elsewhere = packet(out_of(WEB, WEB_PARTY, DB_PARTY, family));
        let inside = packet(out_of(WEB, WEB_PARTY, API_PARTY, family));
        let bytes = u32::try_from(outside.len()).unwrap();
        assert_eq!(departure(&mut datapath, &outside, bytes), 0, "the first is not ahead");
        let second = departure(&mut datapath, &outside, bytes);
        // As long on the wire as ten: a packet that is cut later.
        let third = departure(&mut datapath, &elsewhere, 10 * bytes);
        assert_eq!(third - second, nanoseconds(bytes.into(), RATE));
        assert_eq!(departure(&mut datapath, &inside, bytes), 0, "nothing waits within the node");
        let fifth = departure(&mut datapath, &outside, bytes);
        assert_eq!(fifth - third, nanoseconds(u64::from(10 * bytes), RATE) + nanoseconds(bytes.into(), RATE));
        assert_limited_further(&mut datapath, &outside);
    }
}

/// However long a queue can be, nothing waits for longer than what may be ahead.
fn assert_limited_further(datapath: &mut Datapath, packet: &[u8]) {
    let fates: Vec<Reason> = (0..PACKETS).map(|_| datapath.fate(from_endpoint(WEB), packet)).collect();
    assert!(fates.contains(&Reason::RateExceeded), "{fates:?}");
}
