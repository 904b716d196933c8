//! Clients outside, backends elsewhere: packets go on as this node's own, and answers go back through it.

use weft_noded::balance::tables::{OwnAddresses, Step};
use weft_noded::kernel::Datapath as _;
use weft_shared::layout::{Class, Config, Direction, Reason};

use super::{
    FRONTEND, PORT, TARGET, at,
    packets::{parties, sctp},
    table,
};
use crate::{
    harness::{Datapath, FROM_UPLINK, Verdict},
    packets::{ACK, SYN, TCP, Way, arriving},
    policies::PolicyTable,
    world::{self, DB_PARTY, FAMILIES, Family, HOST_PARTY, TAP_PARTY, WORLD_PARTY, deny_all, port_row, rule},
};

const CLIENT: u16 = 40_000;
const PORTS: [u16; 2] = [61_000, 61_002];

fn balancing(family: Family) -> Datapath {
    let [snat_first_port, snat_last_port] = PORTS;
    let config = Config {
        overlay_ifindex: world::OVERLAY,
        tell_again_after: 0,
        snat_first_port,
        snat_last_port,
        ..Config::DEFAULT
    };
    let mut datapath = Datapath::with_config(config);
    datapath.serve(FRONTEND, family, &table(&[DB_PARTY], family));
    let own = OwnAddresses { v4: Some(HOST_PARTY.v4), v6: Some(HOST_PARTY.v6) };
    datapath.object.write_services(&[Step::OwnAddresses(own)]).unwrap();
    datapath
}

fn question(family: Family) -> Way {
    arriving(WORLD_PARTY, FRONTEND, family)
}

#[test]
fn a_question_goes_into_the_overlay_as_this_nodes_own_from_a_port_that_stays() {
    for family in FAMILIES {
        let mut datapath = balancing(family);
        let way = question(family);
        for packets in [
            vec![way.tcp(CLIENT, PORT, SYN), way.tcp(CLIENT, PORT, ACK)],
            vec![way.udp(CLIENT, PORT), way.datagram(CLIENT, PORT, 900)],
            vec![sctp(&way, CLIENT, PORT, 9), sctp(&way, CLIENT, PORT, 333)],
        ] {
            let mut met = Vec::new();
            for packet in packets {
                let (reason, outcome) = datapath.reason(FROM_UPLINK, &packet);
                assert_eq!((reason, outcome.verdict), (Reason::DeliveredOverlay, Verdict::Redirect));
                let (source, destination) = parties(&outcome.packet);
                assert_eq!(source.0, HOST_PARTY.address(family));
                assert!((PORTS[0]..=PORTS[1]).contains(&source.1), "{source:?}");
                assert_eq!(destination, at(DB_PARTY, family, TARGET));
                met.push(source);
            }
            assert_eq!(met[0], met[1]);
        }
    }
}

#[test]
fn each_connection_has_a_port_of_its_own_until_none_is_left() {
    for family in FAMILIES {
        let mut datapath = balancing(family);
        let mut met = std::collections::BTreeSet::new();
        for client in [1, 2, 3] {
            let outcome = datapath.run(FROM_UPLINK, &question(family).udp(client, PORT));
            met.insert(parties(&outcome.packet).0);
        }
        assert_eq!(met.len(), 3);
        assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(4, PORT)), Reason::NoPortLeft);
        // Those that have one keep it.
        assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(1, PORT)), Reason::DeliveredOverlay);
    }
}

/// As if the client called the node's own port: the target's and the backend are not this node's to judge.
#[test]
fn the_nodes_own_policy_judges_the_client() {
    for family in FAMILIES {
        let mut datapath = balancing(family);
        datapath.change(|world| world.judge_host(deny_all(), true));
        assert_eq!(
            datapath.fate(FROM_UPLINK, &question(family).tcp(CLIENT, PORT, SYN)),
            Reason::PolicyDenied
        );
        assert_eq!(datapath.object.connections().unwrap(), Vec::new(), "no port is taken");
        datapath.change(|world| {
            let mut table: PolicyTable = deny_all();
            let key = port_row(Direction::Ingress, Class::World as u32, TCP, PORT);
            table.insert(key, rule(weft_shared::layout::Action::Allow, 1));
            world.judge_host(table, true);
        });
        for flags in [SYN, ACK] {
            let packet = question(family).tcp(CLIENT, PORT, flags);
            assert_eq!(datapath.fate(FROM_UPLINK, &packet), Reason::DeliveredOverlay);
        }
        assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(CLIENT, PORT)), Reason::PolicyDenied);
        datapath.change(|world| world.judge_host(deny_all(), true));
        let packet = question(family).tcp(CLIENT, PORT, ACK);
        assert_eq!(datapath.fate(FROM_UPLINK, &packet), Reason::PolicyDenied, "revoked");
    }
}

#[test]
fn nobody_outside_has_an_address_of_ours_here_either() {
    for family in FAMILIES {
        let mut datapath = balancing(family);
        for (from, expected) in [(TAP_PARTY, Reason::PoolSourceOutsideOverlay), (HOST_PARTY, Reason::Spoofed)]
        {
            let packet = arriving(from, FRONTEND, family).udp(CLIENT, PORT);
            assert_eq!(datapath.fate(FROM_UPLINK, &packet), expected);
        }
        assert_eq!(datapath.object.connections().unwrap(), Vec::new());
    }
}

/// What backends of the fleet answer comes by the overlay.
#[test]
fn nobody_outside_answers_for_an_endpoint_of_another_node() {
    for family in FAMILIES {
        let mut datapath = balancing(family);
        let asked = datapath.run(FROM_UPLINK, &question(family).udp(CLIENT, PORT));
        let ((_, own), _) = parties(&asked.packet);
        let answer = arriving(DB_PARTY, HOST_PARTY, family).udp(TARGET, own);
        assert_eq!(datapath.fate(FROM_UPLINK, &answer), Reason::PoolSourceOutsideOverlay);
    }
}

#[test]
fn a_node_without_an_address_of_its_own_sends_nothing_on() {
    for family in FAMILIES {
        let mut datapath = balancing(family);
        datapath.object.write_services(&[Step::OwnAddresses(OwnAddresses { v4: None, v6: None })]).unwrap();
        assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(CLIENT, PORT)), Reason::ServiceElsewhere);
        datapath
            .object
            .write_services(&[Step::OwnAddresses(OwnAddresses {
                v4: Some(HOST_PARTY.v4),
                v6: Some(HOST_PARTY.v6),
            })])
            .unwrap();
        datapath.change(|world| world.nodes.get_mut(&0).unwrap().identity = 0);
        assert_eq!(datapath.fate(FROM_UPLINK, &question(family).udp(CLIENT, PORT)), Reason::ServiceElsewhere);
    }
}
