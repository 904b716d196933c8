//! A value that many wait to see change, as tokio's `watch`. That one wakes whoever waits in an order of its own chance;
//! here they wake in the order in which they began to wait, so that a simulated fleet lives the same life again.
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

#[derive(Debug)]
struct Shared<T> {
    current: Mutex<Current<T>>,
    changed: Notify,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Current<T> {
    value: T,
    /// Counts changes.
    version: u64,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Current<T>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value's owner; dropping it ends all waiting.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for it to change.
#[derive(Debug, Clone)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The last version that was seen.
    seen: u64,
}

/// The sender is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody changes the value any more")]
pub struct Closed;

impl<T> Sender<T> {
    pub fn new(value: T) -> Self {
        let current = Mutex::new(Current { value, version: 0 });
        Self(Arc::new(Shared { current, changed: Notify::new(), closed: AtomicBool::new(false) }))
    }

    /// A receiver that has seen the current value.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.lock().version;
        Receiver { shared: Arc::clone(&self.0), seen }
    }

    pub fn send_replace(&self, value: T) -> T {
        let mut replaced = None;
        self.send_modify(|current| replaced = Some(std::mem::replace(current, value)));
        #[expect(clippy::expect_used, reason = "see its text")]
        replaced.expect("`send_modify` calls what it is given")
    }

    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// `modify` says whether it changed anything.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let mut current = self.0.lock();
        let modified = modify(&mut current.value);
        if modified {
            current.version += 1;
            drop(current);
            self.0.changed.notify_waiters();
        }
        modified
    }
}

impl<T: Clone> Sender<T> {
    pub fn get(&self) -> T {
        self.0.lock().value.clone()
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

impl<T: Clone> Receiver<T> {
    pub fn get(&self) -> T {
        self.shared.lock().value.clone()
    }

    /// The value, which then counts as seen.
    pub fn see(&mut self) -> T {
        let current = self.shared.lock();
        self.seen = current.version;
        current.value.clone()
    }

    /// Returns once there is a value that was not seen; it counts as seen then.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let version = self.shared.lock().version;
            if std::mem::replace(&mut self.seen, version) != version {
                return Ok(());
            }
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(Closed);
            }
            changed.await;
        }
    }

    /// The first value, from now on, that is as wanted.
    pub async fn wait_for(&mut self, wanted: impl Fn(&T) -> bool) -> Result<T, Closed> {
        loop {
            let value = self.see();
            if wanted(&value) {
                return Ok(value);
            }
            self.changed().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_once_and_none_is_missed() {
        let sender = Sender::new(1);
        let mut receiver = sender.subscribe();
        sender.send_replace(2);
        sender.send_replace(3);
        receiver.changed().await.unwrap();
        assert_eq!(receiver.get(), 3);
        assert!(!sender.send_if_modified(|_| false));
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed), "both changes were seen at once");
    }

    #[tokio::test]
    async fn waiting_ends_with_the_value_or_with_its_owner() {
        let sender = Sender::new(1);
        let (mut first, mut second) = (sender.subscribe(), sender.subscribe());
        let waiting = tokio::spawn(async move { first.wait_for(|value| *value > 2).await });
        sender.send_replace(2);
        tokio::task::yield_now().await;
        sender.send_replace(3);
        assert_eq!(waiting.await.unwrap(), Ok(3));
        drop(sender);
        assert_eq!(second.wait_for(|value| *value > 3).await, Err(Closed));
    }

    #[tokio::test]
    async fn who_began_to_wait_first_wakes_first() {
        let sender = Sender::new(0);
        let woken = Arc::<Mutex<Vec<usize>>>::default();
        let waiters: Vec<_> = (0..40)
            .map(|number| {
                let (mut receiver, woken) = (sender.subscribe(), Arc::clone(&woken));
                tokio::spawn(async move {
                    receiver.changed().await.unwrap();
                    woken.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..40).collect::<Vec<_>>());
    }
}
