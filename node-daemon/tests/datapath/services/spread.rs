//! How flows are spread over backends at the packet: by weight, and so that a node that knows nothing of them finds the same.

use weft_shared::balance::table::{Backend, Manner, Table};

use super::{FRONTEND, MANNER, PORT, TARGET, at, backend, packets::parties};
use crate::{
    harness::{Datapath, FROM_UPLINK, Place, from_endpoint},
    packets::{ACK, SYN, Way, arriving, out_of},
    world::{API_PARTY, FAMILIES, Family, TAP_PARTY, WEB, WEB_PARTY, WORLD_PARTY},
};

const FLOWS: u16 = 4000;
const FIRST: u16 = 20_000;

/// Three parts to one.
fn weighted(random: bool, family: Family) -> Table {
    let heavy = Backend { weight: 3, ..backend(API_PARTY, family, TARGET) };
    Table::new(Manner { random, ..MANNER }, vec![heavy, backend(TAP_PARTY, family, TARGET)])
}

fn serving(random: bool, family: Family) -> Datapath {
    let mut datapath = Datapath::new();
    datapath.serve(FRONTEND, family, &weighted(random, family));
    datapath
}

/// Who call: an endpoint, and somebody outside.
fn callers(family: Family) -> [(Place, Way); 2] {
    [
        (from_endpoint(WEB), out_of(WEB, WEB_PARTY, FRONTEND, family)),
        (FROM_UPLINK, arriving(WORLD_PARTY, FRONTEND, family)),
    ]
}

/// Whether each flow gets the heavy one.
fn chosen(
    datapath: &mut Datapath,
    place: Place,
    family: Family,
    packet: impl Fn(u16) -> Vec<u8>,
) -> Vec<bool> {
    let ports = FIRST..FIRST + FLOWS;
    let mut gets_heavy = |port| {
        let found = parties(&datapath.run(place, &packet(port)).packet).1;
        assert!(
            found == at(API_PARTY, family, TARGET) || found == at(TAP_PARTY, family, TARGET),
            "{found:?}"
        );
        found == at(API_PARTY, family, TARGET)
    };
    ports.map(&mut gets_heavy).collect()
}

#[test]
fn flows_are_spread_by_weight_whatever_the_algorithm() {
    for (random, family) in
        [false, true].into_iter().flat_map(|random| FAMILIES.map(|family| (random, family)))
    {
        let mut datapath = serving(random, family);
        for (place, way) in callers(family) {
            for heavy in [
                chosen(&mut datapath, place, family, |port| way.tcp(port, PORT, SYN)),
                chosen(&mut datapath, place, family, |port| way.datagram(port, PORT, 20)),
            ] {
                let count = heavy.iter().filter(|heavy| **heavy).count();
                // 3,000 are due, and of the slots half a percent more or less; five standard deviations are 137.
                assert!(
                    (2848..=3152).contains(&count),
                    "{count} of {FLOWS}, by chance: {random}, {family:?}"
                );
                // Not in turns, nor in runs: neighbours differ as often as those who know nothing of each other.
                let differ = heavy.windows(2).filter(|pair| pair[0] != pair[1]).count();
                assert!((1350..=1650).contains(&differ), "{differ} neighbours differ");
            }
        }
    }
}

/// Of services by chance, too: rows are forgotten, and others' routes come to lead to other nodes.
#[test]
fn a_node_that_knows_nothing_of_a_flow_finds_the_backend_that_has_it() {
    for family in FAMILIES {
        let (mut one, mut other) = (serving(true, family), serving(true, family));
        for (place, way) in callers(family) {
            let opened = chosen(&mut one, place, family, |port| way.tcp(port, PORT, SYN));
            assert_eq!(chosen(&mut other, place, family, |port| way.tcp(port, PORT, ACK)), opened);
            let asked = chosen(&mut one, place, family, |port| way.datagram(port, PORT, 20));
            assert_eq!(chosen(&mut other, place, family, |port| way.datagram(port, PORT, 20)), asked);
        }
    }
}
