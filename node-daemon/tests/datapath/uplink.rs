//! What crosses the uplinks.

use etherparse::{NetSlice, SlicedPacket};
use weft_shared::layout::{Action, Class, Direction, Reason};

use crate::{
    harness::{Datapath, FROM_UPLINK, TO_UPLINK, Verdict},
    packets::{SYN, TCP, Way, arriving},
    policies::PolicyTable,
    world::{
        DB_NODE_PARTY, DB_PARTY, FAMILIES, HOST_PARTY, INIT_PARTY, NOBODY_PARTY, PARTNER_PARTY, UNTOLD_PARTY,
        WEB, WEB_PARTY, WEB_SLOT, WORLD_PARTY, deny_all, for_all, gateway_mac, mac, port_row, rule,
    },
};

#[test]
fn the_world_is_judged_by_the_receivers_policy() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| {
        let mut table: PolicyTable = deny_all();
        table.insert(port_row(Direction::Ingress, Class::World as u32, TCP, 80), rule(Action::Allow, 1));
        tables.policies.insert(WEB_SLOT, table);
    });
    for family in FAMILIES {
        for from in [WORLD_PARTY, PARTNER_PARTY] {
            let way = arriving(from, WEB_PARTY, family);
            let (reason, outcome) = datapath.reason(FROM_UPLINK, &way.tcp(1000, 80, SYN));
            assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
            assert_eq!(outcome.packet[..12], [mac(WEB), gateway_mac(WEB)].concat());
            let hops = match SlicedPacket::from_ethernet(&outcome.packet).unwrap().net.unwrap() {
                NetSlice::Ipv4(ip) => ip.header().ttl(),
                NetSlice::Ipv6(ip) => ip.header().hop_limit(),
                other @ NetSlice::Arp(_) => panic!("{other:?}"),
            };
            assert_eq!(hops, way.hops - 1);
            assert_eq!(datapath.fate(FROM_UPLINK, &way.tcp(1000, 81, SYN)), Reason::PolicyDenied);
            let last = Way { hops: 1, ..way };
            assert_eq!(datapath.fate(FROM_UPLINK, &last.tcp(1000, 80, SYN)), Reason::TimeExceeded);
        }
        let remote_node = arriving(DB_NODE_PARTY, WEB_PARTY, family);
        assert_eq!(datapath.fate(FROM_UPLINK, &remote_node.tcp(1000, 80, SYN)), Reason::PolicyDenied);
    }
}

#[test]
fn sources_inside_the_pools_come_by_the_overlay_only() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        for from in [DB_PARTY, UNTOLD_PARTY, NOBODY_PARTY, WEB_PARTY] {
            let packet = arriving(from, crate::world::API_PARTY, family).udp(1000, 53);
            assert_eq!(datapath.fate(FROM_UPLINK, &packet), Reason::PoolSourceOutsideOverlay);
        }
    }
}

#[test]
fn nobody_outside_is_the_node_itself() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &deny_all()));
    for family in FAMILIES {
        let packet = arriving(HOST_PARTY, WEB_PARTY, family).udp(1000, 53);
        assert_eq!(datapath.fate(FROM_UPLINK, &packet), Reason::Spoofed);
    }
}

#[test]
fn what_is_for_an_endpoint_that_is_not_there_goes_no_further() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        for (to, expected) in [
            (NOBODY_PARTY, Reason::NoEndpoint),
            (DB_PARTY, Reason::NoEndpoint),
            (INIT_PARTY, Reason::EndpointInit),
        ] {
            assert_eq!(datapath.fate(FROM_UPLINK, &arriving(WORLD_PARTY, to, family).udp(1, 2)), expected);
        }
    }
}

#[test]
fn the_nodes_own_traffic_passes_untouched() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| for_all(tables, &deny_all()));
    for family in FAMILIES {
        let incoming = arriving(WORLD_PARTY, HOST_PARTY, family);
        let outgoing = arriving(HOST_PARTY, WORLD_PARTY, family);
        let between = arriving(HOST_PARTY, DB_NODE_PARTY, family);
        for (place, packet) in [
            (FROM_UPLINK, incoming.tcp(1000, 22, SYN)),
            (FROM_UPLINK, incoming.protocol(50, &[0; 40])),
            (FROM_UPLINK, between.back().udp(1000, 8472)),
            (TO_UPLINK, outgoing.tcp(1000, 443, SYN)),
            (TO_UPLINK, between.udp(1000, 8472)),
        ] {
            let (reason, outcome) = datapath.reason(place, &packet);
            assert_eq!((reason, outcome.verdict), (Reason::DeliveredStack, Verdict::Ok));
            assert_eq!(outcome.packet, packet);
        }
    }
    let mut lldp = arriving(WORLD_PARTY, HOST_PARTY, FAMILIES[0]).udp(1, 2);
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    for place in [FROM_UPLINK, TO_UPLINK] {
        assert_eq!(datapath.fate(place, &lldp), Reason::DeliveredStack);
    }
}

#[test]
fn only_endpoints_of_this_node_leave_with_a_pool_address_and_only_for_outside() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let leaves = |from, to| arriving(from, to, family).udp(1000, 53);
        assert_eq!(datapath.fate(TO_UPLINK, &leaves(WEB_PARTY, WORLD_PARTY)), Reason::DeliveredStack);
        for from in [NOBODY_PARTY, DB_PARTY, UNTOLD_PARTY] {
            assert_eq!(datapath.fate(TO_UPLINK, &leaves(from, WORLD_PARTY)), Reason::Spoofed);
        }
        for from in [WEB_PARTY, HOST_PARTY] {
            assert_eq!(datapath.fate(TO_UPLINK, &leaves(from, DB_PARTY)), Reason::NoRoute);
        }
    }
}
