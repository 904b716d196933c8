//! Clients that call services again and again, while it changes who answers: whom may they meet?
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Namespace, Transport,
    call::{Answered, any, ask_again, connect_and_ask, names, send_and_ask},
    namespace::join,
};
use crate::{limits::READY, wait};

/// A datagram whose answer has not come by then is lost.
const LOST: Duration = Duration::from_secs(5);
/// Between two calls of a client over UDP: ports are there for some ten thousand flows, and a node that stands for clients has some
/// thousands for each backend.
const PAUSE: Duration = Duration::from_millis(4);
/// Calls of each client that show that a change holds.
const CALLS: u64 = 100;
/// Linux gives sockets ports from 32768 on. A flow with the ports of an earlier one would be that one to a node.
const PORTS: Range<u16> = 10_000..32_768;

static NEXT_PORT: AtomicU16 = AtomicU16::new(PORTS.start);

/// An address with a port that no flow of this process has had.
pub fn fresh(family_of: SocketAddr) -> io::Result<SocketAddr> {
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    let taken = || io::Error::new(ErrorKind::AddrNotAvailable, "this process has used all ports up");
    PORTS.contains(&port).then(|| SocketAddr::new(any(family_of).ip(), port)).ok_or_else(taken)
}

/// New connections, and new sockets of datagrams, one after the other from each client.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<()>>>,
}

/// What may become of calls while a change is under way; otherwise each is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Excused {
    /// Datagrams get lost, where several nodes have a part in it, which have a change one after the other.
    pub losses: bool,
    /// Connections are reset that were being made to a backend that goes.
    pub resets: bool,
}

impl Excused {
    fn excuses(self, error: &io::Error) -> bool {
        match error.kind() {
            ErrorKind::WouldBlock => self.losses,
            // The last of these where a reset has come behind the answer.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => self.resets,
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Shared {
    end: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Who may answer.
    may: BTreeSet<String>,
    /// By backend.
    answers: BTreeMap<String, u64>,
    /// By client.
    calls: Vec<u64>,
    /// Odd while a change is under way.
    changes: u64,
    excused: Excused,
    /// Datagrams.
    lost: u64,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// From this namespace, a client for each service; these backends may answer.
    pub fn start(from: &Namespace, services: &[(Transport, SocketAddr)], may: &[&str]) -> Self {
        let seen =
            Seen { may: names(may.iter().copied()), calls: vec![0; services.len()], ..Seen::default() };
        let shared = Arc::new(Shared { end: AtomicBool::new(false), seen: seen.into() });
        let client = |(number, (transport, service)): (usize, &(Transport, SocketAddr))| {
            let (shared, transport, service) = (Arc::clone(&shared), *transport, *service);
            from.spawn(move || {
                call(&shared, number, transport, service)
                    .with_context(|| format!("{} to {service} under load", transport.name()))
            })
        };
        let clients = services.iter().enumerate().map(client).collect();
        Self { shared, clients }
    }

    /// Makes a change, after which whoever calls meets these alone, and each of them. How many calls each has answered since.
    pub fn change(
        &self,
        to: &[&str],
        excused: Excused,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<BTreeMap<String, u64>> {
        {
            let mut seen = self.shared.seen();
            seen.may.extend(names(to.iter().copied()));
            seen.changes += 1;
            seen.excused = excused;
        }
        make()?;
        self.shared.seen().changes += 1;
        self.only(to)
    }

    /// Returns after a good many calls that only these have answered, and each of them some.
    pub fn only(&self, may: &[&str]) -> Result<BTreeMap<String, u64>> {
        let goals: Vec<u64> = {
            let mut seen = self.shared.seen();
            seen.may = names(may.iter().copied());
            seen.answers.clear();
            seen.calls.iter().map(|calls| calls + CALLS).collect()
        };
        wait::until_true("calls under load", READY, || {
            let seen = self.shared.seen();
            Ok(seen.calls.iter().zip(&goals).all(|(calls, goal)| calls >= goal)
                || self.clients.iter().any(JoinHandle::is_finished))
        })?;
        let answers = self.shared.seen().answers.clone();
        let missing: Vec<_> = may.iter().filter(|name| !answers.contains_key(**name)).collect();
        ensure!(missing.is_empty() || self.has_failed(), "{missing:?} answered none of {answers:?}");
        Ok(answers)
    }

    fn has_failed(&self) -> bool {
        self.clients.iter().any(JoinHandle::is_finished)
    }

    /// An error if any call was not answered, or by somebody who may not. How many datagrams were lost.
    pub fn end(self) -> Result<u64> {
        self.shared.end.store(true, Ordering::Relaxed);
        self.clients.into_iter().try_for_each(join)?;
        Ok(self.shared.seen().lost)
    }
}

fn call(shared: &Shared, number: usize, transport: Transport, service: SocketAddr) -> Result<()> {
    let mut connects = false;
    while !shared.end.load(Ordering::Relaxed) {
        let (before, changes) = {
            let seen = shared.seen();
            (seen.may.clone(), seen.changes)
        };
        connects = !connects;
        let asked = match transport {
            Transport::Udp => {
                thread::park_timeout(PAUSE);
                datagram(service, connects)
            }
            Transport::Tcp | Transport::Sctp => connect_and_ask(service).map(|(_, answered)| answered),
        };
        let mut seen = shared.seen();
        let Answered { by, from, .. } = match asked {
            Err(error) if under_way(&seen, changes) && seen.excused.excuses(&error) => {
                seen.lost += u64::from(transport == Transport::Udp);
                continue;
            }
            asked => asked?,
        };
        ensure!(from == service, "the client is told {from}");
        ensure!(before.contains(&by) || seen.may.contains(&by), "{by} answers, and takes no new flows");
        *seen.answers.entry(by).or_default() += 1;
        seen.calls[number] += 1;
    }
    Ok(())
}

/// Whether a change was, at some time since there had been so many.
fn under_way(seen: &Seen, changes: u64) -> bool {
    changes % 2 == 1 || seen.changes != changes
}

/// By a flow of its own.
fn datagram(service: SocketAddr, connects: bool) -> io::Result<Answered> {
    let socket = UdpSocket::bind(fresh(service)?)?;
    socket.set_read_timeout(Some(LOST))?;
    if connects {
        socket.connect(service)?;
        ask_again(&socket)
    } else {
        send_and_ask(&socket, service)
    }
}
