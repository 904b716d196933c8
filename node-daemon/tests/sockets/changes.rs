//! Tables that change while clients go on.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{Backlog, listen};
use weft_noded::kernel::{Attached, Datapath as _};
use weft_shared::{
    balance::table::{Manner, Table},
    layout::{Address, service::SocketPeer},
};

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

/// What a connected socket hears, asked for once: `None`, nothing is wrong with it.
fn state(socket: &UdpSocket) -> Option<ErrorKind> {
    socket.set_read_timeout(Some(servers::SOON)).unwrap();
    let heard = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 64]));
    heard.err().map(|error| error.kind())
}

/// A socket whose service's backend is the one with this number.
fn connected_to(last: u8, service: &str) -> UdpSocket {
    let any = if service.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    for _ in 0..200 {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(service).unwrap();
        socket.set_read_timeout(Some(servers::SOON)).unwrap();
        let mut buffer = [0; 64];
        socket.send(b"?").unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        if buffer[..length].ends_with(last.to_string().as_bytes()) {
            return socket;
        }
    }
    panic!("none of 200 sockets got the backend {last} of {service}");
}

#[test]
fn connected_sockets_of_a_backend_that_has_gone_are_ended_and_no_others() {
    let mut world = World::new();
    for last in 1..=2 {
        servers::udp(&ip(last).to_string(), 5353);
        servers::udp(&format!("fd01::{last}"), 5353);
    }
    world.serve(key("10.96.0.1", 80, UDP), 1, &table("10.1.0.", &[1, 2], 5353));
    world.serve(key("fd96::1", 80, UDP), 2, &table("fd01::", &[1, 2], 5353));
    let services = [SERVICE, "[fd96::1]:80", "[::ffff:10.96.0.1]:80"];
    let going = services.map(|service| connected_to(1, service));
    let staying = services.map(|service| connected_to(2, service));
    // Whoever called the backend by its own name knows what to do when it does not answer.
    let direct = UdpSocket::bind("0.0.0.0:0").unwrap();
    direct.connect((ip(1), 5353)).unwrap();
    let gone = [ip(1), "fd01::1".parse().unwrap()].map(Address::from);
    let serves = |_, peer: &SocketPeer| !gone.contains(&peer.backend.address);
    assert_eq!(world.object.end_sockets(&["/run/netns/gone".to_owned()], &[UDP], &serves).unwrap(), 3);
    for socket in &going {
        assert!(socket.recv(&mut [0; 64]).is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted));
    }
    assert!(staying.iter().chain([&direct]).all(|socket| state(socket).is_none()));
    assert_eq!(world.object.end_sockets(&[], &[UDP], &serves).unwrap(), 0);
}

/// A connection whose service's backend is the one with this number.
fn tcp_to(last: u8, service: &str) -> TcpStream {
    for _ in 0..200 {
        let stream = TcpStream::connect(service).unwrap();
        if greeting(&stream).to_string().ends_with(&last.to_string()) {
            return stream;
        }
    }
    panic!("none of 200 connections got the backend {last} of {service}");
}

fn echoes(mut stream: &TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut buffer)).is_ok() && &buffer == b"ping"
}

#[test]
fn tcp_connections_to_a_backend_that_has_gone_are_ended_where_the_service_asks_for_it() {
    let mut world = World::new();
    for last in 1..=2 {
        servers::tcp(&ip(last).to_string(), 8080);
        servers::tcp(&format!("fd01::{last}"), 8080);
    }
    let asks = |net| Table::new(Manner { end_connections: true, ..MANNER }, backends(net, &[1, 2], 8080));
    world.serve(key("10.96.0.1", 80, TCP), 1, &asks("10.1.0."));
    world.serve(key("fd96::1", 80, TCP), 2, &asks("fd01::"));
    world.serve(key("10.96.0.2", 80, TCP), 3, &table("10.1.0.", &[1, 2], 8080));
    let services = [SERVICE, "[fd96::1]:80", "[::ffff:10.96.0.1]:80"];
    let going = services.map(|service| tcp_to(1, service));
    let staying: Vec<TcpStream> = services
        .map(|service| tcp_to(2, service))
        .into_iter()
        .chain([tcp_to(1, "10.96.0.2:80"), TcpStream::connect((ip(1), 8080)).unwrap()])
        .collect();
    greeting(staying.last().unwrap());
    let gone = [ip(1), "fd01::1".parse().unwrap()].map(Address::from);
    let serves = |_, peer: &SocketPeer| !gone.contains(&peer.backend.address);
    assert_eq!(world.object.end_sockets(&[], &[UDP], &serves).unwrap(), 0, "TCP was not asked for");
    assert!(going.iter().all(echoes));

    assert_eq!(world.object.end_sockets(&[], &[UDP, TCP], &serves).unwrap(), 3);

    for mut stream in &going {
        let heard = stream.read(&mut [0; 1]).unwrap_err().kind();
        assert_eq!(heard, ErrorKind::ConnectionAborted);
    }
    assert!(staying.iter().all(echoes));
    assert_eq!(world.object.end_sockets(&[], &[UDP, TCP], &serves).unwrap(), 0);
}

/// A listener whose queue is full, so that it answers nobody, with those in it.
fn full_listener(address: IpAddr) -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    // Again, with a queue for one.
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(300)) {
        waiting.push(stream);
    }
    (listener, waiting)
}

/// A process may wait for the other end before it has answered, and have more to say after it has said its last.
#[test]
fn tcp_connections_that_are_being_made_or_half_closed_are_ended_too() {
    let mut world = World::new();
    let half = TcpListener::bind((ip(2), 8082)).unwrap();
    let manner = Manner { end_connections: true, ..MANNER };
    world.serve(key("10.96.0.4", 80, TCP), 1, &Table::new(manner, backends("10.1.0.", &[2], 8082)));
    let mut stream = TcpStream::connect("10.96.0.4:80").unwrap();
    half.accept().unwrap().0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the other end has closed");
    assert_eq!(world.object.end_sockets(&[], &[TCP], &|_, _| false).unwrap(), 1);
    assert!(stream.write_all(b"more").is_err());

    let (full, _waiting) = full_listener(ip(1));
    let port = full.local_addr().unwrap().port();
    world.serve(key("10.96.0.5", 80, TCP), 2, &Table::new(manner, backends("10.1.0.", &[1], port)));
    let waiting = thread::spawn(|| TcpStream::connect("10.96.0.5:80").unwrap_err().kind());
    let deadline = tokio::time::Instant::now() + servers::SOON;
    while world.object.end_sockets(&[], &[TCP], &|_, _| false).unwrap() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "no connection was being made");
        thread::yield_now();
    }
    assert_eq!(waiting.join().unwrap(), ErrorKind::ConnectionAborted);
}

#[test]
fn sockets_in_other_namespaces_are_found_there() {
    let mut world = World::new();
    world.serve(key("10.96.0.1", 80, UDP), 1, &table("127.0.0.", &[9], 5353));
    let (tell, told) = std::sync::mpsc::channel();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let workload = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(SERVICE).unwrap();
        tell.send(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())).unwrap();
        wait.recv().unwrap();
        socket.recv(&mut [0; 64]).unwrap_err().kind()
    });
    let namespace = told.recv().unwrap();
    assert_eq!(world.object.end_sockets(&[], &[UDP], &|_, _| false).unwrap(), 0);
    assert_eq!(world.object.end_sockets(&[namespace], &[UDP], &|_, _| false).unwrap(), 1);
    done.send(()).unwrap();
    assert_eq!(workload.join().unwrap(), ErrorKind::ConnectionAborted);
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
