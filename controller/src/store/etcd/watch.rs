//! A watch on etcd that outlives its connection: when that fails, hangs or is refused, it goes on at another member, behind
//! the last revision that was handed out.
use std::sync::{Arc, OnceLock};

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::{sync::mpsc, time::Instant};

use super::{
    assembler::Assembler,
    convert::{self, Base},
    fault::Fault,
    members::{Connection, Members, to_error},
};
use crate::{
    keys, limits,
    store::{Batch, StoreError},
};

type Sender = mpsc::Sender<Result<Batch, StoreError>>;

pub(super) struct Follower {
    members: Arc<Members>,
    base: Base,
    prefix: String,
    sender: Sender,
    /// The id of the store that is watched, once that is known; empty while the store has none.
    store_id: OnceLock<Vec<u8>>,
}

/// Why one connection does not serve the watch any more.
enum End {
    /// Nobody listens.
    Dropped,
    /// Nothing that another member would do better.
    Final(StoreError),
    Lost(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Lost(fault)
    }
}

impl Follower {
    pub(super) fn new(members: Arc<Members>, base: Base, prefix: String, sender: Sender) -> Self {
        Self { members, base, prefix, sender, store_id: OnceLock::new() }
    }

    /// Until the watcher is dropped, or there is an error that it has to know.
    pub(super) async fn run(self, after: u64) {
        let mut assembler = Assembler::new(after);
        let (mut lost_at, mut pause): (Option<Instant>, _) = (None, limits::ETCD_PAUSE);
        loop {
            let is_first = self.store_id.get().is_none();
            let end = self.follow(&mut assembler, is_first, &mut lost_at).await;
            let fault = match end {
                End::Dropped => return,
                End::Final(error) => return drop(self.sender.send(Err(error)).await),
                End::Lost(fault) => fault,
            };
            // A revision of which only a part has come is told again from its start.
            assembler = Assembler::new(assembler.position());
            if lost_at.is_none() {
                let revision = assembler.position();
                tracing::warn!(%fault, revision, "the watch of the store was lost, asking other members");
                (lost_at, pause) = (Some(Instant::now()), limits::ETCD_PAUSE);
            } else {
                tracing::debug!(%fault, "the store is still not watched");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.sender.closed() => return,
                }
                pause = (pause * 2).min(limits::ETCD_PAUSE_MAX);
            }
        }
    }

    async fn follow(&self, assembler: &mut Assembler, is_first: bool, lost_at: &mut Option<Instant>) -> End {
        let connection = tokio::select! {
            connection = self.members.dedicated() => match connection {
                Ok(connection) => connection,
                Err(fault) => return fault.into(),
            },
            () = self.sender.closed() => return End::Dropped,
        };
        let end = match self.open(&connection, assembler.position(), is_first).await {
            Ok(stream) => self.receive(stream, assembler, &connection, lost_at).await,
            Err(end) => end,
        };
        if matches!(end, End::Lost(_)) {
            self.members.leave_connection(&connection);
        }
        end
    }

    async fn open(&self, connection: &Connection, after: u64, is_first: bool) -> Result<WatchStream, End> {
        self.refuse_another_store(connection, after, is_first).await?;
        // From the last known revision on, which is told again and left out: a watch from the next one would be taken where
        // that one is compacted, and its deletions forgotten.
        let start = match self.base.theirs(after) {
            Some(start) => start,
            None if self.base == Base(0) => 1,
            None => {
                return Err(End::Final(StoreError::Compacted { requested: after, oldest: self.base.0 + 1 }));
            }
        };
        let options = WatchOptions::new()
            .with_range(convert::end_of(&self.prefix))
            .with_start_revision(start)
            .with_fragment();
        let mut client =
            connection.client.watch_client().max_decoding_message_size(limits::ETCD_ANSWER_MAX_BYTES);
        let opening = client.watch(convert::start_of(&self.prefix, None), Some(options));
        Ok(in_time(opening).await?)
    }

    /// A store that was restored from an older backup would be silent until it gets where this was; another one would go on
    /// as if it were this.
    async fn refuse_another_store(
        &self,
        connection: &Connection,
        after: u64,
        is_first: bool,
    ) -> Result<(), End> {
        let mut client = connection.client.clone();
        let answer = in_time(client.get(keys::STORE_ID, None)).await?;
        let is = answer.kvs().first().map_or(&[][..], |item| item.value());
        let was = self.store_id.get_or_init(|| is.to_vec());
        if was != is {
            let [was, is] = [was, is].map(|id| String::from_utf8_lossy(id).into_owned());
            return Err(End::Final(StoreError::Replaced { was, is }));
        }
        let current = self.base.ours(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        // Where a watch starts is its owner's decision.
        if current < after && !is_first {
            return Err(End::Final(StoreError::Future { requested: after, current }));
        }
        Ok(())
    }

    async fn receive(
        &self,
        mut stream: WatchStream,
        assembler: &mut Assembler,
        connection: &Connection,
        lost_at: &mut Option<Instant>,
    ) -> End {
        // Since when nothing was heard, and whether it was asked for a word since.
        let (mut quiet_since, mut is_asked) = (Instant::now(), false);
        loop {
            let patience = limits::ETCD_WATCH_QUIET
                + if is_asked { limits::ETCD_WATCH_ANSWER } else { std::time::Duration::ZERO };
            let answer = tokio::select! {
                answer = stream.message() => answer,
                () = tokio::time::sleep_until(quiet_since + patience) => {
                    if is_asked {
                        return Fault::Unknown(format!("{} is silent", connection.url)).into();
                    }
                    is_asked = true;
                    // Its answer says that the stream works, and no more: before 3.4.25 and 3.5.8 the revision in it may be
                    // ahead of events that are still to come.
                    if let Err(error) = stream.request_progress().await {
                        return Fault::from(error).into();
                    }
                    continue;
                }
                () = self.sender.closed() => return End::Dropped,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Fault::Unknown(format!("{} ended the watch", connection.url)).into(),
                Err(error) => return Fault::from(error).into(),
            };
            if let Err(end) = self.hand_out(&answer, assembler).await {
                return end;
            }
            if let Some(lost_at) = lost_at.take() {
                let seconds = lost_at.elapsed().as_secs_f64();
                tracing::info!(member = &*connection.url, seconds, "the store is watched again");
            }
            // Not what a slow watcher took.
            (quiet_since, is_asked) = (Instant::now(), false);
        }
    }

    async fn hand_out(&self, answer: &WatchResponse, assembler: &mut Assembler) -> Result<(), End> {
        if answer.canceled() {
            return Err(self.canceled(answer, assembler.position()));
        }
        let events = answer.events().iter().map(|event| convert::event(event, self.base));
        let events = events.collect::<Result<Vec<_>, StoreError>>().map_err(End::Final)?;
        for batch in assembler.take(events, answer.0.fragment) {
            self.sender.send(Ok(batch)).await.map_err(|_| End::Dropped)?;
        }
        Ok(())
    }

    fn canceled(&self, answer: &WatchResponse, position: u64) -> End {
        match self.base.ours(answer.compact_revision()) {
            0 => Fault::Unknown(format!("the watch was cancelled: {}", answer.cancel_reason())).into(),
            oldest => End::Final(StoreError::Compacted { requested: position, oldest }),
        }
    }
}

async fn in_time<T>(ask: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(limits::ETCD_ATTEMPT, ask).await {
        Ok(answered) => answered.map_err(Fault::from),
        Err(_late) => Err(Fault::Unknown(format!("no answer within {} s", limits::ETCD_ATTEMPT.as_secs()))),
    }
}

/// The oldest revision that is kept, asked for by watching one that is not.
pub(super) async fn oldest_kept(members: &Members, base: Base) -> Result<u64, StoreError> {
    let connection = members.dedicated().await.map_err(to_error)?;
    let options = WatchOptions::new().with_start_revision(1);
    let mut client = connection.client.watch_client();
    let mut stream = in_time(client.watch(keys::ROOT, Some(options))).await.map_err(to_error)?;
    loop {
        match in_time(stream.message()).await.map_err(to_error)? {
            Some(answer) if answer.canceled() => return Ok(base.ours(answer.compact_revision())),
            Some(_) => {}
            None => return Err(StoreError::Unreachable { reason: "the watch ended".to_owned() }),
        }
    }
}
