//! Clients that are endpoints of this node.

use etherparse::Ipv4HeaderSlice;
use weft_noded::plan::tables::Step;
use weft_shared::{
    balance::table::Table,
    layout::{
        Action, Direction, Reason,
        service::{FrontendKey, Party as Place, packet_hash, slot_of},
    },
};

use super::{
    FRONTEND, MANNER, PORT, SLOT, TARGET, TWIN, at, backend, key,
    packets::{parties, sctp},
    served_by, table,
};
use crate::{
    harness::{Datapath, FROM_UPLINK, Verdict, from_endpoint, to_endpoint},
    packets::{ACK, FIN, RST, SYN, TCP, UDP, Way, arriving, out_of},
    world::{
        API, API_IDENTITY, API_PARTY, DB_PARTY, FAMILIES, Family, HOST_PARTY, OVERLAY, Party, TAP, TAP_PARTY,
        WEB, WEB_IDENTITY, WEB_PARTY, WEB_SLOT, WORLD_PARTY, deny_all, for_all, gateway_mac, mac, port_row,
        rule,
    },
};

const CLIENT: u16 = 40_000;

fn question(family: Family) -> Way {
    out_of(WEB, WEB_PARTY, FRONTEND, family)
}

/// What the client sends, of every protocol: short and long, with and without payload.
fn questions(way: &Way) -> Vec<Vec<u8>> {
    vec![
        way.tcp(CLIENT, PORT, SYN),
        way.tcp(CLIENT, PORT, ACK),
        way.udp(CLIENT, PORT),
        way.datagram(CLIENT, PORT, 1001),
        sctp(way, CLIENT, PORT, 4),
        sctp(way, CLIENT, PORT, 1333),
    ]
}

/// The same on its way back.
fn answers(way: &Way) -> Vec<Vec<u8>> {
    vec![
        way.tcp(TARGET, CLIENT, SYN | ACK),
        way.tcp(TARGET, CLIENT, ACK),
        way.udp(TARGET, CLIENT),
        way.datagram(TARGET, CLIENT, 1001),
        sctp(way, TARGET, CLIENT, 4),
        sctp(way, TARGET, CLIENT, 1333),
    ]
}

#[test]
fn a_question_goes_to_the_backend_and_its_answer_comes_from_the_frontend() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let way = question(family);
        for (packet, answer) in
            questions(&way).iter().zip(answers(&out_of(API, API_PARTY, WEB_PARTY, family)))
        {
            let (reason, outcome) = datapath.reason(from_endpoint(WEB), packet);
            assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
            assert_eq!(outcome.packet[..12], [mac(API), gateway_mac(API)].concat());
            let (client, backend) = (at(WEB_PARTY, family, CLIENT), at(API_PARTY, family, TARGET));
            assert_eq!(parties(&outcome.packet), (client, backend), "{family:?}");
            assert_eq!(outcome.packet.len(), packet.len());

            let (reason, outcome) = datapath.reason(from_endpoint(API), &answer);
            assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
            assert_eq!(outcome.packet[..12], [mac(WEB), gateway_mac(WEB)].concat());
            assert_eq!(parties(&outcome.packet), (at(FRONTEND, family, PORT), client), "{family:?}");
        }
        assert_eq!(datapath.object.flows().unwrap().len(), 3, "a flow for each protocol");
    }
}

