//! A probe reaches the backend itself, whatever else is at its address.

use std::{net::IpAddr, os::fd::AsRawFd as _, thread, time::Duration};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::Mark,
    },
};
use weft_noded::health::{
    Check,
    probe::{Failure, probe},
    targets::Target,
};
use weft_shared::layout::service::PROBE_MARK;

use crate::{
    servers::{self, ask_tcp},
    world::{TCP, World, key, table},
};

/// What a probe of the address's port 8080 finds.
fn probed(address: &str) -> Result<(), Failure> {
    let second = Duration::from_secs(1);
    let check = Check { interval: second, timeout: second, unhealthy_after: 1, healthy_after: 1, http: None };
    let target = Target { ports: vec![8080], check };
    let address: IpAddr = address.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(probe(address, &target))
}

fn refused() -> Result<(), Failure> {
    Err(Failure::Backend("Connection refused (os error 111)".to_owned()))
}

#[test]
fn a_backend_that_is_a_frontend_of_another_service_is_probed_itself() {
    let mut world = World::new();
    for (slot, backend, net, other) in
        [(1, "10.1.0.1", "10.1.0.", "10.1.0.2"), (2, "fd01::1", "fd01::", "fd01::2")]
    {
        servers::tcp(other, 8080);
        // Of another service, whose own backend answers.
        world.serve(key(backend, 8080, TCP), slot, &table(net, &[2], 8080));
        let clients =
            if backend.contains(':') { format!("[{backend}]:8080") } else { format!("{backend}:8080") };
        assert_eq!(ask_tcp(&clients).unwrap().to_string(), other, "clients are balanced");
        assert_eq!(probed(backend), refused(), "nobody is there");
        servers::tcp(backend, 8080);
        assert_eq!(probed(backend), Ok(()));

        // And where the other service has nobody, the backend is there all the same.
        world.set_table(slot, &table(net, &[], 8080));
        assert!(ask_tcp(&clients).is_err());
        assert_eq!(probed(backend), Ok(()));
    }
}

#[test]
fn a_workload_does_not_pass_for_a_probe() {
    let mut world = World::new();
    servers::tcp("10.1.0.2", 8080);
    servers::tcp("10.1.0.1", 8080);
    world.serve(key("10.1.0.1", 8080, TCP), 1, &table("10.1.0.", &[], 8080));
    let marked = || {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        setsockopt(&socket, Mark, &PROBE_MARK).unwrap();
        connect(socket.as_raw_fd(), &SockaddrIn::new(10, 1, 0, 1, 8080))
    };
    assert_eq!(marked(), Ok(()));
    let elsewhere = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        marked()
    });
    // The service rejects it; past the service there would be no way.
    assert_eq!(elsewhere.join().unwrap(), Err(Errno::ECONNREFUSED));
}
