//! What a client meets: connecting, sending, and who it is told its peer is.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use weft_shared::{
    balance::table::{Backend, Manner, Table},
    layout::{maps::BACKENDS_MAX, service::FrontendKey},
};

use crate::{
    servers::{self, ask_tcp, ask_udp, greeting},
    world::{MANNER, TCP, UDP, World, backends, key, row, table},
};

const V4: &str = "10.96.0.1:80";
const V6: &str = "[fd96::1]:80";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_tcp_client_reaches_a_backend_and_is_told_the_service() {
    let mut world = World::new();
    for (service, family, net, backend) in
        [(V4, "10.96.0.1", "10.1.0.", "10.1.0.1"), (V6, "fd96::1", "fd01::", "fd01::1")]
    {
        servers::tcp(backend, 8080);
        world.serve(key(family, 80, TCP), if family.contains(':') { 2 } else { 1 }, &table(net, &[1], 8080));
        let stream = TcpStream::connect(at(service)).unwrap();
        assert_eq!(greeting(&stream), ip(backend));
        assert_eq!(stream.peer_addr().unwrap(), at(service));
        // Whoever connects to the backend itself is told the backend.
        let direct = SocketAddr::new(ip(backend), 8080);
        assert_eq!(TcpStream::connect(direct).unwrap().peer_addr().unwrap(), direct);
    }
}

#[test]
fn a_socket_of_ipv6_reaches_services_of_ipv4() {
    let mut world = World::new();
    servers::tcp("10.1.0.1", 8080);
    servers::udp("10.1.0.1", 8080);
    world.serve(key("10.96.0.1", 80, TCP), 1, &table("10.1.0.", &[1], 8080));
    world.serve(key("10.96.0.1", 80, UDP), 2, &table("10.1.0.", &[1], 8080));
    let mapped = "[::ffff:10.96.0.1]:80";
    let stream = TcpStream::connect(at(mapped)).unwrap();
    assert_eq!((greeting(&stream), stream.peer_addr().unwrap()), (ip("10.1.0.1"), at(mapped)));
    let socket = UdpSocket::bind("[::]:0").unwrap();
    assert_eq!(ask_udp(&socket, mapped).unwrap(), (ip("10.1.0.1"), at(mapped)));
    socket.connect(at(mapped)).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), at(mapped));
}

#[test]
fn udp_works_both_ways_connected_and_not() {
    let mut world = World::new();
    for (slot, any, service, address, net, backend) in [
        (1, "0.0.0.0:0", V4, "10.96.0.1", "10.1.0.", "10.1.0.1"),
        (2, "[::]:0", V6, "fd96::1", "fd01::", "fd01::1"),
    ] {
        servers::udp(backend, 5353);
        world.serve(key(address, 80, UDP), slot, &table(net, &[1], 5353));
        let socket = UdpSocket::bind(any).unwrap();
        assert_eq!(ask_udp(&socket, service).unwrap(), (ip(backend), at(service)), "unconnected");
        let direct = SocketAddr::new(ip(backend), 5353).to_string();
        // Of the same socket's flows the last one counts: the backend itself was never called before.
        let other = UdpSocket::bind(any).unwrap();
        assert_eq!(ask_udp(&other, &direct).unwrap(), (ip(backend), at(&direct)), "not by the service");
        let connected = UdpSocket::bind(any).unwrap();
        connected.connect(at(service)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), at(service));
        connected.set_read_timeout(Some(servers::SOON)).unwrap();
        connected.send(b"?").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(connected.recv_from(&mut buffer).unwrap().1, at(service));
        // Connected anew to somebody who is no service, it is told just that.
        connected.connect(at(&direct)).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), at(&direct));
    }
}

#[test]
fn a_port_left_open_is_the_frontends() {
    let mut world = World::new();
    servers::tcp("10.1.0.2", 80);
    world.serve(key("10.96.0.1", 80, TCP), 1, &table("10.1.0.", &[2], 0));
    assert_eq!(ask_tcp(V4).unwrap(), ip("10.1.0.2"));
}