/// A flow that named the frontend before it was one goes on as it was judged, until it is judged again: then datagrams go to the
/// service, and connections go on.
#[test]
fn datagrams_to_an_address_that_becomes_a_service_go_to_it_once_their_flow_is_judged_again() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        let way = question(family);
        let (datagram, connection) = (way.datagram(CLIENT, PORT, 100), way.tcp(CLIENT, PORT, ACK));
        datapath.run(from_endpoint(WEB), &way.tcp(CLIENT, PORT, SYN));
        datapath.run(from_endpoint(WEB), &datagram);
        datapath.serve(FRONTEND, family, &table(&[API_PARTY], family));
        let (frontend, backend) = (at(FRONTEND, family, PORT), at(API_PARTY, family, TARGET));
        for (judged_again, of_datagram) in [(false, frontend), (true, backend)] {
            if judged_again {
                datapath.write(&[Step::Bump { subjects: vec![WEB_SLOT], nodes: Vec::new() }]);
            }
            for (packet, to) in [(&datagram, of_datagram), (&connection, frontend)] {
                let outcome = datapath.run(from_endpoint(WEB), packet);
                assert_eq!(parties(&outcome.packet).1, to, "{family:?} {judged_again}");
            }
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_one() {
    let mut datapath = served_by(&[API_PARTY], Family::V4);
    let mut packet = question(Family::V4).udp(CLIENT, PORT);
    packet[40..42].fill(0);
    let outcome = datapath.run(from_endpoint(WEB), &packet);
    assert_eq!(outcome.packet[40..42], [0, 0]);
    assert_eq!(parties(&outcome.packet).1, at(API_PARTY, Family::V4, TARGET));
}

#[test]
fn backends_elsewhere_get_questions_by_the_way_to_them() {
    for family in FAMILIES {
        for (party, expected) in [
            (DB_PARTY, Reason::DeliveredOverlay),
            (WORLD_PARTY, Reason::DeliveredStack),
            (HOST_PARTY, Reason::DeliveredStack),
            (TAP_PARTY, Reason::DeliveredLocal),
        ] {
            let mut datapath = served_by(&[party], family);
            for packet in questions(&question(family)) {
                let (reason, outcome) = datapath.reason(from_endpoint(WEB), &packet);
                assert_eq!(reason, expected);
                assert_eq!(parties(&outcome.packet).1, at(party, family, TARGET), "{family:?}");
            }
        }
    }
}

#[test]
fn answers_from_elsewhere_come_from_the_frontend() {
    for family in FAMILIES {
        for (party, place) in [(WORLD_PARTY, FROM_UPLINK), (HOST_PARTY, to_endpoint(WEB, 0))] {
            let mut datapath = served_by(&[party], family);
            let back = arriving(party, WEB_PARTY, family);
            for (packet, answer) in questions(&question(family)).iter().zip(answers(&back)) {
                datapath.run(from_endpoint(WEB), packet);
                let (reason, outcome) = datapath.reason(place, &answer);
                assert_eq!(reason, Reason::DeliveredLocal);
                let shown = (at(FRONTEND, family, PORT), at(WEB_PARTY, family, CLIENT));
                assert_eq!(parties(&outcome.packet), shown, "{place:?}");
            }
        }
    }
}

/// Taps get what is for them by their own hook, which looks at the backend's flow.
#[test]
fn a_tap_hears_the_frontend_answer_at_its_own_hook() {
    for family in FAMILIES {
        for (party, from) in [(API_PARTY, API), (DB_PARTY, OVERLAY)] {
            let mut datapath = served_by(&[party], family);
            let way = out_of(TAP, TAP_PARTY, FRONTEND, family);
            let back = out_of(API, party, TAP_PARTY, family);
            for (packet, answer) in questions(&way).iter().zip(answers(&back)) {
                datapath.run(from_endpoint(TAP), packet);
                let answer = if from == API {
                    let outcome = datapath.run(from_endpoint(API), &answer);
                    assert_eq!(parties(&outcome.packet).0, at(party, family, TARGET), "not yet");
                    outcome.packet
                } else {
                    answer
                };
                let (reason, outcome) = datapath.reason(to_endpoint(TAP, from), &answer);
                assert_eq!(reason, Reason::DeliveredLocal);
                let shown = (at(FRONTEND, family, PORT), at(TAP_PARTY, family, CLIENT));
                assert_eq!(parties(&outcome.packet), shown);
            }
        }
    }
}

#[test]
fn a_tap_that_is_the_backend_hears_the_client() {
    for family in FAMILIES {
        let mut datapath = served_by(&[TAP_PARTY], family);
        for packet in questions(&question(family)) {
            let outcome = datapath.run(from_endpoint(WEB), &packet);
            let (reason, outcome) = datapath.reason(to_endpoint(TAP, WEB), &outcome.packet);
            assert_eq!(reason, Reason::DeliveredLocal);
            assert_eq!(parties(&outcome.packet).1, at(TAP_PARTY, family, TARGET));
        }
    }
}

/// web may reach api's target port, and nothing of the frontend's is named.
#[test]
fn policies_judge_the_client_and_the_backend() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        datapath.change(|tables| for_all(tables, &deny_all()));
        for packet in questions(&question(family)) {
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyDenied);
        }
        let event = datapath.judge(from_endpoint(WEB), &question(family).udp(CLIENT, PORT)).unwrap_err();
        assert_eq!((event.destination_port, event.destination_identity), (TARGET, API_IDENTITY));
        assert_eq!(datapath.object.flows().unwrap().len(), 0);
        datapath.change(|tables| {
            let mut table = deny_all();
            table.insert(port_row(Direction::Egress, API_IDENTITY, TCP, TARGET), rule(Action::Allow, 1));
            table.insert(port_row(Direction::Ingress, WEB_IDENTITY, TCP, TARGET), rule(Action::Allow, 1));
            for_all(tables, &table);
        });
        let syn = question(family).tcp(CLIENT, PORT, SYN);
        assert_eq!(datapath.fate(from_endpoint(WEB), &syn), Reason::DeliveredLocal);
        let answer = out_of(API, API_PARTY, WEB_PARTY, family).tcp(TARGET, CLIENT, SYN | ACK);
        assert_eq!(datapath.fate(from_endpoint(API), &answer), Reason::DeliveredLocal);
        assert_eq!(
            datapath.fate(from_endpoint(WEB), &question(family).udp(CLIENT, PORT)),
            Reason::PolicyDenied
        );
        datapath.change(|tables| drop(tables.policies.insert(WEB_SLOT, deny_all())));
        let ack = question(family).tcp(CLIENT, PORT, ACK);
        assert_eq!(datapath.fate(from_endpoint(WEB), &ack), Reason::PolicyDenied, "revoked");
    }
}

