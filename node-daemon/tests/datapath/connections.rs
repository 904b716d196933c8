//! What the table of connections to services gives away at XDP: ports that are over, and how many rows in a second.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use tokio::time::Instant;
use weft_shared::layout::{Config, Reason};

use crate::{
    forwarding::{DROP, DSR, MANNER, OUTSIDE, TX, Uplink, VIP, ends, key, question, table, unwrap},
    harness::FROM_UPLINK,
    packets::{ACK, FIN, SYN, TCP, UDP, arriving},
    world::{self, DB_PARTY, FAMILIES, HOST_PARTY, WORLD_PARTY},
};

const CONFIG: Config = Config { overlay_ifindex: world::OVERLAY, ..Config::DEFAULT };

/// After FIN or RST.
const OVER: Duration = Duration::from_secs(10);
/// The clock of connections is that much behind at most.
const COARSE: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn the_port_of_a_connection_that_has_ended_is_given_again_and_answers_are_its_new_ones() {
    let config = Config { snat_first_port: 61_000, snat_last_port: 61_002, ..CONFIG };
    let mut uplink = Uplink::with_config(config);
    for (slot, family) in (1..).zip(FAMILIES) {
        uplink.serve(
            key(VIP.address(family), 80, TCP),
            slot,
            &table(MANNER, &[(OUTSIDE.address(family), 80)]),
        );
    }
    let ask =
        |uplink: &mut Uplink, family, client, flags| uplink.fate(&question(family).tcp(client, 80, flags));
    let began = Instant::now();
    let mut had =
        FAMILIES.map(|family| [1, 2, 3].map(|client| ends(&ask(&mut uplink, family, client, SYN).packet).0));
    for (family, had) in FAMILIES.into_iter().zip(&mut had) {
        // One ends by its client, one by its backend; the third goes on.
        ask(&mut uplink, family, 1, FIN | ACK);
        let answer = arriving(OUTSIDE, HOST_PARTY, family).tcp(80, had[1].port(), FIN | ACK);
        assert_eq!(uplink.reason(&answer), Some(Reason::ServiceForwarded), "{family:?}");
    }
    for (family, had) in FAMILIES.into_iter().zip(had) {
        let ended: BTreeSet<SocketAddr> = had[..2].iter().copied().collect();
        let mut given = BTreeSet::new();
        for client in [4, 5] {
            let sent = loop {
                let fate = ask(&mut uplink, family, client, SYN);
                if fate.verdict == TX {
                    break fate;
                }
                assert_eq!((fate.verdict, fate.reason), (DROP, Some(Reason::NoPortLeft)));
                assert!(began.elapsed() < DEADLINE, "{family:?}: no port is given again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            assert!(began.elapsed() + COARSE >= OVER, "{family:?}: after {:?}", began.elapsed());
            let own = ends(&sent.packet).0;
            assert!(given.insert(own), "{own} is given twice");
            let answer = arriving(OUTSIDE, HOST_PARTY, family).tcp(80, own.port(), SYN | ACK);
            let client = SocketAddr::new(WORLD_PARTY.address(family), client);
            assert_eq!(ends(&uplink.fate(&answer).packet).1, client, "{family:?}");
        }
        assert_eq!(given, ended, "{family:?}: the ports of those that have ended");
        // Who had one has none any more, and who has one keeps it.
        for client in [1, 2, 6] {
            assert_eq!(
                ask(&mut uplink, family, client, ACK).reason,
                Some(Reason::NoPortLeft),
                "{family:?} {client}"
            );
        }
        assert_eq!(ends(&ask(&mut uplink, family, 3, ACK).packet).0, had[2], "{family:?}");
    }
}

/// The row was made as one of a backend outside; only tc can send into the overlay.
#[tokio::test]
async fn a_backend_that_comes_into_the_pools_is_tcs_from_then_on_and_keeps_its_connections() {
    for family in FAMILIES {
        let mut uplink = Uplink::with_config(CONFIG);
        let outside = OUTSIDE.address(family);
        uplink.serve(key(VIP.address(family), 80, UDP), 1, &table(MANNER, &[(outside, 80)]));
        let packet = question(family).udp(4000, 80);
        let own = ends(&uplink.fate(&packet).packet).0;

        uplink.datapath.change(|world| {
            let db = world.ipcache[&DB_PARTY.address(family).into()];
            world.ipcache.insert(outside.into(), db);
        });
        // What led to a row is looked at again once a second.
        let began = Instant::now();
        while uplink.reason(&packet) == Some(Reason::ServiceForwarded) {
            assert!(began.elapsed() < DEADLINE, "{family:?}: it is never looked at again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        for _ in 0..3 {
            assert_eq!(uplink.reason(&packet), Some(Reason::PassedToTc), "{family:?}");
            let (reason, outcome) = uplink.datapath.reason(FROM_UPLINK, &packet);
            assert_eq!((reason, ends(&outcome.packet).0), (Reason::DeliveredOverlay, own), "{family:?}");
        }
        assert_eq!(uplink.datapath.object.connections().unwrap().len(), 2, "{family:?}");
        // Its answers come by the overlay, and by no other way.
        let answer = arriving(OUTSIDE, HOST_PARTY, family).udp(80, own.port());
        assert_eq!(uplink.reason(&answer), Some(Reason::PassedToTc), "{family:?}");
        assert_eq!(
            uplink.datapath.fate(FROM_UPLINK, &answer),
            Reason::PoolSourceOutsideOverlay,
            "{family:?}"
        );
    }
}

/// Each CPU counts for itself.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

const A_SECOND: u64 = 5;
const CLIENTS: u16 = 50;

/// Asks as many new clients. How many were remembered, of what the time allowed at most.
fn crowd(uplink: &mut Uplink, packet: impl Fn(u16) -> Vec<u8>, beyond: (u32, Reason)) -> u64 {
    let began = Instant::now();
    let mut remembered = 0;
    for client in 1000..1000 + CLIENTS {
        let fate = uplink.fate(&packet(client));
        if fate.reason == Some(Reason::ServiceForwarded) {
            remembered += 1;
        } else {
            assert_eq!((fate.verdict, fate.reason), (beyond.0, Some(beyond.1)), "client {client}");
        }
    }
    // As many seconds as the clock may have begun meanwhile; the known client counted in the first.
    let seconds = began.elapsed().as_secs() + 2;
    assert!(
        (A_SECOND - 1..=A_SECOND * seconds).contains(&remembered),
        "{remembered} in less than {seconds} s"
    );
    assert!(remembered < u64::from(CLIENTS), "the machine was too slow for this to say anything");
    remembered
}

/// The next second begins.
async fn until_one_is_remembered(uplink: &mut Uplink, packet: impl Fn(u16) -> Vec<u8>) {
    let began = Instant::now();
    for client in 2000.. {
        if uplink.reason(&packet(client)) == Some(Reason::ServiceForwarded) {
            return;
        }
        assert!(began.elapsed() < DEADLINE, "nothing is remembered any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_crowd_of_new_clients_is_sent_on_by_their_hashes_and_pushes_nobody_out() {
    stay_on_this_cpu();
    for family in FAMILIES {
        let mut uplink = Uplink::with_config(Config { connections_a_second: A_SECOND, ..CONFIG });
        uplink.serve(key(VIP.address(family), 80, UDP), 1, &table(DSR, &[(DB_PARTY.address(family), 0)]));
        let packet = |client| question(family).udp(client, 80);
        let known = uplink.fate(&packet(1));
        assert_eq!(known.reason, Some(Reason::ServiceForwarded));

        let remembered = crowd(&mut uplink, packet, (TX, Reason::ServiceUnremembered)) + 1;

        assert_eq!(uplink.datapath.object.connections().unwrap().len() as u64, remembered, "{family:?}");
        // Both are sent as they were: by what is remembered, and by the hash.
        assert_eq!(unwrap(&uplink.fate(&packet(1)).packet), unwrap(&known.packet), "{family:?}");
        let last = uplink.fate(&packet(999 + CLIENTS));
        assert_eq!(unwrap(&last.packet).to, unwrap(&known.packet).to, "{family:?}");
        until_one_is_remembered(&mut uplink, packet).await;
    }
}

#[tokio::test]
async fn a_crowd_that_needs_ports_is_dropped_beyond_the_rate_and_who_has_one_is_not() {
    stay_on_this_cpu();
    for family in FAMILIES {
        let mut uplink = Uplink::with_config(Config { connections_a_second: A_SECOND, ..CONFIG });
        uplink.serve(key(VIP.address(family), 80, UDP), 1, &table(MANNER, &[(OUTSIDE.address(family), 80)]));
        let packet = |client| question(family).udp(client, 80);
        let known = ends(&uplink.fate(&packet(1)).packet);

        let remembered = crowd(&mut uplink, packet, (DROP, Reason::NoPortLeft)) + 1;

        // Of each connection one row for what is asked, one for what is answered.
        assert_eq!(uplink.datapath.object.connections().unwrap().len() as u64, 2 * remembered, "{family:?}");
        assert_eq!(ends(&uplink.fate(&packet(1)).packet), known, "{family:?}");
        until_one_is_remembered(&mut uplink, packet).await;
    }
}
