//! One member: a process that can be ended, started again with its data, and frozen.
use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{probe, wait::until};

/// A member that does not serve by then never will; slow machines included.
const START: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_secs(30);
const LOG_TAIL_LINES: usize = 30;

#[derive(Debug)]
pub struct Member {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) data: PathBuf,
    pub(crate) metrics: SocketAddr,
    pub(crate) log: PathBuf,
    pub(crate) process: Option<Child>,
}

impl Member {
    /// Where clients reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Starts it with the data it had, and returns once it serves. In a cluster that takes a majority of members.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_healthy()
    }

    pub(crate) fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("etcd");
        command.args(&self.arguments).stdout(log.try_clone()?).stderr(log);
        // It takes every flag from the environment too.
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("ETCD_")) {
            command.env_remove(name);
        }
        let child = command.spawn().context("start etcd (Debian's package etcd-server)")?;
        self.process = Some(child);
        Ok(())
    }

    pub fn wait_healthy(&mut self) -> Result<()> {
        let what = format!("etcd member {} serves", self.name);
        let healthy = until(&what, START, || {
            if !self.is_running()? {
                bail!("etcd member {} ended by itself", self.name);
            }
            Ok(probe::is_healthy(self.metrics).then_some(()))
        });
        healthy.with_context(|| format!("its log:\n{}", self.log_tail()))
    }

    pub fn is_running(&mut self) -> Result<bool> {
        let Some(child) = &mut self.process else { return Ok(false) };
        if child.try_wait()?.is_some() {
            self.process = None;
        }
        Ok(self.process.is_some())
    }

    pub fn is_leader(&self) -> bool {
        self.process.is_some() && probe::is_leader(self.metrics)
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and gone when this returns.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("etcd member {} has ended", self.name);
        until(&what, STOP, || Ok((!self.is_running()?).then_some(())))
    }

    /// Forgets all data of a member that does not run.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(!self.is_running()?, "member {} runs", self.name);
        Ok(fs::remove_dir_all(&self.data)?)
    }

    /// SIGSTOP: the kernel goes on taking connections for it, and nothing is answered.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        // Its threads stop one by one, and go on answering until they do.
        until(&format!("etcd member {} stands still", self.name), STOP, || {
            Ok(self.is_frozen()?.then_some(()))
        })
    }

    fn is_frozen(&self) -> Result<bool> {
        let child = self.process.as_ref().context("it does not run")?;
        for thread in fs::read_dir(format!("/proc/{}/task", child.id()))? {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            // The state comes after the name, which is in parentheses.
            if !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.process.as_ref().with_context(|| format!("member {} does not run", self.name))?;
        Ok(kill(Pid::from_raw(child.id().cast_signed()), signal)?)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}
