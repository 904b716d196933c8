//! Flows: replies pass, revoked ones stop with their next packet, and nothing is remembered longer than it holds.

use weft_noded::plan::tables::Step;
use weft_shared::layout::{Action, Class, Config, Direction, Reason, flow_flags};

use crate::{
    harness::{Datapath, FROM_UPLINK, from_endpoint, to_endpoint},
    packets::{ACK, FIN, ICMP, RST, SYN, TCP, UDP, Way, arriving, out_of},
    policies::PolicyTable,
    world::{
        self, API, API_PARTY, API_SLOT, DB_IDENTITY, DB_NODE, DB_PARTY, FAMILIES, Family, OVERLAY, UPLINK,
        WEB, WEB_IDENTITY, WEB_PARTY, WEB_SLOT, WORLD_PARTY, allow_all, deny_all, for_all, peer_row,
        port_row, rule,
    },
};

fn only(direction: Direction, peer: u32, protocol: u8, port: u16) -> PolicyTable {
    let mut table = deny_all();
    table.insert(port_row(direction, peer, protocol, port), rule(Action::Allow, 1));
    table
}

/// web may call api on TCP 80, and nothing else may happen.
fn web_calls_api() -> Datapath {
    let mut datapath = Datapath::new();
    datapath.change(|tables| {
        for_all(tables, &deny_all());
        tables.policies.insert(WEB_SLOT, only(Direction::Egress, world::API_IDENTITY, TCP, 80));
        tables.policies.insert(API_SLOT, only(Direction::Ingress, WEB_IDENTITY, TCP, 80));
    });
    datapath
}

fn call(family: Family) -> (Way, Way) {
    let forth = out_of(WEB, WEB_PARTY, API_PARTY, family);
    (forth, forth.back_from(API))
}

#[test]
fn replies_of_an_allowed_flow_pass_and_unsolicited_ones_do_not() {
    let mut datapath = web_calls_api();
    for family in FAMILIES {
        let (forth, back) = call(family);
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, SYN)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, ACK)), Reason::DeliveredLocal);
        // Other ports are another flow.
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1001, SYN | ACK)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(81, 1000, SYN | ACK)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(API), &back.udp(80, 1000)), Reason::PolicyDenied);
    }
}

#[test]
fn one_entry_holds_both_directions_and_tells_who_began() {
    let mut datapath = web_calls_api();
    for family in FAMILIES {
        datapath.forget_flows();
        let (forth, back) = call(family);
        datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, SYN));
        datapath.run(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK));
        let flows = datapath.object.flows().unwrap();
        let [(key, flow)] = flows[..] else { panic!("{flows:?}") };
        assert_eq!(
            (std::net::IpAddr::from(key.low), std::net::IpAddr::from(key.high)),
            (forth.from, forth.to)
        );
        assert_eq!((u16::from_be(key.low_port), u16::from_be(key.high_port), key.protocol), (1000, 80, TCP));
        assert_eq!(flow.flags, flow_flags::REPLIED | flow_flags::SYN);
        assert_eq!((flow.source_identity, flow.destination_identity), (WEB_IDENTITY, world::API_IDENTITY));
        assert_eq!((flow.original_ifindex, flow.reply_ifindex), (API, WEB));
    }
}

#[test]
fn a_denied_flow_leaves_no_entry() {
    let mut datapath = web_calls_api();
    let (forth, _) = call(Family::V4);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 81, SYN)), Reason::PolicyDenied);
    assert_eq!(datapath.object.flows().unwrap(), []);
}

#[test]
fn the_party_that_answers_may_not_open_a_connection_on_the_same_ports() {
    let mut datapath = web_calls_api();
    let (forth, back) = call(Family::V6);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, SYN)), Reason::DeliveredLocal);
    assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, SYN)), Reason::PolicyDenied);
    assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, ACK)), Reason::DeliveredLocal);
}