/// The table says who, by a hash that every node has the same.
#[test]
fn each_connection_gets_the_backend_of_its_slot_and_keeps_it() {
    for family in FAMILIES {
        let all = [API_PARTY, DB_PARTY, WORLD_PARTY];
        let table = table(&all, family);
        let mut datapath = served_by(&all, family);
        let mut met = std::collections::BTreeSet::new();
        for client in 1000..1100 {
            let place = |party: Party, port: u16| Place {
                address: party.address(family).into(),
                port: port.to_be(),
                zero: 0,
            };
            let hash = packet_hash(&place(WEB_PARTY, client), &place(FRONTEND, PORT), TCP);
            let number = table.slots()[slot_of(hash, 251) as usize];
            let expected = (table.backends()[usize::from(number)].address, TARGET);
            for flags in [SYN, ACK] {
                let outcome = datapath.run(from_endpoint(WEB), &question(family).tcp(client, PORT, flags));
                assert_eq!(parties(&outcome.packet).1, expected);
            }
            met.insert(expected);
        }
        assert_eq!(met.len(), 3);
    }
}

#[test]
fn a_connection_keeps_its_backend_while_the_table_has_it() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let [syn, ack] = [SYN, ACK].map(|flags| question(family).tcp(CLIENT, PORT, flags));
        let udp = question(family).udp(CLIENT, PORT);
        datapath.run(from_endpoint(WEB), &syn);
        datapath.run(from_endpoint(WEB), &udp);
        let leaving = |new_flows| {
            let api = super::Backend { new_flows, ..backend(API_PARTY, family, TARGET) };
            Table::new(MANNER, vec![api, backend(DB_PARTY, family, TARGET)])
        };
        for table in [leaving(true), leaving(false)] {
            datapath.put_table(SLOT, Some(&table));
            for packet in [&ack, &udp] {
                let outcome = datapath.run(from_endpoint(WEB), packet);
                assert_eq!(parties(&outcome.packet).1, at(API_PARTY, family, TARGET));
            }
        }
        // New ones go elsewhere, and so does a connection's first packet that comes again.
        for packet in [question(family).tcp(CLIENT + 1, PORT, SYN), syn.clone()] {
            let outcome = datapath.run(from_endpoint(WEB), &packet);
            assert_eq!(parties(&outcome.packet).1, at(DB_PARTY, family, TARGET));
        }
    }
}

#[test]
fn datagrams_go_to_another_backend_when_theirs_has_gone() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let udp = question(family).udp(CLIENT, PORT);
        datapath.run(from_endpoint(WEB), &udp);
        datapath.put_table(SLOT, Some(&table(&[DB_PARTY], family)));
        let outcome = datapath.run(from_endpoint(WEB), &udp);
        assert_eq!(parties(&outcome.packet).1, at(DB_PARTY, family, TARGET));
    }
}

