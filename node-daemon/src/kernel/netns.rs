//! Work inside another network namespace. A namespace belongs to a thread, so a thread of its own enters it, works, and
//! ends; no worker of the runtime is ever in a namespace that is not the node's.

use std::{fs::File, future::Future, thread};

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use tokio::{runtime::Builder, sync::oneshot};

use super::{KernelError, trusted::namespace};

/// The number by which programs know the namespace of the calling thread. Never 0.
pub fn cookie() -> Result<u64, KernelError> {
    namespace::cookie().map_err(|error| KernelError::new("ask for the network namespace's cookie", error))
}

/// Enters the namespace at `path` and works there with a netlink connection of its own.
pub async fn inside<T, W, F>(path: String, work: W) -> Result<T, KernelError>
where
    T: Send + 'static,
    W: FnOnce(Handle) -> F + Send + 'static,
    F: Future<Output = Result<T, KernelError>>,
{
    let (sender, answer) = oneshot::channel();
    let what = format!("work in the namespace {path}");
    let failed = |error: std::io::Error| KernelError::new(what.clone(), error);
    thread::Builder::new()
        .name("weft-netns".to_owned())
        .spawn(move || {
            // The caller may have given up.
            drop(sender.send(enter_and(&path, work)));
        })
        .map_err(failed)?;
    answer.await.map_err(|_| KernelError::new(what, "its thread ended without an answer"))?
}

fn enter_and<T, W, F>(path: &str, work: W) -> Result<T, KernelError>
where
    W: FnOnce(Handle) -> F,
    F: Future<Output = Result<T, KernelError>>,
{
    let failed = |what: &str, error: std::io::Error| KernelError::new(format!("{what} {path}"), error);
    let namespace = File::open(path).map_err(|error| failed("open the namespace", error))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|error| failed("enter the namespace", error.into()))?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed("start a runtime in the namespace", error))?;
    runtime.block_on(async {
        let connected = rtnetlink::new_connection();
        let (connection, handle, _) =
            connected.map_err(|error| failed("open netlink in the namespace", error))?;
        tokio::spawn(connection);
        work(handle).await
    })
}
