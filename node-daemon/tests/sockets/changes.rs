//! Tables that change while clients go on.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use weft_noded::kernel::{Attached, Datapath as _};
use weft_shared::balance::table::Table;

use crate::{
    servers::{self, ask_tcp, ask_udp, greeting},
    world::{MANNER, TCP, UDP, World, backends, key, table},
};

const SERVICE: &str = "10.96.0.1:80";

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, last])
}

#[test]
fn a_socket_keeps_its_backend_through_changes_as_long_as_it_is_one() {
    let mut world = World::new();
    for last in 1..=4 {
        servers::udp(&ip(last).to_string(), 5353);
    }
    world.serve(key("10.96.0.1", 80, UDP), 1, &table("10.1.0.", &[1, 2, 3], 5353));
    let sockets: Vec<UdpSocket> = (0..60).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
    let ask = |socket: &UdpSocket| ask_udp(socket, SERVICE).unwrap().0;
    let before: Vec<IpAddr> = sockets.iter().map(ask).collect();
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    // One goes, one comes, one takes no new flows.
    let mut members = backends("10.1.0.", &[1, 2, 4], 5353);
    members[1].new_flows = false;
    world.set_table(1, &Table::new(MANNER, members));
    for (socket, had) in sockets.iter().zip(before) {
        let has = ask(socket);
        assert!(if had == ip(3) { has == ip(1) || has == ip(4) } else { has == had }, "{had} {has}");
    }
    let news: BTreeSet<IpAddr> = (0..60).map(|_| ask(&UdpSocket::bind("0.0.0.0:0").unwrap())).collect();
    assert_eq!(news, [ip(1), ip(4)].into());
}

#[test]
fn no_connection_meets_half_of_a_change_or_a_backend_that_went() {
    let mut world = World::new();
    for last in 1..=4 {
        servers::tcp(&ip(last).to_string(), 8080);
    }
    // Nobody listens at the other port of a backend: a mix of two tables would be refused.
    let tables = [table("10.1.0.", &[1, 2], 8080), table("10.1.0.", &[3, 4], 8080)];
    world.serve(key("10.96.0.1", 80, TCP), 1, &tables[0]);
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    ask_tcp(SERVICE).unwrap();
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let kept = TcpStream::connect(SERVICE).unwrap();
    let first = greeting(&kept);
    for round in 0..40_usize {
        let turn = (round + 1) % 2;
        world.set_table(1, &tables[turn]);
        let due: [IpAddr; 2] = if turn == 0 { [ip(1), ip(2)] } else { [ip(3), ip(4)] };
        let has = ask_tcp(SERVICE).unwrap();
        assert!(due.contains(&has), "round {round}: {has} when the change was done");
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 40);
    // Who was connected stays so.
    let mut buffer = [0; 4];
    (&kept).write_all(b"ping").unwrap();
    (&kept).read_exact(&mut buffer).unwrap();
    assert_eq!((&buffer, kept.peer_addr().unwrap()), (b"ping", SERVICE.parse().unwrap()), "{first}");
}

#[test]
fn a_daemon_that_starts_anew_changes_nothing_for_sockets() {
    let mut world = World::new();
    for last in 1..=3 {
        servers::udp(&ip(last).to_string(), 5353);
        servers::tcp(&ip(last).to_string(), 8080);
    }
    world.serve(key("10.96.0.1", 80, UDP), 1, &table("10.1.0.", &[1, 2, 3], 5353));
    world.serve(key("10.96.0.1", 80, TCP), 2, &table("10.1.0.", &[1, 2, 3], 8080));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let had = ask_udp(&socket, SERVICE).unwrap();
    let stream = TcpStream::connect(SERVICE).unwrap();
    let services = world.services();
    assert_eq!(world.restart(), Attached::InPlace);
    assert_eq!(world.services(), services);
    assert_eq!(ask_udp(&socket, SERVICE).unwrap(), had);
    assert_eq!(stream.peer_addr().unwrap(), SERVICE.parse().unwrap());
    assert!(ask_tcp(SERVICE).is_ok());
}

#[test]
fn programs_go_to_the_cgroup_that_is_asked_for_and_leave_the_other() {
    let mut world = World::new();
    servers::tcp("10.1.0.1", 8080);
    world.serve(key("10.96.0.1", 80, TCP), 1, &table("10.1.0.", &[1], 8080));
    let other = world.cgroup.path.join("other");
    std::fs::create_dir(&other).unwrap();
    assert_eq!(world.object.attach_sockets(&other).unwrap(), Attached::Anew);
    assert!(ask_tcp(SERVICE).is_err(), "this process is not in it");
    let cgroup = world.cgroup.path.clone();
    assert_eq!(world.object.attach_sockets(&cgroup).unwrap(), Attached::Anew);
    assert!(ask_tcp(SERVICE).is_ok());
    std::fs::remove_dir(&other).unwrap();
    let error = world.object.attach_sockets(&other).unwrap_err().to_string();
    assert!(error.contains("other"), "{error}");
    let pins = world.pins().to_owned();
    weft_noded::kernel::object::cleanup(&pins).unwrap();
    let deadline = tokio::time::Instant::now() + servers::SOON;
    while ask_tcp(SERVICE).is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the programs are still there");
        thread::yield_now();
    }
}
