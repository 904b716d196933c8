//! What goes into the overlay and comes out of it: endpoints' packets, and the nodes' own.

use std::net::{IpAddr, Ipv4Addr};

use weft_shared::layout::{Action, Class, Direction, Event, Peer, Point, Reason};

use crate::{
    harness::{Datapath, FROM_OVERLAY, FROM_UPLINK, Place, TO_OVERLAY, Verdict, from_endpoint},
    packets::{ACK, SYN, TCP, UDP, Way, arriving, out_of},
    policies::PolicyTable,
    tunnel::Tunnel,
    world::{
        CACHE_NODE, CACHE_PARTY, DB_IDENTITY, DB_NODE, DB_NODE_PARTY, DB_PARTY, FAMILIES, Family,
        HOST_IDENTITY, HOST_PARTY, INIT_PARTY, NOBODY_PARTY, OVERLAY, Party, REMOTE_NODE_IDENTITY,
        UNTOLD_PARTY, UPLINK, WEB, WEB_IDENTITY, WEB_PARTY, WEB_SLOT, WORLD_PARTY, allow_all, deny_all,
        peer_row, port_row, rule,
    },
};

const RULE: u32 = 77;

#[test]
fn without_tunnel_metadata_nothing_comes_out_of_the_overlay() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        let packet = arriving(DB_PARTY, WEB_PARTY, family).tcp(1000, 80, SYN);
        assert_eq!(datapath.fate(FROM_OVERLAY, &packet), Reason::UnknownTunnelPeer);
    }
}

#[test]
fn the_nodes_own_packets_go_to_the_parts_of_the_pools_that_other_nodes_have() {
    let mut datapath = Datapath::new();
    for family in FAMILIES {
        for (to, expected) in [
            (DB_PARTY, Reason::DeliveredOverlay),
            (CACHE_PARTY, Reason::DeliveredOverlay),
            (UNTOLD_PARTY, Reason::DeliveredOverlay),
            (NOBODY_PARTY, Reason::NoEndpoint),
            (WEB_PARTY, Reason::NoEndpoint),
            (INIT_PARTY, Reason::NoEndpoint),
            (WORLD_PARTY, Reason::NoRoute),
            (DB_NODE_PARTY, Reason::NoRoute),
            (HOST_PARTY, Reason::NoRoute),
        ] {
            for packet in whole_and_in_pieces(&arriving(HOST_PARTY, to, family)) {
                let (reason, outcome) = datapath.reason(TO_OVERLAY, &packet);
                if reason == Reason::FragmentWithoutFirst {
                    assert!(expected.is_drop(), "the first one passed");
                    continue;
                }
                let verdict = if reason.is_drop() { Verdict::Shot } else { Verdict::Ok };
                assert_eq!((reason, outcome.verdict), (expected, verdict), "{to:?}");
                assert_eq!(outcome.packet, packet);
            }
        }
    }
    let groups: [IpAddr; 2] = [Ipv4Addr::new(224, 0, 0, 22).into(), "ff02::16".parse().unwrap()];
    for to in groups {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let way = Way { to, ..arriving(HOST_PARTY, DB_PARTY, family) };
        assert_eq!(datapath.fate(TO_OVERLAY, &way.udp(1, 2)), Reason::Multicast);
    }
    let mut lldp = arriving(HOST_PARTY, DB_PARTY, Family::V4).udp(1, 2);
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(datapath.fate(TO_OVERLAY, &lldp), Reason::UnknownEtherType);
}

fn whole_and_in_pieces(way: &Way) -> Vec<Vec<u8>> {
    let pieces = way.cut(&way.datagram(1000, 80, 40), &[16, 32], 7);
    [way.tcp(1000, 80, SYN), way.udp(1000, 80), way.ping(7)].into_iter().chain(pieces).collect()
}

