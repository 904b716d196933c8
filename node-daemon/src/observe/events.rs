//! Events of the ring buffer, for everyone who monitors, and what the kernel programs are asked to tell.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};
use tracing::warn;
use weft_shared::layout::Event;

use crate::{
    kernel::{KernelError, events::Switch},
    limits::MONITOR_QUEUED_MAX,
};

/// Tells the kernel programs what somebody wants to know.
pub trait Asking: Send {
    /// Whether new flows that are allowed are told of.
    fn set_allowed(&mut self, wanted: bool) -> Result<(), KernelError>;
}

impl Asking for Switch {
    fn set_allowed(&mut self, wanted: bool) -> Result<(), KernelError> {
        Self::set_allowed(self, wanted)
    }
}

/// Where events are published; a monitor that is slow loses the oldest, and is told how many.
#[derive(Clone)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    wanted: Arc<Mutex<Wanted>>,
}

struct Wanted {
    /// Monitors that want to know of new flows.
    monitors: usize,
    switch: Box<dyn Asking>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub fn new(switch: impl Asking + 'static) -> Self {
        let wanted = Wanted { monitors: 0, switch: Box::new(switch) };
        Self { sender: broadcast::Sender::new(MONITOR_QUEUED_MAX), wanted: Arc::new(Mutex::new(wanted)) }
    }

    /// Nobody listening is no error.
    pub fn publish(&self, event: Event) {
        if self.sender.receiver_count() > 0 {
            drop(self.sender.send(Arc::new(event)));
        }
    }

    /// Events from now on. With `allowed`, the kernel programs tell of new flows for as long as the subscription lives.
    pub fn subscribe(&self, allowed: bool) -> Result<Subscription, KernelError> {
        let receiver = self.sender.subscribe();
        let asked = if allowed { Some(Asked::new(Arc::clone(&self.wanted))?) } else { None };
        Ok(Subscription { receiver, _asked: asked })
    }
}

/// One monitor's place.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Event>>,
    _asked: Option<Asked>,
}

impl Subscription {
    /// The next event, or how many were lost; `None` at the end. Cancelling loses none.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, u64>> {
        match self.receiver.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(lost)) => Some(Err(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Asked")
    }
}

/// A wish to know of new flows, until it is dropped.
struct Asked(Arc<Mutex<Wanted>>);

impl Asked {
    fn new(wanted: Arc<Mutex<Wanted>>) -> Result<Self, KernelError> {
        {
            let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted.monitors == 0 {
                wanted.switch.set_allowed(true)?;
            }
            wanted.monitors += 1;
        }
        Ok(Self(wanted))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.monitors -= 1;
        if wanted.monitors == 0
            && let Err(error) = wanted.switch.set_allowed(false)
        {
            warn!(%error, "the kernel programs go on telling of new flows");
        }
    }
}
