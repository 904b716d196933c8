//! What the programs tell user space, and how often.

use std::time::Duration;

use tokio::time::Instant;
use weft_noded::{kernel::Datapath as _, plan::tables::Step};
use weft_shared::layout::{Action, Class, Config, Direction, Event, Point, Reason, maps::EVENTS_BYTES};

use crate::{
    harness::{Datapath, FROM_UPLINK, Verdict, from_endpoint},
    packets::{ACK, SYN, TCP, arriving, out_of},
    world::{
        self, API, API_IDENTITY, API_PARTY, API_SLOT, DB_PARTY, FAMILIES, Family, WEB, WEB_IDENTITY,
        WEB_PARTY, WEB_SLOT, WORLD_PARTY, deny_all, for_all, port_row, rule,
    },
};

const SOON: Duration = Duration::from_secs(20);

/// web may call api on TCP 80, by a rule at each end; and the world may, by one.
fn two_rules(config: Config) -> Datapath {
    let mut datapath = Datapath::with_config(Config { overlay_ifindex: world::OVERLAY, ..config });
    datapath.change(|tables| {
        for_all(tables, &deny_all());
        for (slot, direction, peer, number) in [
            (WEB_SLOT, Direction::Egress, API_IDENTITY, 11),
            (API_SLOT, Direction::Ingress, WEB_IDENTITY, 22),
            (API_SLOT, Direction::Ingress, Class::World as u32, 33),
        ] {
            let row = port_row(direction, peer, TCP, 80);
            tables.policies.get_mut(slot).unwrap().insert(row, rule(Action::Allow, number));
        }
    });
    datapath
}

fn told(datapath: &mut Datapath) -> Vec<Event> {
    std::iter::from_fn(|| datapath.events.try_next()).collect()
}

#[test]
fn new_flows_are_told_of_with_the_rules_of_both_ends_while_somebody_wants_to_know() {
    let mut datapath = two_rules(Config::DEFAULT);
    for family in FAMILIES {
        let forth = out_of(WEB, WEB_PARTY, API_PARTY, family);
        datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, SYN));
        assert_eq!(told(&mut datapath), [], "nobody asked");
        datapath.switch.set_allowed(true).unwrap();
        datapath.run(from_endpoint(WEB), &forth.tcp(1000, 80, ACK));
        assert_eq!(told(&mut datapath), [], "a known flow");
        let packet = forth.tcp(1001, 80, SYN);
        datapath.run(from_endpoint(WEB), &packet);
        datapath.run(from_endpoint(API), &forth.back_from(API).tcp(80, 1001, SYN | ACK));
        let [event] = told(&mut datapath)[..] else { panic!("one event") };
        assert_eq!((event.allowed, event.point, event.ifindex), (1, Point::FromEndpoint as u32, WEB));
        assert_eq!((event.rule, event.ingress_rule, event.judged), (11, 22, 0b110));
        assert_eq!((event.source_identity, event.destination_identity), (WEB_IDENTITY, API_IDENTITY));
        assert_eq!((event.source, event.destination), (forth.from.into(), forth.to.into()));
        assert_eq!((event.source_port, event.destination_port, event.protocol), (1001, 80, TCP));
        assert_eq!((event.packets, event.length_bytes as usize), (1, packet.len()));
        datapath.switch.set_allowed(false).unwrap();
        datapath.run(from_endpoint(WEB), &forth.tcp(1002, 80, SYN));
        assert_eq!(told(&mut datapath), [], "nobody asks any more");
    }
}

#[test]
fn where_one_end_is_elsewhere_only_the_other_was_asked() {
    let mut datapath = two_rules(Config::DEFAULT);
    datapath.switch.set_allowed(true).unwrap();
    datapath.run(FROM_UPLINK, &arriving(WORLD_PARTY, API_PARTY, Family::V4).tcp(1000, 80, SYN));
    let [event] = told(&mut datapath)[..] else { panic!("one event") };
    assert_eq!((event.rule, event.ingress_rule, event.judged), (0, 33, 0b010));
    // What is denied is told as ever.
    datapath.run(from_endpoint(WEB), &out_of(WEB, WEB_PARTY, DB_PARTY, Family::V4).tcp(1000, 80, SYN));
    let [event] = told(&mut datapath)[..] else { panic!("one event") };
    assert_eq!((event.allowed, event.reason, event.packets), (0, Reason::PolicyDenied as u32, 1));
}

