//! Services with source ranges: who is judged at its socket, and by what.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    thread,
};

use ipnet::IpNet;
use nix::{
    libc,
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, sendmsg,
        socket,
    },
};
use weft_noded::balance::tables::Step;
use weft_shared::balance::table::{Manner, Sources, Table};

use crate::{
    servers::{self, ask_tcp, ask_udp, greeting},
    world::{MANNER, TCP, UDP, World, backends, key, run},
};

const V4: &str = "10.96.0.1:80";
const V6: &str = "[fd96::1]:80";
const MAPPED: &str = "[::ffff:10.96.0.1]:80";
/// Of the set that the services name, and another one that the node has.
const LISTED: [&str; 2] = ["10.1.0.4", "fd01::4"];
const OTHER: [&str; 2] = ["10.1.0.3", "fd01::3"];

/// A service in both families, whose ranges are the listed addresses.
fn world() -> World {
    let mut world = World::new();
    for address in ["10.1.0.1", "fd01::1"] {
        servers::tcp(address, 8080);
        servers::udp(address, 8080);
    }
    for (number, address) in (1..).zip(LISTED) {
        let set = Some(Arc::new([IpNet::from(address.parse::<IpAddr>().unwrap())].into()));
        world.write(&[Step::Sources { number, set }]);
    }
    world
}

/// Whether the listed ones are denied and all else is let in, or the other way round; and whether the node is.
fn judge(world: &mut World, denied: bool, node: bool) {
    for (set, (address, net)) in (1..).zip([("10.96.0.1", "10.1.0."), ("fd96::1", "fd01::")]) {
        let manner = Manner { sources: Some(Sources { set, denied, node }), ..MANNER };
        let table = Table::new(manner, backends(net, &[1], 8080));
        for protocol in [TCP, UDP] {
            world.serve(key(address, 80, protocol), set, &table);
        }
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Connects from an address, and is told who answers, and as whom.
fn tcp_from(source: &str, service: &str) -> io::Result<()> {
    let to = at(service);
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client: OwnedFd = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    bind(client.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source.parse().unwrap(), 0)))?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(client);
    greeting(&stream);
    assert_eq!((stream.peer_addr()?, stream.local_addr()?.ip()), (to, source.parse().unwrap()));
    Ok(())
}

/// Sends from an address, and hears an answer; then the same connected.
fn udp_from(source: &str, service: &str) -> io::Result<()> {
    let client = UdpSocket::bind((source, 0))?;
    let connected = UdpSocket::bind((source, 0))?;
    let sent = ask_udp(&client, service);
    let called = connected.connect(at(service));
    assert_eq!(kind(sent.as_ref()), kind(called.as_ref()), "{source} {service}: both are judged alike");
    assert_eq!(sent?.1, at(service));
    assert_eq!(connected.peer_addr()?, at(service));
    Ok(())
}

fn kind<T>(outcome: Result<T, &io::Error>) -> Option<ErrorKind> {
    outcome.err().map(io::Error::kind)
}