#[test]
fn what_is_not_the_nodes_own_does_not_go_into_the_overlay_from_the_stack() {
    let mut datapath = Datapath::new();
    // Of the host, and nothing that other nodes know it by.
    let bridge = Party { v4: Ipv4Addr::new(172, 17, 0, 1), v6: "2001:db8:17::1".parse().unwrap() };
    datapath.change(|world| {
        let host = Peer { identity: HOST_IDENTITY, class: Class::Host as u32, node: 0, ifindex: 0 };
        for family in FAMILIES {
            world.ipcache.insert(bridge.address(family).into(), host);
        }
    });
    let forwarded = Place { ingress_ifindex: UPLINK, ..TO_OVERLAY };
    let of_an_endpoint = Place { ingress_ifindex: WEB, ..TO_OVERLAY };
    let out_of_it = Place { ingress_ifindex: OVERLAY, ..TO_OVERLAY };
    for family in FAMILIES {
        let mut fate = |place, from| datapath.fate(place, &arriving(from, DB_PARTY, family).udp(1000, 80));
        for from in [bridge, WORLD_PARTY, WEB_PARTY, DB_NODE_PARTY, DB_PARTY, NOBODY_PARTY] {
            assert_eq!(fate(TO_OVERLAY, from), Reason::NotTheNodes, "{from:?}");
        }
        for place in [forwarded, of_an_endpoint, out_of_it] {
            for from in [HOST_PARTY, WORLD_PARTY, WEB_PARTY] {
                assert_eq!(fate(place, from), Reason::NotTheNodes, "{place:?} {from:?}");
            }
        }
        assert_eq!(fate(TO_OVERLAY, HOST_PARTY), Reason::DeliveredOverlay);
    }
}

#[test]
fn a_node_without_an_identity_or_a_way_sends_nothing_into_the_overlay() {
    let mut datapath = Datapath::new();
    let packet = arriving(HOST_PARTY, DB_PARTY, Family::V4).udp(1000, 80);
    datapath.change(|world| world.nodes.retain(|slot, _| *slot != DB_NODE));
    assert_eq!(datapath.fate(TO_OVERLAY, &packet), Reason::NoRoute);
    datapath.change(|world| world.nodes.get_mut(&0).unwrap().identity = 0);
    assert_eq!(datapath.fate(TO_OVERLAY, &packet), Reason::NotTheNodes);
}

/// TCP and UDP to one port, in one direction.
fn open_at(direction: Direction, peer: u32, port: u16) -> PolicyTable {
    let mut table = deny_all();
    for protocol in [TCP, UDP] {
        table.insert(port_row(direction, peer, protocol, port), rule(Action::Allow, RULE));
    }
    table
}

#[test]
fn where_the_node_is_judged_its_policy_says_what_it_sends_to_endpoints_of_others_and_answers_come() {
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    // By the endpoint's identity, and by its class.
    for peer in [DB_IDENTITY, Class::Fleet as u32] {
        datapath.change(|world| world.judge_host(open_at(Direction::Egress, peer, 8080), true));
        for family in FAMILIES {
            let way = arriving(HOST_PARTY, DB_PARTY, family);
            let denied = datapath.judge(TO_OVERLAY, &way.tcp(1000, 8081, SYN)).unwrap_err();
            let Event { reason, point, direction, .. } = denied;
            let egress = Direction::Egress as u8;
            assert_eq!(
                (reason, point, direction),
                (Reason::PolicyDenied as u32, Point::ToOverlay as u32, egress)
            );
            assert_eq!((denied.source_identity, denied.destination_identity), (HOST_IDENTITY, DB_IDENTITY));
            let answer = |datapath: &mut Datapath, packet: &[u8]| {
                tunnel.fate(datapath, Family::V4, DB_IDENTITY, packet)
            };
            for (question, reply) in [
                (way.tcp(1000, 8080, SYN), way.back().tcp(8080, 1000, SYN | ACK)),
                (way.udp(1000, 8080), way.back().udp(8080, 1000)),
            ] {
                assert_eq!(answer(&mut datapath, &reply), Reason::PolicyDenied, "nobody asked");
                assert_eq!(datapath.fate(TO_OVERLAY, &question), Reason::DeliveredOverlay);
                assert_eq!(answer(&mut datapath, &reply), Reason::DeliveredStack);
                assert_eq!(datapath.fate(TO_OVERLAY, &question), Reason::DeliveredOverlay);
                // Out of the overlay nobody vouches for the endpoint.
                assert_eq!(datapath.fate(FROM_UPLINK, &reply), Reason::PolicyDenied);
                assert_eq!(answer(&mut datapath, &reply), Reason::DeliveredStack);
            }
            datapath.forget_flows();
        }
    }
}