#[test]
fn what_audited_policies_would_decide_otherwise_is_told_without_being_asked_for() {
    let audited = |action, (would, number)| rule(action, 1).audited_as((would, number));
    let (allow, deny) = (Action::Allow, Action::Deny);
    let mut datapath = Datapath::with_config(Config { overlay_ifindex: world::OVERLAY, ..Config::DEFAULT });
    datapath.change(|tables| {
        for_all(tables, &deny_all());
        let web = tables.policies.get_mut(WEB_SLOT).unwrap();
        web.insert(port_row(Direction::Egress, API_IDENTITY, TCP, 80), rule(allow, 1));
        web.insert(port_row(Direction::Egress, API_IDENTITY, TCP, 81), audited(deny, (allow as u32, 77)));
        // What would be denied at the one end is denied at the other: no difference.
        web.insert(port_row(Direction::Egress, API_IDENTITY, TCP, 82), audited(allow, (deny as u32, 88)));
        let api = tables.policies.get_mut(API_SLOT).unwrap();
        api.insert(port_row(Direction::Ingress, WEB_IDENTITY, TCP, 80), audited(allow, (deny as u32, 99)));
    });
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, API_PARTY, family);
        let mut tell = |port: u16, number: u16| {
            let verdict = datapath.run(from_endpoint(WEB), &way.tcp(1000 + number, port, SYN)).verdict;
            let events = told(&mut datapath);
            let said = events.iter().map(|event| {
                (event.allowed, event.audit_action, event.audit_rule, event.audit_direction, event.packets)
            });
            (verdict, said.collect::<Vec<_>>())
        };
        let [allow, deny] = [allow as u8, deny as u8];
        let [ingress, egress] = [Direction::Ingress as u8, Direction::Egress as u8];
        assert_eq!(tell(80, 1), (Verdict::Redirect, vec![(1, deny, 99, ingress, 1)]), "it passes");
        assert_eq!(tell(80, 2), (Verdict::Redirect, vec![]), "another like it, a moment later");
        assert_eq!(tell(81, 3), (Verdict::Shot, vec![(0, allow, 77, egress, 1)]), "it is dropped");
        assert_eq!(tell(82, 4), (Verdict::Shot, vec![(0, 0, 0, 0, 1)]), "dropped either way");
        // A verdict that is given again, for a flow that is known.
        let bump = [Step::Bump { subjects: vec![WEB_SLOT, API_SLOT], nodes: Vec::new() }];
        datapath.write(&bump);
        let again = Datapath::run(&mut datapath, from_endpoint(WEB), &way.tcp(1001, 80, ACK));
        assert_eq!(
            (again.verdict, told(&mut datapath)),
            (Verdict::Redirect, vec![]),
            "as before, a moment later"
        );
    }
}

#[test]
fn drops_that_look_alike_are_told_once_in_a_while_with_their_number() {
    let again = Duration::from_millis(200);
    let tell_again_after = u64::try_from(again.as_nanos()).unwrap();
    let mut datapath = two_rules(Config { tell_again_after, ..Config::DEFAULT });
    for family in FAMILIES {
        let way = out_of(WEB, WEB_PARTY, DB_PARTY, family);
        let began = Instant::now();
        datapath.run(from_endpoint(WEB), &way.udp(1000, 53));
        let [first] = told(&mut datapath)[..] else { panic!("the first is told at once") };
        assert_eq!(first.packets, 1);
        let mut sent = 0;
        let next = loop {
            // From another port each time, as a client does that tries again.
            datapath.run(from_endpoint(WEB), &way.udp(1001 + sent, 53));
            sent += 1;
            if let Some(event) = told(&mut datapath).first() {
                break *event;
            }
            assert!(began.elapsed() < SOON, "the next is told");
        };
        assert_eq!((next.packets, next.source_port), (u64::from(sent), 1000 + sent));
        assert!(sent > 1, "{sent} in {:?}", began.elapsed());
        // What looks different is told at once.
        datapath.run(from_endpoint(WEB), &way.udp(1000, 54));
        datapath.run(from_endpoint(WEB), &way.tcp(1000, 53, SYN));
        assert_eq!(told(&mut datapath).len(), 2);
    }
}

#[test]
fn what_finds_the_buffer_full_is_counted_as_lost() {
    let mut datapath = two_rules(Config { tell_again_after: 0, ..Config::DEFAULT });
    assert_eq!(datapath.object.events_lost().unwrap(), 0);
    let packet = out_of(WEB, WEB_PARTY, DB_PARTY, Family::V4).udp(1000, 53);
    let sent = EVENTS_BYTES / size_of::<Event>();
    for _ in 0..sent {
        datapath.run(from_endpoint(WEB), &packet);
    }
    let read = told(&mut datapath).len();
    let lost = usize::try_from(datapath.object.events_lost().unwrap()).unwrap();
    assert!(lost > 0, "each event takes eight bytes more than its own");
    assert_eq!(read + lost, sent);
}
