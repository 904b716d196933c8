//! Opening sockets in another network namespace. A socket stays in the namespace that it was opened in, so only the
//! thread that opens it has to enter.
use std::{
    fs::File,
    os::fd::AsRawFd as _,
    process,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace of this machine.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// A named one, as `ip netns` makes them.
    pub fn open(name: &str) -> Result<Self> {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file) })
    }

    /// A new one, which goes when nobody holds it any more. The name is for errors alone.
    pub fn unnamed(name: &str) -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (needs root)")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        Ok(Self { name: name.to_owned(), file: Arc::new(join(made)?) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where others find it, as long as this process holds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// Starts a thread inside. Only sockets and `/proc/thread-self/net` are of that namespace; files are as outside.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let here = self.clone();
        thread::spawn(move || {
            setns(&*here.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", here.name))?;
            work()
        })
    }

    /// Does something inside, and waits for it.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        join(self.spawn(work))
    }
}

/// The result of a thread, its panic as an error.
pub(super) fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked; its message is above"))?
}