#[test]
fn what_the_node_and_another_ones_endpoint_say_is_judged_once_also_where_the_node_was_not_told_of_it() {
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    for to in [DB_PARTY, UNTOLD_PARTY] {
        datapath.change(|world| {
            world.judge_host(open_at(Direction::Egress, Class::Fleet as u32, 8080), true);
            let unknown = world.prefixes.values_mut().filter(|peer| peer.node == DB_NODE);
            unknown.for_each(|peer| {
                (peer.identity, peer.class) = (Class::Fleet as u32, Class::Fleet as u32);
            });
        });
        for family in FAMILIES {
            let question = arriving(HOST_PARTY, to, family).udp(1000, 8080);
            let answer = arriving(HOST_PARTY, to, family).back().udp(8080, 1000);
            for _ in 0..2 {
                assert_eq!(datapath.fate(TO_OVERLAY, &question), Reason::DeliveredOverlay);
                let answered = tunnel.fate(&mut datapath, family, DB_IDENTITY, &answer);
                assert_eq!(answered, Reason::DeliveredStack);
                // Without a new epoch: what is remembered holds.
                datapath.rewrite(|world| world.judge_host(deny_all(), true));
            }
            datapath.change(|_| ());
            assert_eq!(datapath.fate(TO_OVERLAY, &question), Reason::PolicyDenied);
            assert_eq!(tunnel.fate(&mut datapath, family, DB_IDENTITY, &answer), Reason::PolicyDenied);
            let opened = open_at(Direction::Egress, Class::Fleet as u32, 8080);
            datapath.change(|world| world.judge_host(opened, true));
        }
        datapath.forget_flows();
    }
}

#[test]
fn endpoints_of_other_nodes_reach_the_node_where_its_policy_allows() {
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    for family in FAMILIES {
        let way = arriving(DB_PARTY, HOST_PARTY, family);
        datapath.change(|world| world.host = None);
        for packet in whole_and_in_pieces(&way) {
            assert_eq!(tunnel.fate(&mut datapath, family, DB_IDENTITY, &packet), Reason::DeliveredStack);
        }
        let denies = |peer| {
            let mut table = allow_all();
            table.insert(peer_row(Direction::Ingress, peer), rule(Action::Deny, RULE));
            table
        };
        for (table, expected) in [
            (open_at(Direction::Ingress, DB_IDENTITY, 80), Reason::DeliveredStack),
            (open_at(Direction::Ingress, Class::Fleet as u32, 80), Reason::DeliveredStack),
            (open_at(Direction::Ingress, Class::Unmanaged as u32, 80), Reason::PolicyDenied),
            (denies(DB_IDENTITY), Reason::PolicyDenied),
        ] {
            datapath.change(|world| world.judge_host(table, true));
            let (reason, event) = tunnel.judge(&mut datapath, family, DB_IDENTITY, &way.tcp(1000, 80, SYN));
            assert_eq!(reason, expected);
            if let Some(event) = event {
                assert_eq!(event.source_identity, DB_IDENTITY);
                assert_eq!(event.point, Point::FromOverlay as u32);
                continue;
            }
            let answer = way.back().tcp(80, 1000, SYN | ACK);
            assert_eq!(datapath.fate(TO_OVERLAY, &answer), Reason::DeliveredOverlay);
            assert_eq!(
                tunnel.fate(&mut datapath, family, DB_IDENTITY, &way.tcp(1000, 80, ACK)),
                Reason::DeliveredStack
            );
        }
    }
}