#[test]
fn a_revoked_flow_stops_with_its_next_packet_in_both_directions_and_goes_on_when_allowed_again() {
    let mut datapath = web_calls_api();
    for family in FAMILIES {
        let (forth, back) = call(family);
        let open = |datapath: &mut Datapath| {
            assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, SYN)), Reason::DeliveredLocal);
            assert_eq!(
                datapath.fate(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK)),
                Reason::DeliveredLocal
            );
        };
        for slot in [WEB_SLOT, API_SLOT] {
            let mut table = None;
            for reply_first in [true, false] {
                open(&mut datapath);
                datapath.change(|tables| table = tables.policies.insert(slot, deny_all()));
                let reply = back.tcp(80, 1000, ACK);
                let request = forth.tcp(1000, 80, ACK);
                if reply_first {
                    assert_eq!(datapath.fate(from_endpoint(API), &reply), Reason::PolicyDenied);
                    assert_eq!(datapath.fate(from_endpoint(WEB), &request), Reason::PolicyDenied);
                } else {
                    assert_eq!(datapath.fate(from_endpoint(WEB), &request), Reason::PolicyDenied);
                    assert_eq!(datapath.fate(from_endpoint(API), &reply), Reason::PolicyDenied);
                }
                datapath.change(|tables| drop(tables.policies.insert(slot, table.take().unwrap())));
                assert_eq!(datapath.fate(from_endpoint(API), &reply), Reason::DeliveredLocal);
                assert_eq!(datapath.fate(from_endpoint(WEB), &request), Reason::DeliveredLocal);
                datapath.forget_flows();
            }
        }
    }
}

#[test]
fn a_revoked_flow_does_not_go_on_as_another_one_of_the_party_that_answered() {
    let mut datapath = web_calls_api();
    let (forth, back) = call(Family::V4);
    // api may itself call web on any port, so that its answers in the midst of a connection would pass as that.
    datapath.change(|tables| {
        tables
            .policies
            .get_mut(API_SLOT)
            .unwrap()
            .insert(peer_row(Direction::Egress, WEB_IDENTITY), rule(Action::Allow, 2));
        tables
            .policies
            .get_mut(WEB_SLOT)
            .unwrap()
            .insert(peer_row(Direction::Ingress, world::API_IDENTITY), rule(Action::Allow, 2));
    });
    datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, SYN));
    datapath.run(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK));
    let key = port_row(Direction::Egress, world::API_IDENTITY, TCP, 80);
    datapath.change(|tables| {
        tables.policies.get_mut(WEB_SLOT).unwrap().remove(&key);
    });
    for _ in 0..2 {
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, ACK)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, ACK)), Reason::PolicyDenied);
    }
    assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(81, 1000, SYN)), Reason::DeliveredLocal);
}

#[test]
fn a_flow_keeps_its_direction_when_it_is_judged_again() {
    let mut datapath = web_calls_api();
    let (forth, back) = call(Family::V4);
    datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, SYN));
    // Only the direction web to api is allowed, and a reply asks for it.
    datapath.change(|_| ());
    assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK)), Reason::DeliveredLocal);
    let flow = datapath.object.flows().unwrap()[0].1;
    assert_eq!((flow.source_identity, flow.original_ifindex), (WEB_IDENTITY, API));
    assert_eq!(flow.flags, flow_flags::REPLIED | flow_flags::SYN);
}

#[test]
fn without_a_new_epoch_a_verdict_is_remembered_and_with_one_it_is_not() {
    let mut datapath = Datapath::new();
    let way = out_of(WEB, WEB_PARTY, DB_PARTY, Family::V4);
    let packet = way.udp(1000, 53);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay);
    datapath.rewrite(|world| drop(world.policies.insert(WEB_SLOT, deny_all())));
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay);
    datapath.write(&[Step::Bump { subjects: vec![API_SLOT], nodes: vec![world::CACHE_NODE] }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay, "others' epochs");
    datapath.write(&[Step::Bump { subjects: vec![WEB_SLOT], nodes: vec![] }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyDenied);
}

#[test]
fn a_new_epoch_of_the_next_hop_looks_for_the_peer_again() {
    let mut datapath = Datapath::new();
    let packet = out_of(WEB, WEB_PARTY, DB_PARTY, Family::V4).udp(1000, 53);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay);
    let address = std::net::IpAddr::V4(DB_PARTY.v4).into();
    let mut peer = world::tables().ipcache[&address];
    peer.node = world::CACHE_NODE;
    let moved = Step::Ipcache { address, peer: Some(peer) };
    datapath.write(&[moved, Step::Bump { subjects: vec![], nodes: vec![DB_NODE] }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay);
    assert_eq!(u32::from(datapath.object.flows().unwrap()[0].1.original_node), world::CACHE_NODE);
}

#[test]
fn a_peer_with_another_identity_is_judged_as_that() {
    let mut datapath = Datapath::new();
    let mut table = deny_all();
    table.insert(peer_row(Direction::Egress, DB_IDENTITY), rule(Action::Allow, 1));
    datapath.change(|tables| drop(tables.policies.insert(WEB_SLOT, table)));
    let packet = out_of(WEB, WEB_PARTY, DB_PARTY, Family::V6).udp(1000, 53);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredOverlay);
    let address = std::net::IpAddr::V6(DB_PARTY.v6).into();
    datapath.change(|tables| tables.ipcache.get_mut(&address).unwrap().identity = 400);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyDenied);
}

