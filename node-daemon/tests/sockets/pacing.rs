//! Rates of connections: real sockets are told theirs, and told again when it changes.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use weft_noded::{
    kernel::{Attached, Datapath as _},
    plan::tables::Step as TableStep,
};
use weft_shared::layout::{Address, Class, Endpoint, Peer, shaping::Pair};

use crate::{
    servers::{self, SOON, greeting},
    world::World,
};

const UNLIMITED: u64 = u64::MAX;
const HOST: u32 = 1;
const WEB: u32 = 300;
const WEB_IFINDEX: u32 = 77;

/// What the kernel keeps the socket to, in bytes a second.
#[expect(unsafe_code, reason = "nobody wraps this option")]
fn rate(stream: &TcpStream) -> u64 {
    let (mut rate, mut length) = (0_u64, 8);
    // SAFETY: the kernel writes at most as many bytes.
    let failed = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw mut rate).cast(),
            &raw mut length,
        )
    };
    assert_eq!((failed, length), (0, 8), "SO_MAX_PACING_RATE has 64 bits (kernel 5.2)");
    rate
}

/// Lets round trips pass until the socket has the rate.
fn assert_comes_to(mut stream: &TcpStream, expected: u64) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while rate(stream) != expected {
        assert!(tokio::time::Instant::now() < deadline, "{} is not {expected}", rate(stream));
        let mut answer = [0];
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut answer).unwrap();
    }
}

fn connect(to: &str) -> TcpStream {
    let stream = TcpStream::connect(to.parse::<SocketAddr>().unwrap()).unwrap();
    greeting(&stream);
    stream
}

fn tell(world: &mut World, address: &str, peer: Peer) {
    let address: Address = address.parse::<std::net::IpAddr>().unwrap().into();
    world.object.write(&[TableStep::Ipcache { address, peer: Some(peer) }]).unwrap();
}

/// As if the address were an endpoint's, whose connections have this rate.
fn endpoint(world: &mut World, address: &str, rate: u32) {
    let peer = Peer { identity: WEB, class: Class::Fleet as u32, node: 0, ifindex: WEB_IFINDEX };
    tell(world, address, peer);
    let row = Endpoint { identity: WEB, connection_rate: rate, ..bytemuck::Zeroable::zeroed() };
    world.object.write(&[TableStep::Endpoint { ifindex: WEB_IFINDEX, endpoint: Some(row) }]).unwrap();
}

fn pace(world: &mut World, rates: &[(&str, u32)]) {
    let rates: BTreeMap<PathBuf, u32> = rates.iter().map(|(path, rate)| ((*path).into(), *rate)).collect();
    world.object.pace_cgroups(&world.cgroup.path, &rates).unwrap();
}

fn pacing() -> World {
    let mut world = World::new();
    assert!(!world.object.pacing_attached().unwrap());
    assert_eq!(world.object.attach_pacing(&world.cgroup.path).unwrap(), Attached::Anew);
    assert_eq!(world.object.attach_pacing(&world.cgroup.path).unwrap(), Attached::InPlace);
    assert!(world.object.pacing_attached().unwrap());
    world
}

#[test]
fn connections_of_an_endpoint_have_its_rate_and_follow_it() {
    for (server, own) in [("10.1.0.1", "10.1.0.2"), ("fd01::1", "fd01::2")] {
        let mut world = pacing();
        servers::tcp(server, 80);
        let to = SocketAddr::new(server.parse().unwrap(), 80);
        let from = SocketAddr::new(own.parse().unwrap(), 0);
        let connect = || {
            let socket = nix::sys::socket::socket(
                if to.is_ipv4() {
                    nix::sys::socket::AddressFamily::Inet
                } else {
                    nix::sys::socket::AddressFamily::Inet6
                },
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::empty(),
                None,
            )
            .unwrap();
            nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(from))
                .unwrap();
            nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(to))
                .unwrap();
            let stream = TcpStream::from(socket);
            greeting(&stream);
            stream
        };
        let before = connect();
        assert_eq!(rate(&before), UNLIMITED);
        endpoint(&mut world, own, 1_000_000);
        let stream = connect();
        assert_eq!(rate(&stream), 1_000_000, "it has it as soon as it is established");
        assert_comes_to(&before, 1_000_000);
        endpoint(&mut world, own, 2_000_000);
        assert_comes_to(&stream, 2_000_000);
        endpoint(&mut world, own, 0);
        assert_comes_to(&stream, UNLIMITED);
        assert_comes_to(&before, UNLIMITED);
    }
}