#[test]
fn protocols_and_ports_are_told_apart() {
    let mut world = World::new();
    servers::tcp("10.1.0.1", 8080);
    world.serve(key("10.1.0.9", 80, UDP), 1, &table("10.1.0.", &[1], 8080));
    world.serve(key("10.1.0.9", 81, TCP), 2, &table("10.1.0.", &[1], 8080));
    // Not a service's: as if there were none. The namespace has no route there.
    let error = ask_tcp("10.1.0.9:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
    assert_eq!(ask_tcp("10.1.0.9:81").unwrap(), ip("10.1.0.1"));
}

#[test]
fn without_backends_or_without_a_table_a_call_is_refused_at_once() {
    let mut world = World::new();
    world.serve(key("10.96.0.1", 80, TCP), 1, &table("10.1.0.", &[], 8080));
    world.serve(key("fd96::1", 80, TCP), 2, &table("fd01::", &[], 8080));
    world.serve(key("10.96.0.1", 80, UDP), 1, &table("10.1.0.", &[], 8080));
    // Somebody has taken the table away.
    let key = key("10.96.0.2", 80, TCP);
    world.write(&[weft_noded::balance::tables::Step::Frontend { key, frontend: Some(row(99)) }]);
    for service in [V4, V6, "10.96.0.2:80"] {
        assert_eq!(ask_tcp(service).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{service}");
    }
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    assert_eq!(socket.send_to(b"?", V4).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(socket.connect(V4).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_of_the_node_is_served_at_its_addresses_and_can_not_be_bound() {
    let mut world = World::new();
    servers::tcp("10.1.0.1", 8080);
    servers::tcp("fd01::1", 8080);
    world.own("10.1.0.4");
    world.own("fd01::4");
    world.serve(FrontendKey::node_port(true, 30_080_u16.to_be(), TCP), 1, &table("10.1.0.", &[1], 8080));
    world.serve(FrontendKey::node_port(false, 30_080_u16.to_be(), TCP), 2, &table("fd01::", &[1], 8080));
    for address in ["10.1.0.4", "127.0.0.1", "127.9.9.9", "0.0.0.0"] {
        assert_eq!(ask_tcp(&format!("{address}:30080")).unwrap(), ip("10.1.0.1"), "{address}");
    }
    for address in ["[fd01::4]", "[::1]", "[::]"] {
        assert_eq!(ask_tcp(&format!("{address}:30080")).unwrap(), ip("fd01::1"), "{address}");
    }
    // An address that is not the node's, for all that it knows.
    assert_eq!(ask_tcp("10.1.0.3:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    for address in ["0.0.0.0:30080", "[::]:30080", "10.1.0.3:30080", "127.0.0.1:30080"] {
        assert_eq!(TcpListener::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
    UdpSocket::bind("0.0.0.0:30080").expect("a port of another protocol");
    TcpListener::bind("0.0.0.0:30081").expect("another port");
    // A workload's own loopback and ports are its own.
    let elsewhere = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let nobody = ask_tcp("127.0.0.1:30080").unwrap_err().kind();
        let listener = TcpListener::bind("0.0.0.0:30080").map(|_| ());
        (nobody, listener)
    });
    let (nobody, listener) = elsewhere.join().unwrap();
    assert_eq!(nobody, ErrorKind::ConnectionRefused);
    listener.unwrap();
}

#[test]
fn clients_are_spread_by_weight() {
    let mut world = World::new();
    for backend in ["10.1.0.1", "10.1.0.2"] {
        servers::tcp(backend, 8080);
    }
    let mut members = backends("10.1.0.", &[1, 2], 8080);
    members[0].weight = 3;
    for random in [false, true] {
        world.serve(key("10.96.0.1", 80, TCP), 1, &Table::new(Manner { random, ..MANNER }, members.clone()));
        let first = (0..400).filter(|_| ask_tcp(V4).unwrap() == ip("10.1.0.1")).count();
        // 300 are due; eight standard deviations are 69.
        assert!((231..=369).contains(&first), "{first} of 400, by chance: {random}");
    }
}

#[test]
fn a_client_keeps_its_backend_as_long_as_that_takes_new_flows() {
    let mut world = World::new();
    for backend in ["10.1.0.1", "10.1.0.2", "10.1.0.3"] {
        servers::tcp(backend, 8080);
    }
    let manner = Manner { affinity_seconds: 3600, random: true, ..MANNER };
    let mut members = backends("10.1.0.", &[1, 2, 3], 8080);
    world.serve(key("10.96.0.1", 80, TCP), 1, &Table::new(manner, members.clone()));
    let had = ask_tcp(V4).unwrap();
    assert!((0..50).all(|_| ask_tcp(V4).unwrap() == had));
    for member in &mut members {
        member.new_flows = member.address != had;
    }
    world.set_table(1, &Table::new(manner, members.clone()));
    let next = ask_tcp(V4).unwrap();
    assert_ne!(next, had, "it takes no new flows");
    assert!((0..50).all(|_| ask_tcp(V4).unwrap() == next));
    members.retain(|member| member.address != next);
    world.set_table(1, &Table::new(manner, members.clone()));
    assert!(ask_tcp(V4).is_ok_and(|now| now != next && now != had), "it is gone");
}

#[test]
fn a_backend_is_found_again_among_however_many() {
    let mut world = World::new();
    servers::tcp_anywhere(8080);
    let manner = Manner { affinity_seconds: 3600, random: true, slots: 4093, ..MANNER };
    for (slot, count) in (1..).zip([1, 2, 3, 4, 7, 64, 255, 256, 1000, BACKENDS_MAX]) {
        let backend = |number: usize| {
            let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
            let address = IpAddr::from([127, high, low, 1]);
            Backend { address, port: 8080, weight: 1, new_flows: true, local: false }
        };
        world.serve(key("10.96.0.1", 80, TCP), slot, &Table::new(manner, (0..count).map(backend).collect()));
        let had = ask_tcp(V4).unwrap();
        for _ in 0..20 {
            assert_eq!(ask_tcp(V4).unwrap(), had, "of {count}");
        }
    }
}