/// A datagram that names its source itself.
fn datagram_from(source: IpAddr, service: &str) -> io::Result<()> {
    let to = at(service);
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let client = UdpSocket::bind((any, 0))?;
    let (v4, v6);
    let control = match source {
        IpAddr::V4(source) => {
            let spec_dst = libc::in_addr { s_addr: u32::from(source).to_be() };
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: spec_dst,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(source) => {
            let address = libc::in6_addr { s6_addr: source.octets() };
            v6 = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let payload = [IoSlice::new(b"?")];
    sendmsg(client.as_raw_fd(), &payload, &[control], MsgFlags::empty(), Some(&SockaddrStorage::from(to)))?;
    client.set_read_timeout(Some(servers::SOON))?;
    assert_eq!(client.recv_from(&mut [0; 64])?.1, to);
    Ok(())
}

fn is_let_in(outcome: io::Result<()>, what: &str) {
    outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
}

fn is_refused(outcome: &io::Result<()>, what: &str) {
    assert_eq!(kind(outcome.as_ref()), Some(ErrorKind::PermissionDenied), "{what}");
}

/// All that a process of the node can do, each from a source that it has chosen, or from none.
fn calls(source: Option<IpAddr>, service: &str) -> Vec<io::Result<()>> {
    let any = if at(service).is_ipv4() { "0.0.0.0" } else { "::" };
    let Some(source) = source else {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        return vec![ask_tcp(service).map(drop), ask_udp(&socket, service).map(drop), udp_from(any, service)];
    };
    let text = source.to_string();
    vec![tcp_from(&text, service), udp_from(&text, service), datagram_from(source, service)]
}

#[test]
fn a_process_of_a_node_that_is_let_in_is_judged_by_the_source_that_it_has_chosen() {
    let mut world = world();
    for denied in [false, true] {
        judge(&mut world, denied, true);
        for (place, service) in [V4, V6].into_iter().enumerate() {
            for call in calls(None, service) {
                is_let_in(call, &format!("{service} from no source, denied: {denied}"));
            }
            for (source, listed) in [(LISTED[place], true), (OTHER[place], false)] {
                for call in calls(source.parse().ok(), service) {
                    let what = format!("{service} from {source}, denied: {denied}");
                    if listed == denied { is_refused(&call, &what) } else { is_let_in(call, &what) }
                }
            }
        }
        // The same service, called by sockets of IPv6.
        is_let_in(ask_tcp(MAPPED).map(drop), "mapped");
        let (good, bad) = if denied { (OTHER[0], LISTED[0]) } else { (LISTED[0], OTHER[0]) };
        is_let_in(tcp_from(&format!("::ffff:{good}"), MAPPED), "mapped");
        is_refused(&tcp_from(&format!("::ffff:{bad}"), MAPPED), "mapped");
        is_refused(&udp_from(&format!("::ffff:{bad}"), MAPPED), "mapped");
    }
}

#[test]
fn a_process_of_a_node_that_is_not_let_in_is_refused_whatever_its_source() {
    let mut world = world();
    for denied in [false, true] {
        judge(&mut world, denied, false);
        for (place, service) in [V4, V6].into_iter().enumerate() {
            for source in [None, LISTED[place].parse().ok(), OTHER[place].parse().ok()] {
                for call in calls(source, service) {
                    is_refused(&call, &format!("{service} from {source:?}, denied: {denied}"));
                }
            }
        }
    }
}

#[test]
fn a_refused_call_leaves_a_socket_connected_to_whom_it_was() {
    let mut world = world();
    judge(&mut world, false, false);
    world.serve(key("10.96.0.2", 80, UDP), 9, &crate::world::table("10.1.0.", &[1], 8080));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("10.96.0.2:80").unwrap();
    is_refused(&socket.connect(V4), V4);
    assert_eq!(socket.peer_addr().unwrap(), at("10.96.0.2:80"));
    socket.set_read_timeout(Some(servers::SOON)).unwrap();
    socket.send(b"?").unwrap();
    assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1, at("10.96.0.2:80"));
}

#[test]
fn what_other_namespaces_send_is_left_to_those_who_see_packets() {
    let mut world = world();
    judge(&mut world, false, true);
    let elsewhere = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        run("ip address add 10.96.0.1/32 dev lo");
        run("ip address add fd96::1/128 dev lo nodad");
        for address in ["10.96.0.1", "fd96::1"] {
            servers::tcp(address, 80);
            servers::udp(address, 80);
        }
        let any = UdpSocket::bind("[::]:0").unwrap();
        let asked = [ask_tcp(V4), ask_tcp(V6), ask_udp(&any, V6).map(|(answered, _)| answered)];
        asked.map(Result::unwrap)
    });
    // Whoever has the service's address there.
    assert_eq!(elsewhere.join().unwrap().map(|found| found.to_string()), ["10.96.0.1", "fd96::1", "fd96::1"]);
}