#[test]
fn an_endpoints_packets_to_another_node_go_by_the_overlay_and_so_do_the_answers() {
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    let mut table = deny_all();
    table.insert(peer_row(Direction::Egress, REMOTE_NODE_IDENTITY), rule(Action::Allow, RULE));
    datapath.change(|world| drop(world.policies.insert(WEB_SLOT, table)));
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, DB_NODE_PARTY, family);
        let (reason, outcome) = datapath.reason(from_endpoint(WEB), &way.tcp(1000, 22, SYN));
        assert_eq!((reason, outcome.verdict), (Reason::DeliveredOverlay, Verdict::Redirect));
        let hops = 14 + if family == Family::V4 { 8 } else { 7 };
        assert_eq!(outcome.packet[hops], 63);
        let mut answer = |port| {
            let packet = way.back().tcp(22, port, SYN | ACK);
            tunnel.fate(&mut datapath, Family::V4, REMOTE_NODE_IDENTITY, &packet)
        };
        assert_eq!(answer(1001), Reason::PolicyDenied);
        assert_eq!(answer(1000), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(WEB), &way.tcp(1000, 22, ACK)), Reason::DeliveredOverlay);
        // To its own node it needs none.
        datapath.change(|world| drop(world.policies.insert(WEB_SLOT, allow_all())));
        let own = out_of(WEB, WEB_PARTY, HOST_PARTY, family).udp(1000, 53);
        assert_eq!(datapath.fate(from_endpoint(WEB), &own), Reason::DeliveredStack);
        let mut table = deny_all();
        table.insert(peer_row(Direction::Egress, REMOTE_NODE_IDENTITY), rule(Action::Allow, RULE));
        datapath.change(|world| drop(world.policies.insert(WEB_SLOT, table)));
    }
}

#[test]
fn what_another_node_sends_is_judged_the_same_by_the_overlay_and_by_the_uplink() {
    const CLASS: u32 = Class::RemoteNode as u32;
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    let row = |peer, action| {
        let other = if action == Action::Allow { deny_all() } else { allow_all() };
        let mut table = other;
        table.insert(peer_row(Direction::Ingress, peer), rule(action, RULE));
        table
    };
    let others = [Class::Fleet as u32, Class::World as u32, Class::Host as u32, WEB_IDENTITY, DB_IDENTITY];
    let tables = [REMOTE_NODE_IDENTITY, CLASS].into_iter().chain(others);
    for peer in tables {
        for action in [Action::Allow, Action::Deny] {
            datapath.change(|world| drop(world.policies.insert(WEB_SLOT, row(peer, action))));
            let is_it = peer == REMOTE_NODE_IDENTITY || peer == CLASS;
            let allowed = is_it == (action == Action::Allow);
            for family in FAMILIES {
                let packet = arriving(DB_NODE_PARTY, WEB_PARTY, family).tcp(1000, 80, SYN);
                let expected = if allowed { Reason::DeliveredLocal } else { Reason::PolicyDenied };
                let (reason, event) = tunnel.judge(&mut datapath, Family::V4, REMOTE_NODE_IDENTITY, &packet);
                assert_eq!(reason, expected, "{peer} {action:?}");
                datapath.forget_flows();
                let by_uplink = datapath.judge(FROM_UPLINK, &packet).err();
                let said = |event: Event| {
                    let ends = (event.source_identity, event.destination_identity);
                    (event.reason, event.rule, event.direction, ends)
                };
                assert_eq!(event.map(said), by_uplink.map(said));
                datapath.forget_flows();
            }
        }
    }
}