#[test]
fn connections_of_a_cgroup_have_the_least_rate_of_those_around_it() {
    let mut world = pacing();
    servers::tcp("10.1.0.1", 80);
    let backup = world.cgroup.path.join("backup");
    fs::create_dir(&backup).unwrap();
    let enter = |cgroup: &PathBuf| {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    };
    enter(&backup);
    let (of_backup, root) = (connect("10.1.0.1:80"), world.cgroup.path.clone());
    enter(&root);
    let other = connect("10.1.0.1:80");
    assert_eq!((rate(&of_backup), rate(&other)), (UNLIMITED, UNLIMITED));

    pace(&mut world, &[("backup", 1_000_000), ("not-there", 1)]);
    assert_comes_to(&of_backup, 1_000_000);
    pace(&mut world, &[("backup", 1_000_000), ("", 2_000_000)]);
    assert_comes_to(&other, 2_000_000);
    assert_eq!(rate(&of_backup), 1_000_000);
    pace(&mut world, &[("", 500_000), ("backup", 1_000_000)]);
    assert_comes_to(&of_backup, 500_000);
    pace(&mut world, &[]);
    assert_comes_to(&of_backup, UNLIMITED);
    assert_comes_to(&other, UNLIMITED);
    drop((of_backup, other));
    fs::remove_dir(&backup).unwrap();
}

/// What runs when a connection is accepted is not who owns the listener.
#[test]
fn connections_that_are_accepted_have_the_rate_of_their_listener() {
    let mut world = pacing();
    let listener = std::net::TcpListener::bind("10.1.0.1:80").unwrap();
    pace(&mut world, &[("", 750_000)]);
    let client = TcpStream::connect("10.1.0.1:80").unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!((rate(&client), rate(&accepted)), (750_000, 750_000));
    // By IPv4 through a listener of IPv6.
    let listener = std::net::TcpListener::bind("[::]:81").unwrap();
    let client = TcpStream::connect("10.1.0.1:81").unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!((rate(&client), rate(&accepted)), (750_000, 750_000));
}

#[test]
fn programs_that_a_daemon_left_pace_on_and_are_taken_over() {
    let mut world = pacing();
    servers::tcp("10.1.0.1", 80);
    pace(&mut world, &[("", 1_000_000)]);
    let stream = connect("10.1.0.1:80");
    assert_eq!(rate(&stream), 1_000_000);
    world.restart();
    assert_eq!(rate(&connect("10.1.0.1:80")), 1_000_000);
    assert_eq!(world.object.attach_pacing(&world.cgroup.path.clone()).unwrap(), Attached::InPlace);
    pace(&mut world, &[("", 3_000_000)]);
    assert_comes_to(&stream, 3_000_000);
}

#[test]
fn round_trips_are_kept_by_the_identities_of_both_ends() {
    let mut world = pacing();
    servers::tcp("10.1.0.1", 80);
    let host = Peer { identity: HOST, class: Class::Host as u32, node: 0, ifindex: 0 };
    tell(&mut world, "10.1.0.1", host);
    // A packet to an own address is from the same one.
    let mut stream = connect("10.1.0.1:80");
    let pair = Pair { local: HOST, remote: HOST };
    let deadline = tokio::time::Instant::now() + SOON;
    let samples =
        |world: &mut World| world.object.round_trips().unwrap().get(&pair).map_or(0, |times| times.samples);
    let mut answer = [0];
    while samples(&mut world) < 3 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", world.object.round_trips());
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut answer).unwrap();
    }
    let times = world.object.round_trips().unwrap()[&pair];
    assert!(u128::from(times.sum_microseconds / times.samples) < SOON.as_micros(), "{times:?}");
    assert_eq!(world.object.round_trips().unwrap().len(), 1, "loopback addresses and strangers are nobody's");
}
