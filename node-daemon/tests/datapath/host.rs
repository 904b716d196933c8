//! The node itself as a subject: at each hook where its processes send and get something.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_noded::plan::tables::{HostRow, Step};
use weft_shared::{
    layout::{Action, Class, Direction, Event, Point, Reason, flow_flags},
    policy::model::Failsafe,
};

use crate::{
    harness::{Datapath, FROM_UPLINK, Place, TO_UPLINK, Verdict, from_endpoint, to_endpoint},
    packets::{ACK, ICMPV6, SYN, TCP, UDP, Way, arriving, out_of},
    policies::PolicyTable,
    world::{
        API, API_PARTY, DB_NODE_PARTY, DB_PARTY, FAMILIES, Family, HOST_IDENTITY, HOST_PARTY, HOST_SLOT,
        NOBODY_PARTY, PARTNER_PARTY, Party, REMOTE_NODE_IDENTITY, WEB, WEB_IDENTITY, WEB_PARTY, WORLD_PARTY,
        allow_all, deny_all, for_all, peer_row, port_row, rule,
    },
};

const WORLD: u32 = Class::World as u32;
/// What the policy of [`open_at`] allows, by everybody's direction and port.
const OPEN: u16 = 8080;
const SHUT: u16 = 8081;
const RULE: u32 = 77;

/// All that the node may do is TCP and UDP to port [`OPEN`], both ways; endpoints may do everything.
fn open_at() -> PolicyTable {
    let mut table = deny_all();
    for direction in Direction::ALL {
        for peer in [WORLD, Class::RemoteNode as u32, Class::Fleet as u32] {
            for protocol in [TCP, UDP] {
                table.insert(port_row(direction, peer, protocol, OPEN), rule(Action::Allow, RULE));
            }
        }
    }
    table
}

fn judged(own_endpoints_free: bool) -> Datapath {
    judged_by(open_at(), own_endpoints_free)
}

fn judged_by(table: PolicyTable, own_endpoints_free: bool) -> Datapath {
    let mut datapath = Datapath::new();
    datapath.change(|world| world.judge_host(table, own_endpoints_free));
    datapath
}

/// Everywhere that the node's own traffic goes by: what it gets or sends, and the way of the answer.
fn ways(family: Family) -> [(Place, Way, Place, Way); 5] {
    let in_by_uplink = |from: Party| arriving(from, HOST_PARTY, family);
    let out = arriving(HOST_PARTY, WORLD_PARTY, family);
    let by_web = out_of(WEB, WEB_PARTY, HOST_PARTY, family);
    let to_web = arriving(HOST_PARTY, WEB_PARTY, family);
    [
        (FROM_UPLINK, in_by_uplink(WORLD_PARTY), TO_UPLINK, in_by_uplink(WORLD_PARTY).back()),
        (FROM_UPLINK, in_by_uplink(DB_NODE_PARTY), TO_UPLINK, in_by_uplink(DB_NODE_PARTY).back()),
        (TO_UPLINK, out, FROM_UPLINK, out.back()),
        (from_endpoint(WEB), by_web, to_endpoint(WEB, 0), by_web.back()),
        (to_endpoint(WEB, 0), to_web, from_endpoint(WEB), to_web.back_from(WEB)),
    ]
}

fn passes(datapath: &mut Datapath, place: Place, packet: &[u8]) -> bool {
    match datapath.fate(place, packet) {
        Reason::DeliveredStack | Reason::DeliveredLocal => true,
        Reason::PolicyDenied => false,
        other => panic!("{place:?}: {other:?}"),
    }
}

#[test]
fn what_its_policy_allows_passes_at_every_hook_and_so_do_the_answers() {
    let mut datapath = judged(false);
    for family in FAMILIES {
        for (place, way, back_place, back) in ways(family) {
            let denied = datapath.judge(place, &way.tcp(1000, SHUT, SYN)).unwrap_err();
            let Event { reason, point, rule, .. } = denied;
            assert_eq!((reason, point, rule), (Reason::PolicyDenied as u32, place.point as u32, 0));
            assert!(!passes(&mut datapath, place, &way.udp(1000, SHUT)), "{place:?} {way:?}");
            assert!(
                !passes(&mut datapath, back_place, &back.udp(OPEN, 1000)),
                "nobody asked: {back_place:?}"
            );
            assert!(passes(&mut datapath, place, &way.udp(1000, OPEN)), "{place:?} {way:?}");
            assert!(passes(&mut datapath, back_place, &back.udp(OPEN, 1000)), "{back_place:?} {back:?}");
            assert!(passes(&mut datapath, place, &way.tcp(1000, OPEN, SYN)), "{place:?} {way:?}");
            let answer = back.tcp(OPEN, 1000, SYN | ACK);
            assert!(passes(&mut datapath, back_place, &answer), "{back_place:?} {back:?}");
            assert!(passes(&mut datapath, place, &way.tcp(1000, OPEN, ACK)), "{place:?} {way:?}");
        }
    }
}