#[test]
fn the_frontends_port_is_the_backends_where_it_has_none_of_its_own() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        let table = Table::new(MANNER, vec![backend(API_PARTY, family, 0)]);
        datapath.serve(FRONTEND, family, &table);
        for packet in questions(&question(family)) {
            let outcome = datapath.run(from_endpoint(WEB), &packet);
            assert_eq!(parties(&outcome.packet).1, at(API_PARTY, family, PORT));
        }
        // Found again in another table.
        let api = super::Backend { new_flows: false, ..backend(API_PARTY, family, 0) };
        datapath.put_table(SLOT, Some(&Table::new(MANNER, vec![api, backend(DB_PARTY, family, 0)])));
        let outcome = datapath.run(from_endpoint(WEB), &question(family).tcp(CLIENT, PORT, ACK));
        assert_eq!(parties(&outcome.packet).1, at(API_PARTY, family, PORT));
    }
}

#[test]
fn a_port_of_the_node_is_one_at_its_own_addresses() {
    for family in FAMILIES {
        let mut datapath = Datapath::new();
        datapath.put_table(SLOT, Some(&table(&[API_PARTY], family)));
        let node_port = FrontendKey::node_port(family == Family::V4, PORT.to_be(), UDP);
        datapath.put_frontend(node_port, Some(SLOT));
        let to = |party| out_of(WEB, WEB_PARTY, party, family).udp(CLIENT, PORT);
        let outcome = datapath.run(from_endpoint(WEB), &to(HOST_PARTY));
        assert_eq!(parties(&outcome.packet).1, at(API_PARTY, family, TARGET));
        for other in [WORLD_PARTY, DB_PARTY] {
            let outcome = datapath.run(from_endpoint(WEB), &to(other));
            assert_eq!(parties(&outcome.packet).1, at(other, family, PORT));
        }
    }
}

/// Three, each with a checksum of its own.
fn pieces(way: &Way, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = way.cut(packet, &[24, 48], 7);
    for piece in pieces.iter_mut().filter(|_| way.from.is_ipv4()) {
        let sum = Ipv4HeaderSlice::from_slice(&piece[14..]).unwrap().to_header().calc_header_checksum();
        piece[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    pieces
}

#[test]
fn pieces_of_a_datagram_go_where_the_first_goes() {
    for family in FAMILIES {
        for party in [API_PARTY, TAP_PARTY] {
            let mut datapath = served_by(&[party], family);
            let way = question(family);
            for piece in pieces(&way, &way.datagram(CLIENT, PORT, 64)) {
                let outcome = datapath.run(from_endpoint(WEB), &piece);
                assert_eq!(outcome.verdict, Verdict::Redirect);
                assert_eq!(super::packets::addresses(&outcome.packet).1, party.address(family));
                if party.v4 == TAP_PARTY.v4 {
                    assert!(!datapath.fate(to_endpoint(TAP, WEB), &outcome.packet).is_drop());
                }
            }
            let back = out_of(API, API_PARTY, WEB_PARTY, family);
            if party.v4 == API_PARTY.v4 {
                for piece in pieces(&back, &back.datagram(TARGET, CLIENT, 64)) {
                    let outcome = datapath.run(from_endpoint(API), &piece);
                    assert_eq!(outcome.verdict, Verdict::Redirect);
                    assert_eq!(super::packets::addresses(&outcome.packet).0, FRONTEND.address(family));
                }
            }
        }
    }
}

#[test]
fn of_sctp_in_pieces_no_port_is_changed() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let way = question(family);
        let pieces = pieces(&way, &sctp(&way, CLIENT, PORT, 64));
        assert_eq!(datapath.fate(from_endpoint(WEB), &pieces[0]), Reason::ServiceUntranslatable);
        assert_eq!(datapath.fate(from_endpoint(WEB), &pieces[1]), Reason::FragmentWithoutFirst);
    }
}