#[test]
fn an_endpoint_with_another_identity_is_judged_as_that_at_once() {
    let mut datapath = web_calls_api();
    let (forth, back) = call(Family::V4);
    datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, SYN));
    let mut relabelled = world::tables().endpoints[&WEB];
    relabelled.identity = world::TAP_IDENTITY;
    relabelled.subject = world::TAP_SLOT;
    // No new epoch: the identity itself is compared.
    datapath.write(&[Step::Endpoint { ifindex: WEB, endpoint: Some(relabelled) }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, ACK)), Reason::PolicyDenied);
    assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, ACK)), Reason::PolicyDenied);
}

#[test]
fn an_endpoint_that_went_gets_nothing_and_its_address_may_be_anothers() {
    let mut datapath = Datapath::new();
    let packet = out_of(WEB, WEB_PARTY, API_PARTY, Family::V4).udp(1000, 53);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
    let mut other = world::tables().endpoints[&API];
    other.address4 = std::net::IpAddr::from([10, 200, 1, 77]).into();
    datapath.write(&[Step::Endpoint { ifindex: API, endpoint: Some(other) }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::NoEndpoint);
    datapath.write(&[Step::Endpoint { ifindex: API, endpoint: None }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::NoEndpoint);
}

#[test]
fn an_endpoint_that_is_closed_again_gets_nothing_of_an_established_flow() {
    let mut datapath = Datapath::new();
    let (forth, back) = call(Family::V4);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.udp(1000, 53)), Reason::DeliveredLocal);
    let mut closed = world::tables().endpoints[&API];
    closed.flags &= !weft_shared::layout::endpoint_flags::OPEN;
    datapath.write(&[Step::Endpoint { ifindex: API, endpoint: Some(closed) }]);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.udp(1000, 53)), Reason::EndpointInit);
    assert_eq!(datapath.fate(from_endpoint(API), &back.udp(53, 1000)), Reason::EndpointInit);
}

#[test]
fn tcp_met_in_its_midst_is_judged_in_its_direction_then_as_a_reply() {
    for family in FAMILIES {
        let mut datapath = web_calls_api();
        let (forth, back) = call(family);
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, ACK)), Reason::DeliveredLocal);
        datapath.forget_flows();
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, ACK)), Reason::DeliveredLocal);
        let flow = datapath.object.flows().unwrap()[0].1;
        assert_eq!((flow.source_identity, flow.flags), (WEB_IDENTITY, flow_flags::REPLIED));
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(81, 1000, ACK)), Reason::PolicyDenied);
        // With SYN it is a beginning, not a midst.
        datapath.forget_flows();
        assert_eq!(datapath.fate(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK)), Reason::PolicyDenied);
    }
}

#[test]
fn a_closed_connection_is_opened_again_as_a_new_one() {
    for closing in [&[(true, FIN | ACK), (false, FIN | ACK)][..], &[(false, RST)], &[(true, RST | ACK)]] {
        let mut datapath = web_calls_api();
        let (forth, back) = call(Family::V4);
        datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, SYN));
        datapath.run(from_endpoint(API), &back.tcp(80, 1000, SYN | ACK));
        for (by_web, flags) in closing {
            if *by_web {
                datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, *flags));
            } else {
                datapath.run(from_endpoint(API), &back.tcp(80, 1000, *flags));
            }
        }
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.tcp(1000, 80, SYN)), Reason::DeliveredLocal);
        assert_eq!(datapath.object.flows().unwrap()[0].1.flags, flow_flags::SYN);
    }
}