#[test]
fn a_drop_says_who_was_judged_and_by_which_rule() {
    let mut table = allow_all();
    table.insert(port_row(Direction::Ingress, WEB_IDENTITY, TCP, SHUT), rule(Action::Deny, RULE));
    let mut datapath = judged_by(table, true);
    let packet = out_of(WEB, WEB_PARTY, HOST_PARTY, Family::V4).tcp(1000, SHUT, SYN);
    let event = datapath.judge(from_endpoint(WEB), &packet).unwrap_err();
    assert_eq!(event.rule, RULE);
    assert_eq!(event.direction, Direction::Ingress as u8);
    assert_eq!((event.source_identity, event.destination_identity), (WEB_IDENTITY, HOST_IDENTITY));
    assert_eq!(
        (event.destination_port, event.protocol, event.point),
        (SHUT, TCP, Point::FromEndpoint as u32)
    );
}

#[test]
fn both_the_endpoint_and_the_node_must_allow() {
    let mut datapath = judged(false);
    datapath.change(|world| {
        for_all(world, &deny_all());
        world.judge_host(allow_all(), false);
    });
    for family in FAMILIES {
        let packet = out_of(WEB, WEB_PARTY, HOST_PARTY, family).tcp(1000, OPEN, SYN);
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyDenied);
    }
}

#[test]
fn a_node_reaches_its_own_endpoints_freely_where_the_fleet_says_so() {
    let mut datapath = judged(true);
    for family in FAMILIES {
        let way = arriving(HOST_PARTY, WEB_PARTY, family);
        assert!(passes(&mut datapath, to_endpoint(WEB, 0), &way.tcp(1000, SHUT, SYN)));
        assert!(passes(&mut datapath, from_endpoint(WEB), &way.back_from(WEB).tcp(SHUT, 1000, SYN | ACK)));
        // But they don't reach it so.
        let back_door = way.back_from(WEB).tcp(1000, SHUT, SYN);
        assert!(!passes(&mut datapath, from_endpoint(WEB), &back_door));
    }
    // Switched off, the next packet is judged.
    datapath.change(|world| world.judge_host(open_at(), false));
    let way = arriving(HOST_PARTY, WEB_PARTY, Family::V4);
    assert!(!passes(&mut datapath, to_endpoint(WEB, 0), &way.tcp(1000, SHUT, ACK)));
}

#[test]
fn a_node_that_is_not_judged_is_left_alone_and_in_no_table() {
    let mut datapath = Datapath::new();
    datapath.change(|world| for_all(world, &deny_all()));
    for family in FAMILIES {
        for (place, way, ..) in ways(family).into_iter().take(3) {
            let broken = way.protocol(6, &[0; 3]);
            let later = way.cut(&way.datagram(1000, OPEN, 64), &[24, 48], 7).remove(2);
            for packet in [way.tcp(1000, SHUT, SYN), way.udp(1000, SHUT), way.icmp(3, 1), broken, later] {
                let (reason, outcome) = datapath.reason(place, &packet);
                assert_eq!((reason, outcome.verdict), (Reason::DeliveredStack, Verdict::Ok));
                assert_eq!(outcome.packet, packet);
            }
        }
    }
    assert_eq!(datapath.object.flows().unwrap(), []);
}

#[test]
fn what_a_node_only_passes_on_is_not_its_own() {
    let mut datapath = judged_by(deny_all(), true);
    let routed = Place { ingress_ifindex: 7, ..TO_UPLINK };
    for family in FAMILIES {
        let way = arriving(WORLD_PARTY, PARTNER_PARTY, family);
        assert!(passes(&mut datapath, FROM_UPLINK, &way.tcp(1000, SHUT, SYN)));
        assert!(passes(&mut datapath, routed, &way.tcp(1000, SHUT, SYN)));
        // What it sends under another's address is.
        assert!(!passes(&mut datapath, TO_UPLINK, &way.tcp(1000, SHUT, SYN)));
        // So is what it lends its address to.
        assert!(!passes(&mut datapath, routed, &arriving(HOST_PARTY, WORLD_PARTY, family).udp(1000, SHUT)));
    }
    assert_eq!(datapath.object.flows().unwrap(), []);
}