/// Two services with one backend, from one port of the client.
#[test]
fn a_connection_that_could_not_be_told_from_another_is_refused() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        datapath.serve(TWIN, family, &table(&[API_PARTY], family));
        let twin = out_of(WEB, WEB_PARTY, TWIN, family);
        let direct = out_of(WEB, WEB_PARTY, API_PARTY, family);
        let answer = out_of(API, API_PARTY, WEB_PARTY, family);
        for packet in [question(family).tcp(CLIENT, PORT, SYN), question(family).udp(CLIENT, PORT)] {
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
        }
        for other in [
            twin.tcp(CLIENT, PORT, SYN),
            twin.tcp(CLIENT, PORT, ACK),
            twin.udp(CLIENT, PORT),
            direct.tcp(CLIENT, TARGET, ACK),
            direct.udp(CLIENT, TARGET),
        ] {
            assert_eq!(datapath.fate(from_endpoint(WEB), &other), Reason::ServicePortTaken, "{other:02x?}");
        }
        let outcome = datapath.run(from_endpoint(API), &answer.udp(TARGET, CLIENT));
        assert_eq!(parties(&outcome.packet).0, at(FRONTEND, family, PORT));
        // When the first is over, the port is free.
        datapath.run(from_endpoint(WEB), &question(family).tcp(CLIENT, PORT, RST));
        assert_eq!(datapath.fate(from_endpoint(WEB), &twin.tcp(CLIENT, PORT, SYN)), Reason::DeliveredLocal);
        let outcome = datapath.run(from_endpoint(API), &answer.tcp(TARGET, CLIENT, SYN | ACK));
        assert_eq!(parties(&outcome.packet).0, at(TWIN, family, PORT));
    }
}

#[test]
fn a_service_does_not_take_the_ports_of_a_connection_to_the_backend_itself() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        let direct = out_of(WEB, WEB_PARTY, API_PARTY, family);
        datapath.run(from_endpoint(WEB), &direct.tcp(CLIENT, TARGET, SYN));
        for flags in [SYN, ACK] {
            let packet = question(family).tcp(CLIENT, PORT, flags);
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::ServicePortTaken);
        }
        datapath.run(from_endpoint(WEB), &direct.tcp(CLIENT, TARGET, FIN));
        datapath.run(from_endpoint(API), &direct.back_from(API).tcp(TARGET, CLIENT, FIN));
        let packet = question(family).tcp(CLIENT, PORT, SYN);
        assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::DeliveredLocal);
    }
}

#[test]
fn without_services_an_address_is_an_address() {
    for family in FAMILIES {
        let mut datapath = served_by(&[API_PARTY], family);
        for protocol in [TCP, UDP, super::SCTP] {
            datapath.put_frontend(key(FRONTEND, family, protocol), None);
        }
        let packet = question(family).udp(CLIENT, PORT);
        let (reason, outcome) = datapath.reason(from_endpoint(WEB), &packet);
        assert_eq!((reason, outcome.packet), (Reason::DeliveredStack, packet));
    }
}

/// What an endpoint calls and answers itself, on a veth and on a tap.
#[test]
fn who_calls_itself_hears_the_frontend_and_is_called_by_it() {
    for family in FAMILIES {
        for (party, ifindex) in [(WEB_PARTY, WEB), (TAP_PARTY, TAP)] {
            let mut datapath = served_by(&[party], family);
            datapath.change(|tables| for_all(tables, &deny_all()));
            let way = out_of(ifindex, party, FRONTEND, family);
            let (client, frontend) = (at(party, family, CLIENT), at(FRONTEND, family, PORT));
            for (packet, answer) in questions(&way).iter().zip(answers(&way)) {
                let (reason, outcome) = datapath.reason(from_endpoint(ifindex), packet);
                assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
                assert_eq!(outcome.packet[..12], [mac(ifindex), gateway_mac(ifindex)].concat());
                let caller = at(FRONTEND, family, CLIENT);
                assert_eq!(parties(&outcome.packet), (caller, at(party, family, TARGET)));
                let (reason, outcome) = datapath.reason(from_endpoint(ifindex), &answer);
                assert_eq!((reason, outcome.verdict), (Reason::DeliveredLocal, Verdict::Redirect));
                assert_eq!(outcome.packet[..12], [mac(ifindex), gateway_mac(ifindex)].concat());
                assert_eq!(parties(&outcome.packet), (frontend, client));
                // A tap's own hook sees both.
                let here = datapath.fate(to_endpoint(ifindex, ifindex), &outcome.packet);
                assert_eq!(here, Reason::DeliveredLocal);
            }
            assert_eq!(
                datapath.fate(from_endpoint(ifindex), &way.udp(CLIENT, PORT + 1)),
                Reason::PolicyDenied
            );
        }
    }
}
