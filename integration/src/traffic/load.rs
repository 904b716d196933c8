//! Clients that call services again and again, while it changes who answers: whom may they meet?
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, ensure};

use super::{
    Namespace, Transport,
    call::{any, connect_and_ask, connected_and_ask, names, send_and_ask},
    namespace::join,
};
use crate::{limits::READY, wait};

/// Calls of each client that show that a change holds.
const CALLS: u64 = 100;
/// A flow with the ports of an earlier one would be that one to a node: the kernel's choice comes again. Below what Linux gives.
const FIRST_PORT: u16 = 10_000;

static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);

/// An address with a port that no flow of this process has had.
pub fn fresh(family_of: SocketAddr) -> SocketAddr {
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::new(any(family_of).ip(), port)
}

/// New connections, and new sockets of datagrams, one after the other from each client.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
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
        let shared = Arc::new(Shared { seen: seen.into(), ..Shared::default() });
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

    /// A change is under way, after which these may answer, too.
    pub fn also(&self, may: &[&str]) {
        self.shared.seen().may.extend(names(may.iter().copied()));
    }

    /// A change holds: whoever calls from now on meets these alone, and each of them. How many calls each has answered since.
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

    /// An error if any call was not answered, or by somebody who may not.
    pub fn end(self) -> Result<()> {
        self.shared.end.store(true, Ordering::Relaxed);
        self.clients.into_iter().try_for_each(join)
    }
}

fn call(shared: &Shared, number: usize, transport: Transport, service: SocketAddr) -> Result<()> {
    let mut connects = false;
    while !shared.end.load(Ordering::Relaxed) {
        let before = shared.seen().may.clone();
        connects = !connects;
        let answered = match transport {
            Transport::Udp if connects => connected_and_ask(fresh(service), service)?.1,
            Transport::Udp => send_and_ask(&UdpSocket::bind(fresh(service))?, service)?,
            Transport::Tcp | Transport::Sctp => connect_and_ask(service)?.1,
        };
        ensure!(answered.from == service, "the client is told {}", answered.from);
        let mut seen = shared.seen();
        let by = answered.by;
        ensure!(before.contains(&by) || seen.may.contains(&by), "{by} answers, and takes no new flows");
        *seen.answers.entry(by).or_default() += 1;
        seen.calls[number] += 1;
    }
    Ok(())
}