#[test]
fn what_timed_out_is_as_good_as_absent() {
    // Nothing lives longer than no time at all: the coarse clock of the next packet is a later one.
    let config = Config { overlay_ifindex: OVERLAY, timeout_other: 0, timeout_syn: 0, ..Config::DEFAULT };
    let mut datapath = Datapath::with_config(config);
    datapath.change(|tables| {
        for_all(tables, &deny_all());
        let table = only(Direction::Egress, world::API_IDENTITY, UDP, 53);
        tables.policies.insert(WEB_SLOT, table);
        tables.policies.insert(API_SLOT, only(Direction::Ingress, WEB_IDENTITY, UDP, 53));
    });
    let (forth, back) = call(Family::V4);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.udp(1000, 53)), Reason::DeliveredLocal);
    wait_until_over(&datapath);
    assert_eq!(datapath.fate(from_endpoint(API), &back.udp(53, 1000)), Reason::PolicyDenied);
}

fn wait_until_over(datapath: &Datapath) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !datapath.object.flows().unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the flow is never over");
    }
}

#[test]
fn pings_are_answered_by_whoever_was_asked_and_no_other_way() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        let (protocol, request) =
            if family == Family::V4 { (ICMP, 8) } else { (crate::packets::ICMPV6, 128) };
        datapath.change(|tables| {
            for_all(tables, &deny_all());
            tables
                .policies
                .insert(WEB_SLOT, only(Direction::Egress, world::API_IDENTITY, protocol, request << 8));
            tables.policies.insert(API_SLOT, only(Direction::Ingress, WEB_IDENTITY, protocol, request << 8));
        });
        let (forth, back) = call(family);
        assert_eq!(datapath.fate(from_endpoint(API), &back.pong(7)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.ping(7)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(API), &back.pong(7)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(API), &back.pong(8)), Reason::PolicyDenied);
        assert_eq!(
            datapath.fate(from_endpoint(API), &back.ping(7)),
            Reason::PolicyDenied,
            "a question is no answer"
        );
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &forth.pong(7)),
            Reason::PolicyDenied,
            "an answer is no question"
        );
    }
}

#[test]
fn both_may_ping_with_the_same_identifier() {
    let mut datapath = Datapath::new();
    let (forth, back) = call(Family::V4);
    for _ in 0..2 {
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.ping(7)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(API), &back.ping(7)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(WEB), &forth.pong(7)), Reason::DeliveredLocal);
        assert_eq!(datapath.fate(from_endpoint(API), &back.pong(7)), Reason::DeliveredLocal);
    }
    assert_eq!(datapath.object.flows().unwrap().len(), 2);
}

#[test]
fn an_unasked_answer_that_is_allowed_opens_no_way_for_questions() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| {
        for_all(tables, &allow_all());
        let mut table = allow_all();
        table.insert(port_row(Direction::Egress, world::API_IDENTITY, ICMP, 8 << 8), rule(Action::Deny, 1));
        tables.policies.insert(WEB_SLOT, table);
    });
    let (forth, back) = call(Family::V4);
    assert_eq!(datapath.fate(from_endpoint(API), &back.pong(7)), Reason::DeliveredLocal);
    assert_eq!(datapath.object.flows().unwrap(), []);
    assert_eq!(datapath.fate(from_endpoint(WEB), &forth.ping(7)), Reason::PolicyDenied);
}

#[test]
fn a_flow_with_the_world_is_one_flow_at_every_hook() {
    let mut datapath = Datapath::new();
    datapath.change(|tables| {
        for_all(tables, &deny_all());
        tables.policies.insert(WEB_SLOT, only(Direction::Egress, Class::World as u32, TCP, 443));
    });
    for family in FAMILIES {
        let out = out_of(WEB, WEB_PARTY, WORLD_PARTY, family);
        let answer = arriving(WORLD_PARTY, WEB_PARTY, family);
        assert_eq!(datapath.fate(FROM_UPLINK, &answer.tcp(443, 1000, SYN | ACK)), Reason::PolicyDenied);
        assert_eq!(datapath.fate(from_endpoint(WEB), &out.tcp(1000, 443, SYN)), Reason::DeliveredStack);
        assert_eq!(datapath.fate(FROM_UPLINK, &answer.tcp(443, 1000, SYN | ACK)), Reason::DeliveredLocal);
        assert_eq!(
            datapath.fate(to_endpoint(WEB, UPLINK), &answer.tcp(443, 1000, ACK)),
            Reason::DeliveredLocal
        );
        datapath.change(|_| ());
        assert_eq!(datapath.fate(FROM_UPLINK, &answer.tcp(443, 1000, ACK)), Reason::DeliveredLocal);
    }
    assert_eq!(datapath.object.flows().unwrap().len(), 2);
}
