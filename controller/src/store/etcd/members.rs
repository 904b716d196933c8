//! The members and the connections to them. One of them is asked as long as it answers; then it is the next one's turn. That
//! is decided here and not by the client's own balancer, which may keep picking a member that is gone.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use etcd_client::{Client, ConnectOptions};
use tokio::{sync::Mutex, time::Instant};

use super::{config::EtcdConfig, fault::Fault};
use crate::{limits, store::StoreError};

pub(super) struct Members {
    list: Vec<Member>,
    options: ConnectOptions,
    /// The one to ask first.
    current: AtomicUsize,
}

struct Member {
    url: String,
    connection: Mutex<Option<Client>>,
}

/// A connection to one member.
#[derive(Clone)]
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
        let member = |url: &String| Member { url: url.clone(), connection: Mutex::new(None) };
        Self {
            list: config.members.iter().map(member).collect(),
            options: config.options(),
            current: AtomicUsize::new(0),
        }
    }

    /// Asks until a member answers, or time is up. Only for what may be done twice.
    pub(super) async fn read<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask(&ask, |fault| matches!(fault, Fault::NotDone(_) | Fault::Unknown(_))).await
    }

    /// Asks until a member takes the request, or time is up. [`Fault::Unknown`]: it may have been done.
    pub(super) async fn write<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask(&ask, |fault| matches!(fault, Fault::NotDone(_))).await
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
            let fault = match self.ask_one(number, ask).await {
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
            last[number] = format!("{}: {fault}", member.url);
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

    async fn ask_one<T, F>(&self, number: usize, ask: &impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let client = self.connected(number).await?;
        let answered = tokio::time::timeout(limits::ETCD_ATTEMPT, ask(client)).await;
        let fault = match answered {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Fault::from(error),
            Err(_late) => Fault::Unknown(no_answer()),
        };
        if matches!(fault, Fault::NotDone(_) | Fault::Unknown(_) | Fault::Credentials(_)) {
            *self.list[number].connection.lock().await = None;
        }
        Err(fault)
    }

    /// The connection that all calls to a member share.
    async fn connected(&self, number: usize) -> Result<Client, Fault> {
        let mut connection = self.list[number].connection.lock().await;
        if let Some(client) = &*connection {
            return Ok(client.clone());
        }
        let client = self.open(number).await?;
        *connection = Some(client.clone());
        Ok(client)
    }

    async fn open(&self, number: usize) -> Result<Client, Fault> {
        let url = &self.list[number].url;
        let connecting = Client::connect([url], Some(self.options.clone()));
        match tokio::time::timeout(limits::ETCD_ATTEMPT, connecting).await {
            Ok(Ok(client)) => Ok(client),
            // Nothing but a token was asked for.
            Ok(Err(error)) => Err(match Fault::from(error) {
                Fault::Unknown(text) => Fault::NotDone(text),
                fault => fault,
            }),
            Err(_late) => Err(Fault::NotDone(no_answer())),
        }
    }

    /// A connection of its own to the member whose turn it is: what a slow watcher does not read must not take the room of
    /// other answers.
    pub(super) async fn dedicated(&self) -> Result<Connection, Fault> {
        let number = self.current.load(Ordering::Relaxed);
        match self.open(number).await {
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

fn no_answer() -> String {
    format!("no answer within {} s", limits::ETCD_ATTEMPT.as_secs())
}

/// For calls that may be done twice, and for those that were certainly not done.
pub(super) fn to_error(fault: Fault) -> StoreError {
    match fault {
        Fault::NotDone(reason) | Fault::Unknown(reason) => StoreError::Unreachable { reason },
        Fault::Credentials(reason) | Fault::Refused(reason) => StoreError::Refused { reason },
        fault @ (Fault::Compacted | Fault::Future | Fault::TooLarge) => {
            StoreError::Refused { reason: fault.to_string() }
        }
    }
}
