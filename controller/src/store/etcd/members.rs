//! The members and the connections to them. One of them is asked as long as it answers; then it is the next one's turn. That
//! is decided here and not by the client's own balancer, which may keep picking a member that is gone.
use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use etcd_client::{Client, ConnectOptions, ResponseHeader};
use tokio::{sync::Mutex, time::Instant};

use super::{config::EtcdConfig, fault::Fault};
use crate::{keys, limits, store::StoreError};

pub(super) struct Members {
    list: Vec<Member>,
    options: ConnectOptions,
    /// The one to ask first.
    current: AtomicUsize,
    /// The cluster that they are of, once one has said it.
    cluster: OnceLock<u64>,
}

struct Member {
    url: String,
    connection: Mutex<Shared>,
}

/// The connection that all calls to a member share.
#[derive(Default)]
struct Shared {
    client: Option<Client>,
    /// Counts the connections, so that none is closed for what another one did.
    generation: u64,
}

/// A connection to one member.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) url: Arc<str>,
    number: usize,
}

impl fmt::Debug for Members {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<&str> = self.list.iter().map(|member| member.url.as_str()).collect();
        formatter.debug_tuple("Members").field(&urls).finish()
    }
}

impl Members {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let member = |url: &String| Member { url: url.clone(), connection: Mutex::default() };
        Self {
            list: config.members.iter().map(member).collect(),
            options: config.options(),
            current: AtomicUsize::new(0),
            cluster: OnceLock::new(),
        }
    }

    /// Asks until a member answers, or [`limits::ETCD_CALL`] is over. Only for what may be done twice.
    pub(super) async fn read<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask(&ask, |fault| matches!(fault, Fault::NotDone(_) | Fault::Foreign | Fault::Unknown(_))).await
    }

    /// Asks until a member takes the request, or [`limits::ETCD_CALL`] is over. [`Fault::Unknown`]: it may have been done.
    pub(super) async fn write<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask(&ask, |fault| matches!(fault, Fault::NotDone(_) | Fault::Foreign)).await
    }

    async fn ask<T, F>(
        &self,
        ask: &impl Fn(Client) -> F,
        try_again: impl Fn(&Fault) -> bool,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + limits::ETCD_CALL;
        let mut last = vec![String::new(); self.list.len()];
        let mut renewed = 0;
        for attempt in 1.. {
            let number = self.current.load(Ordering::Relaxed);
            let until = deadline.min(Instant::now() + limits::ETCD_ATTEMPT);
            let fault = match self.ask_one(number, until, ask).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let member = &self.list[number];
            tracing::debug!(member = member.url, %fault, "etcd did not do it");
            match &fault {
                // With a new token the same member may be asked at once; not for ever, if it takes none.
                Fault::Credentials(_) if renewed < self.list.len() => renewed += 1,
                Fault::Credentials(text) => return Err(Fault::Refused(text.clone())),
                fault if try_again(fault) => self.leave(number),
                Fault::Unknown(_) => {
                    self.leave(number);
                    return Err(fault);
                }
                _ => return Err(fault),
            }
            // An attempt that was cut short says less than the one before.
            if until < deadline || last[number].is_empty() {
                last[number] = format!("{}: {fault}", member.url);
            }
            if Instant::now() >= deadline {
                last.retain(|text| !text.is_empty());
                return Err(Fault::NotDone(last.join("; ")));
            }
            if attempt % self.list.len() == 0 {
                tokio::time::sleep(limits::ETCD_PAUSE).await;
            }
        }
        Err(Fault::NotDone("no member is named".to_owned()))
    }

    async fn ask_one<T, F>(
        &self,
        number: usize,
        until: Instant,
        ask: &impl Fn(Client) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (client, generation) = self.shared(number, until).await?;
        let fault = match tokio::time::timeout_at(until, ask(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Fault::from(error),
            Err(_late) => Fault::Unknown(no_answer()),
        };
        if matches!(fault, Fault::NotDone(_) | Fault::Unknown(_) | Fault::Credentials(_)) {
            let mut shared = self.list[number].connection.lock().await;
            if shared.generation == generation {
                shared.client = None;
            }
        }
        Err(fault)
    }

    async fn shared(&self, number: usize, until: Instant) -> Result<(Client, u64), Fault> {
        let mut shared = self.list[number].connection.lock().await;
        if let Some(client) = &shared.client {
            return Ok((client.clone(), shared.generation));
        }
        let client = self.open(number, until).await?;
        shared.client = Some(client.clone());
        shared.generation += 1;
        Ok((client, shared.generation))
    }

    async fn open(&self, number: usize, until: Instant) -> Result<Client, Fault> {
        let opening = open(&self.list[number].url, self.options.clone());
        let (client, cluster) = match tokio::time::timeout_at(until, opening).await {
            Ok(Ok(opened)) => opened,
            // Nothing was asked for but a token and who it is.
            Ok(Err(error)) => {
                return Err(match Fault::from(error) {
                    Fault::Unknown(text) => Fault::NotDone(text),
                    fault => fault,
                });
            }
            Err(_late) => return Err(Fault::NotDone(no_answer())),
        };
        if *self.cluster.get_or_init(|| cluster) != cluster {
            return Err(Fault::Foreign);
        }
        Ok(client)
    }

    /// Refuses members of another cluster than the first that answers. Those that do not answer now are looked at when they
    /// are first asked.
    pub(super) async fn refuse_foreign(&self) -> Result<(), Fault> {
        for (number, member) in self.list.iter().enumerate() {
            let until = Instant::now() + limits::ETCD_ATTEMPT;
            if let Err(Fault::Foreign) = self.shared(number, until).await {
                return Err(Fault::Refused(format!("{}: {}", member.url, Fault::Foreign)));
            }
        }
        Ok(())
    }

    /// A connection of its own to the member whose turn it is: what a slow watcher does not read must not take the room of
    /// other answers.
    pub(super) async fn dedicated(&self) -> Result<Connection, Fault> {
        let number = self.current.load(Ordering::Relaxed);
        match self.open(number, Instant::now() + limits::ETCD_ATTEMPT).await {
            Ok(client) => Ok(Connection { client, url: self.list[number].url.as_str().into(), number }),
            Err(fault) => {
                self.leave(number);
                Err(match fault {
                    Fault::NotDone(text) => Fault::NotDone(format!("{}: {text}", self.list[number].url)),
                    fault => fault,
                })
            }
        }
    }

    /// The connection failed: it is another member's turn.
    pub(super) fn leave_connection(&self, connection: &Connection) {
        self.leave(connection.number);
    }

    /// It is the next member's turn, unless somebody has moved on already.
    fn leave(&self, number: usize) {
        let next = (number + 1) % self.list.len();
        // Whoever was first has done what is to be done.
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A connection, and the cluster that is at its other end.
async fn open(url: &str, options: ConnectOptions) -> Result<(Client, u64), etcd_client::Error> {
    let mut client = Client::connect([url], Some(options)).await?;
    let answer = client.get(keys::ROOT, None).await?;
    Ok((client, answer.header().map_or(0, ResponseHeader::cluster_id)))
}

fn no_answer() -> String {
    format!("no answer within {} s", limits::ETCD_ATTEMPT.as_secs())
}

/// For calls that may be done twice, and for those that were certainly not done.
pub(super) fn to_error(fault: Fault) -> StoreError {
    match fault {
        Fault::NotDone(reason) | Fault::Unknown(reason) => StoreError::Unreachable { reason },
        Fault::Credentials(reason) | Fault::Refused(reason) => StoreError::Refused { reason },
        fault @ (Fault::Foreign | Fault::Compacted | Fault::Future | Fault::TooLarge) => {
            StoreError::Refused { reason: fault.to_string() }
        }
    }
}
