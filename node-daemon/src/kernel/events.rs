//! Drops and new flows, as the kernel programs tell of them.

use std::io;

use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
};
use tokio::io::unix::AsyncFd;
use weft_shared::layout::{Event, maps as names, monitor_flags};

use super::{
    KernelError,
    maps::take,
    trusted::{from_bytes, watch},
};

/// Tells the programs what somebody wants to know.
pub struct Switch {
    flags: Array<MapData, u32>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Switch").finish_non_exhaustive()
    }
}

impl Switch {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        Ok(Self { flags: take(ebpf, names::MapName { object: names::MONITOR, pin: names::MONITOR })? })
    }

    /// Whether new flows that are allowed are told of.
    pub fn set_allowed(&mut self, wanted: bool) -> Result<(), KernelError> {
        let flags = if wanted { monitor_flags::ALLOWED } else { 0 };
        self.flags
            .set(0, flags, 0)
            .map_err(|error| KernelError::new(format!("map {}", names::MONITOR), error))
    }
}

/// The ring buffer's reader. What nobody reads is lost in the kernel, and counted there.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        Ok(Self { ring: take(ebpf, names::EVENTS)? })
    }

    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        // Only our programs write there, and only events.
        self.ring.next().and_then(|bytes| from_bytes(&bytes))
    }

    /// For a reader that waits. Needs tokio's runtime.
    pub fn into_async(self) -> io::Result<EventStream> {
        Ok(EventStream { ring: watch(self.ring)? })
    }
}

/// Events, waited for.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    /// The next event. Cancelling loses none.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            if let Some(event) = ready.get_inner_mut().next().and_then(|bytes| from_bytes(&bytes)) {
                return Ok(event);
            }
            ready.clear_ready();
        }
    }
}