#[test]
fn a_node_speaks_for_itself_with_its_own_identity_and_address_alone() {
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    let third = Party { v4: Ipv4Addr::new(192, 0, 2, 3), v6: "2001:db8::3".parse().unwrap() };
    let fourth = Party { v4: Ipv4Addr::new(192, 0, 2, 4), v6: "2001:db8::4".parse().unwrap() };
    datapath.change(|world| {
        let class = Class::RemoteNode as u32;
        let node = Peer { identity: REMOTE_NODE_IDENTITY, class, node: CACHE_NODE, ifindex: 0 };
        for family in FAMILIES {
            world.ipcache.insert(third.address(family).into(), node);
            let nowhere = Peer { node: 0, ..node };
            world.ipcache.insert(fourth.address(family).into(), nowhere);
        }
    });
    for family in FAMILIES {
        for (identity, from, expected) in [
            (REMOTE_NODE_IDENTITY, DB_NODE_PARTY, Reason::DeliveredLocal),
            (DB_IDENTITY, DB_PARTY, Reason::DeliveredLocal),
            // An endpoint's identity from the node, the node's from an endpoint, and another node's.
            (DB_IDENTITY, DB_NODE_PARTY, Reason::WrongNodeIdentity),
            (REMOTE_NODE_IDENTITY, DB_PARTY, Reason::WrongNodeIdentity),
            (REMOTE_NODE_IDENTITY, UNTOLD_PARTY, Reason::WrongNodeIdentity),
            (HOST_IDENTITY, DB_NODE_PARTY, Reason::WrongNodeIdentity),
            // Nor for another node of the same identity, for this one, for what is here, or for the world.
            (REMOTE_NODE_IDENTITY, third, Reason::Spoofed),
            (REMOTE_NODE_IDENTITY, fourth, Reason::Spoofed),
            (REMOTE_NODE_IDENTITY, HOST_PARTY, Reason::Spoofed),
            (HOST_IDENTITY, HOST_PARTY, Reason::Spoofed),
            (REMOTE_NODE_IDENTITY, WEB_PARTY, Reason::Spoofed),
            (REMOTE_NODE_IDENTITY, CACHE_PARTY, Reason::Spoofed),
            (REMOTE_NODE_IDENTITY, WORLD_PARTY, Reason::Spoofed),
            (Class::RemoteNode as u32, DB_NODE_PARTY, Reason::UnknownTunnelPeer),
            (Class::Host as u32, DB_NODE_PARTY, Reason::UnknownTunnelPeer),
            (0, DB_NODE_PARTY, Reason::UnknownTunnelPeer),
        ] {
            let packet = arriving(from, WEB_PARTY, family).udp(1000, 80);
            assert_eq!(
                tunnel.fate(&mut datapath, family, identity, &packet),
                expected,
                "{identity} {from:?}"
            );
        }
        // Nodes talk with each other outside of the overlay.
        let between = arriving(DB_NODE_PARTY, HOST_PARTY, family).udp(1000, 80);
        assert_eq!(tunnel.fate(&mut datapath, family, REMOTE_NODE_IDENTITY, &between), Reason::Spoofed);
    }
}

#[test]
fn a_node_whose_labels_change_is_shut_out_until_this_one_knows_also_in_flows_that_were_there() {
    const NEW: u32 = 1001;
    let mut datapath = Datapath::new();
    let tunnel = Tunnel::new(&mut datapath);
    let packet = arriving(DB_NODE_PARTY, WEB_PARTY, Family::V4).udp(1000, 80);
    let fate = |datapath: &mut Datapath, identity| tunnel.fate(datapath, Family::V4, identity, &packet);
    assert_eq!(fate(&mut datapath, REMOTE_NODE_IDENTITY), Reason::DeliveredLocal);
    // The node has heard of its new identity, this one of nothing.
    assert_eq!(fate(&mut datapath, NEW), Reason::IdentityNotYetKnown);
    datapath.change(|world| world.identities_through = NEW);
    assert_eq!(fate(&mut datapath, NEW), Reason::WrongNodeIdentity);
    datapath.change(|world| {
        world.nodes.get_mut(&DB_NODE).unwrap().identity = NEW;
        for family in FAMILIES {
            let address = DB_NODE_PARTY.address(family).into();
            world.ipcache.get_mut(&address).unwrap().identity = NEW;
        }
    });
    assert_eq!(fate(&mut datapath, REMOTE_NODE_IDENTITY), Reason::WrongNodeIdentity);
    assert_eq!(fate(&mut datapath, NEW), Reason::DeliveredLocal);
}
