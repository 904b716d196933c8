//! A daemon of a fleet: its log, its memory, its end.
use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    limits::{EXIT, LOG_LINE_CHARS, LOG_TAIL_LINES},
    wait,
};

/// A running process; killed when dropped. Its output is appended to a log.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// In a process group of its own, so that Ctrl-C on the terminal reaches only us.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and gone when this returns.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM)?;
        self.wait()
    }

    /// SIGSTOP: it stays, and does nothing.
    pub fn freeze(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGSTOP)?)
    }

    pub fn thaw(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGCONT)?)
    }

    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("process {} ({}) has ended", self.pid(), self.log.display());
        wait::until(&what, EXIT, || self.ended())
    }

    /// Resident memory, in MiB.
    pub fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.output();
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        let cut = |line: &&str| line.chars().take(LOG_LINE_CHARS).collect::<String>();
        tail.iter().map(cut).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}