fn to_address(to: IpAddr) -> Way {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    Way { to, ..arriving(WORLD_PARTY, HOST_PARTY, family) }
}

#[test]
fn addresses_that_are_never_routed_on_are_the_nodes_own() {
    let mut datapath = judged(true);
    let of_the_link: [IpAddr; 7] = [
        Ipv4Addr::BROADCAST.into(),
        Ipv4Addr::new(224, 0, 0, 251).into(),
        Ipv4Addr::new(169, 254, 7, 7).into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    for to in of_the_link {
        assert!(!passes(&mut datapath, FROM_UPLINK, &to_address(to).udp(1000, SHUT)), "{to}");
        assert!(passes(&mut datapath, FROM_UPLINK, &to_address(to).udp(1000, OPEN)), "{to}");
        assert!(!passes(&mut datapath, TO_UPLINK, &to_address(to).udp(1, SHUT)));
    }
    // A frame for everybody is, whatever the address in it.
    let broadcast = Way { destination_mac: [0xff; 6], ..arriving(WORLD_PARTY, PARTNER_PARTY, Family::V4) };
    assert!(!passes(&mut datapath, FROM_UPLINK, &broadcast.udp(1000, SHUT)));
}

#[test]
fn what_the_node_sends_to_its_own_address_by_an_uplink_is_the_links() {
    // The broadcast address of a link is among the node's own.
    let mut datapath = judged(true);
    for family in FAMILIES {
        let way = Way { to: HOST_PARTY.address(family), ..arriving(HOST_PARTY, HOST_PARTY, family) };
        let way = Way { from: API_PARTY.address(family), ..way };
        assert_eq!(datapath.fate(TO_UPLINK, &way.udp(1000, SHUT)), Reason::DeliveredStack, "an endpoint's");
        let way = Way { from: WORLD_PARTY.address(family), ..way };
        assert!(!passes(&mut datapath, TO_UPLINK, &way.udp(1000, SHUT)));
        assert!(passes(&mut datapath, TO_UPLINK, &way.udp(1000, OPEN)));
    }
}

#[test]
fn nobody_outside_is_the_node_itself_or_one_of_its_endpoints() {
    let mut datapath = judged_by(allow_all(), true);
    for family in FAMILIES {
        let forged = arriving(HOST_PARTY, HOST_PARTY, family).udp(1000, OPEN);
        assert_eq!(datapath.fate(FROM_UPLINK, &forged), Reason::Spoofed);
        let link = if family == Family::V4 {
            IpAddr::from(Ipv4Addr::new(169, 254, 7, 7))
        } else {
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into()
        };
        let way = Way { from: link, to: link, ..arriving(WORLD_PARTY, HOST_PARTY, family) };
        assert_eq!(datapath.fate(FROM_UPLINK, &way.udp(1000, OPEN)), Reason::Spoofed);
    }
    // By the overlay's back a pool's address is nobody's: what endpoints may, it may not.
    let mut table = deny_all();
    table.insert(peer_row(Direction::Ingress, Class::Fleet as u32), rule(Action::Allow, 1));
    table.insert(peer_row(Direction::Ingress, WEB_IDENTITY), rule(Action::Allow, 1));
    datapath.change(|world| world.judge_host(table, true));
    for family in FAMILIES {
        for from in [WEB_PARTY, DB_PARTY, NOBODY_PARTY] {
            let way = arriving(from, HOST_PARTY, family);
            assert!(!passes(&mut datapath, FROM_UPLINK, &way.tcp(1000, OPEN, SYN)), "{from:?}");
        }
        let by_web = out_of(WEB, WEB_PARTY, HOST_PARTY, family).tcp(1000, OPEN, SYN);
        assert!(passes(&mut datapath, from_endpoint(WEB), &by_web));
        // Nor does it ride on the endpoint's flow.
        let way = arriving(WEB_PARTY, HOST_PARTY, family);
        assert!(!passes(&mut datapath, FROM_UPLINK, &way.tcp(1000, OPEN, ACK)));
    }
}

#[test]
fn what_was_allowed_stops_with_the_next_packet_when_the_policy_changes() {
    for family in FAMILIES {
        let mut datapath = judged(false);
        for (place, way, back_place, back) in ways(family) {
            datapath.change(|world| world.judge_host(open_at(), false));
            assert!(passes(&mut datapath, place, &way.tcp(1000, OPEN, SYN)));
            assert!(passes(&mut datapath, back_place, &back.tcp(OPEN, 1000, SYN | ACK)));
            datapath.change(|world| world.judge_host(deny_all(), false));
            assert!(!passes(&mut datapath, place, &way.tcp(1000, OPEN, ACK)), "{place:?}");
            assert!(!passes(&mut datapath, back_place, &back.tcp(OPEN, 1000, ACK)), "{back_place:?}");
            // Judged no more, it goes on.
            datapath.change(|world| world.host = None);
            assert!(passes(&mut datapath, place, &way.tcp(1000, OPEN, ACK)), "{place:?}");
            assert!(passes(&mut datapath, back_place, &back.tcp(OPEN, 1000, ACK)), "{back_place:?}");
        }
    }
}

#[test]
fn connections_that_were_there_before_the_policy_are_met_in_their_midst() {
    let mut table = deny_all();
    table.insert(port_row(Direction::Egress, WORLD, TCP, OPEN), rule(Action::Allow, 1));
    let mut datapath = judged_by(table, true);
    for family in FAMILIES {
        let out = arriving(HOST_PARTY, WORLD_PARTY, family);
        // The answer first: judged as one.
        assert!(passes(&mut datapath, FROM_UPLINK, &out.back().tcp(OPEN, 1000, ACK)));
        let flow = datapath.object.flows().unwrap()[0].1;
        assert_eq!(
            (flow.source_identity, flow.flags & flow_flags::REPLIED),
            (HOST_IDENTITY, flow_flags::REPLIED)
        );
        assert!(passes(&mut datapath, TO_UPLINK, &out.tcp(1000, OPEN, ACK)));
        assert!(!passes(&mut datapath, FROM_UPLINK, &out.back().tcp(SHUT, 1000, ACK)));
        assert!(!passes(&mut datapath, FROM_UPLINK, &out.back().tcp(OPEN, 1001, SYN | ACK)));
        datapath.forget_flows();
    }
}

fn entry(direction: Direction, protocol: u8, port: u16, prefixes: &[&str]) -> Failsafe {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    Failsafe { protocol, first: port, last: port, direction, prefixes }
}

#[test]
fn failsafe_entries_hold_whatever_else_is_there() {
    let mut datapath = judged_by(deny_all(), false);
    datapath.change(|world| {
        world.entries = vec![
            entry(Direction::Ingress, TCP, 22, &[]),
            entry(Direction::Egress, TCP, 7443, &["192.0.2.0/24", "2001:db8::/64"]),
            entry(Direction::Ingress, TCP, 2222, &["203.0.113.5/32", "2001:db8:ffff::/48"]),
            entry(Direction::Egress, TCP, 22, &["10.200.1.2/32", "fd00:77:0:1::2/128"]),
        ];
    });
    let gone = [Step::Subject { slot: HOST_SLOT, subject: None }];
    for broken in [false, true] {
        for family in FAMILIES {
            let held = |datapath: &mut Datapath, place, way: Way, port| {
                let fate = datapath.fate(place, &way.tcp(1000, port, SYN));
                assert_eq!(matches!(fate, Reason::PolicyMissing), broken && fate.is_drop(), "{fate:?}");
                !fate.is_drop()
            };
            let world = arriving(WORLD_PARTY, HOST_PARTY, family);
            let partner = arriving(PARTNER_PARTY, HOST_PARTY, family);
            let web = out_of(WEB, WEB_PARTY, HOST_PARTY, family);
            let pool = arriving(NOBODY_PARTY, HOST_PARTY, family);
            for (place, way) in
                [(FROM_UPLINK, world), (FROM_UPLINK, partner), (FROM_UPLINK, pool), (from_endpoint(WEB), web)]
            {
                assert!(held(&mut datapath, place, way, 22), "{place:?} {way:?}");
                assert!(!held(&mut datapath, place, way, 23), "{place:?} {way:?}");
            }
            assert!(held(&mut datapath, FROM_UPLINK, world, 2222));
            assert!(!held(&mut datapath, FROM_UPLINK, partner, 2222));
            let node = arriving(HOST_PARTY, DB_NODE_PARTY, family);
            assert!(held(&mut datapath, TO_UPLINK, node, 7443));
            assert!(!held(&mut datapath, TO_UPLINK, world.back(), 7443));
            assert!(!held(&mut datapath, FROM_UPLINK, node.back(), 7443), "the other direction");
            assert!(held(&mut datapath, to_endpoint(WEB, 0), arriving(HOST_PARTY, WEB_PARTY, family), 22));
            assert!(!held(&mut datapath, to_endpoint(API, 0), arriving(HOST_PARTY, API_PARTY, family), 22));
        }
        datapath.forget_flows();
        datapath.write(&gone);
    }
}

/// A message of multicast listener discovery behind the router alert that goes with it (RFC 3810 §5).
fn listener_message(way: &Way, kind: u8) -> Vec<u8> {
    const HOP_BY_HOP: u8 = 0;
    // ICMPv6 comes next; 8 bytes; router alert for MLD (RFC 2711); padding.
    const ROUTER_ALERT: [u8; 8] = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let way = Way { hops: 1, ..*way };
    let message = way.icmp(kind, 0);
    way.protocol(HOP_BY_HOP, &[&ROUTER_ALERT, &message[54..]].concat())
}

#[test]
fn a_closed_node_reports_the_groups_of_its_link_and_hears_who_asks_for_them_but_no_more() {
    let mut datapath = judged_by(deny_all(), false);
    let neighbour: IpAddr = "fe80::7".parse().unwrap();
    let own: IpAddr = "fe80::1".parse().unwrap();
    let nowhere: IpAddr = "::".parse().unwrap();
    let world = arriving(WORLD_PARTY, HOST_PARTY, Family::V6);
    let gone = [Step::Subject { slot: HOST_SLOT, subject: None }];
    for broken in [false, true] {
        let mut is_let_through = |place, from, to: &str, kind| {
            let way = Way { from, to: to.parse().unwrap(), ..world };
            let fate = datapath.fate(place, &listener_message(&way, kind));
            let closed = if broken { Reason::PolicyMissing } else { Reason::PolicyDenied };
            assert!(!fate.is_drop() || fate == closed, "{fate:?}");
            !fate.is_drop()
        };
        for kind in [130, 131, 132, 143] {
            assert!(is_let_through(FROM_UPLINK, neighbour, "ff02::1", kind), "{kind} in");
            for from in [own, nowhere] {
                assert!(is_let_through(TO_UPLINK, from, "ff02::16", kind), "{kind} out");
            }
            // A group that routers pass on, and addresses beyond the link.
            assert!(!is_let_through(TO_UPLINK, own, "ff05::2", kind), "{kind} far");
            assert!(!is_let_through(TO_UPLINK, own, "2001:db8:ffff::1", kind), "{kind} out to the world");
            assert!(
                !is_let_through(FROM_UPLINK, WORLD_PARTY.v6.into(), "ff02::1", kind),
                "{kind} of the world"
            );
        }
        for kind in [129, 138, 142, 144] {
            assert!(!is_let_through(FROM_UPLINK, neighbour, "ff02::1", kind), "{kind} in");
            assert!(!is_let_through(TO_UPLINK, own, "ff02::16", kind), "{kind} out");
        }
        datapath.write(&gone);
    }
}

#[test]
fn endpoints_report_no_groups_to_anybody() {
    let mut datapath = judged_by(allow_all(), false);
    let link_local: IpAddr = "fe80::7".parse().unwrap();
    for from in [link_local, WEB_PARTY.v6.into(), "::".parse().unwrap()] {
        for (to, reason) in [
            ("ff02::16", Reason::Multicast),
            ("ff05::2", Reason::Multicast),
            ("fe80::1", Reason::ForbiddenAddress),
        ] {
            let way = Way { from, to: to.parse().unwrap(), ..out_of(WEB, WEB_PARTY, DB_PARTY, Family::V6) };
            for kind in [130, 131, 132, 143] {
                let packet = listener_message(&way, kind);
                assert_eq!(datapath.fate(from_endpoint(WEB), &packet), reason, "{from} {to} {kind}");
            }
        }
    }
    // Over the overlay they would have to be for an endpoint; then they are ICMP as any, and what has no own address is refused.
    let way = Way { from: link_local, ..out_of(WEB, WEB_PARTY, DB_PARTY, Family::V6) };
    assert_eq!(datapath.fate(from_endpoint(WEB), &listener_message(&way, 143)), Reason::Spoofed);
}

#[test]
fn a_subject_that_is_missing_closes_the_node() {
    let mut datapath = judged_by(allow_all(), false);
    let empty = HostRow { subject: HOST_SLOT + 1, own_endpoints_free: false };
    datapath.write(&[Step::Host { host: Some(empty) }]);
    for family in FAMILIES {
        for (place, way, ..) in ways(family) {
            assert_eq!(datapath.fate(place, &way.tcp(1000, OPEN, SYN)), Reason::PolicyMissing, "{place:?}");
        }
    }
}

#[test]
fn what_cannot_be_read_does_not_reach_a_judged_node() {
    let mut datapath = judged_by(allow_all(), true);
    for family in FAMILIES {
        let way = arriving(WORLD_PARTY, HOST_PARTY, family);
        assert_eq!(datapath.fate(FROM_UPLINK, &way.protocol(6, &[0; 3])), Reason::Malformed);
        let later = way.cut(&way.datagram(1000, OPEN, 64), &[24, 48], 7).remove(2);
        assert_eq!(datapath.fate(FROM_UPLINK, &later), Reason::FragmentWithoutFirst);
    }
    let arp = {
        let mut frame = arriving(WORLD_PARTY, HOST_PARTY, Family::V4).udp(1, 2);
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        frame
    };
    for place in [FROM_UPLINK, TO_UPLINK] {
        assert_eq!(datapath.fate(place, &arp), Reason::DeliveredStack);
    }
}

#[test]
fn fragments_go_the_way_of_the_first() {
    let mut datapath = judged(false);
    for family in FAMILIES {
        for (place, way, ..) in ways(family) {
            for (port, expected) in [(OPEN, true), (SHUT, false)] {
                let pieces = way.cut(&way.datagram(1000, port, 64), &[24, 48], port);
                let mut fates = pieces.iter().map(|piece| datapath.fate(place, piece));
                assert_eq!(!fates.next().unwrap().is_drop(), expected, "{place:?}");
                let rest: Vec<Reason> = fates.collect();
                let later = if expected { rest[0] } else { Reason::FragmentWithoutFirst };
                assert!(rest == [later; 2] && later.is_drop() != expected, "{place:?} {rest:?}");
            }
        }
    }
}

#[test]
fn errors_about_the_nodes_flows_reach_it_and_no_others() {
    let mut datapath = judged(true);
    for family in FAMILIES {
        let unreachable = if family == Family::V4 { (3, 3) } else { (1, 4) };
        let sent = arriving(HOST_PARTY, WORLD_PARTY, family).udp(1000, OPEN);
        let router = arriving(PARTNER_PARTY, HOST_PARTY, family);
        assert!(!passes(&mut datapath, FROM_UPLINK, &router.error(unreachable, &sent, 64)), "{family:?}");
        assert!(passes(&mut datapath, TO_UPLINK, &sent));
        assert!(passes(&mut datapath, FROM_UPLINK, &router.error(unreachable, &sent, 64)), "{family:?}");
        let other = arriving(HOST_PARTY, WORLD_PARTY, family).udp(1001, OPEN);
        assert!(!passes(&mut datapath, FROM_UPLINK, &router.error(unreachable, &other, 64)), "{family:?}");
        // And the node tells of what it got.
        let got = arriving(WORLD_PARTY, HOST_PARTY, family).udp(2000, OPEN);
        let error = arriving(HOST_PARTY, WORLD_PARTY, family).error(unreachable, &got, 64);
        assert!(!passes(&mut datapath, TO_UPLINK, &error));
        assert!(passes(&mut datapath, FROM_UPLINK, &got));
        assert!(passes(&mut datapath, TO_UPLINK, &error));
    }
}

#[test]
fn a_node_of_another_identity_is_its_labels_and_its_class() {
    let mut table = deny_all();
    table.insert(port_row(Direction::Ingress, REMOTE_NODE_IDENTITY, TCP, OPEN), rule(Action::Allow, 1));
    let mut datapath = judged_by(table, true);
    for family in FAMILIES {
        let node = arriving(DB_NODE_PARTY, HOST_PARTY, family);
        assert!(passes(&mut datapath, FROM_UPLINK, &node.tcp(1000, OPEN, SYN)));
        let world = arriving(WORLD_PARTY, HOST_PARTY, family);
        assert!(!passes(&mut datapath, FROM_UPLINK, &world.tcp(1000, OPEN, SYN)));
    }
}
