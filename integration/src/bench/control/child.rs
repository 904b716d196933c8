//! A process of its own, so that what it takes can be told apart: this program again, as a server.
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{self, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

pub(super) struct Child {
    process: process::Child,
    url: String,
}

impl Child {
    /// Its first line of output is where it serves.
    pub(super) fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdout(Stdio::piped());
        let mut process = command.spawn().context("start a server's process")?;
        let output = process.stdout.take().context("its output is a pipe")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let url = format!("http://{}", line.trim());
        Ok(Self { process, url })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Time on processors since it started.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // Fields from the third on, behind the name in brackets: proc_pid_stat(5). 14 and 15 are utime and stime.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
        let ticks = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
        // USER_HZ is 100 on every architecture that we run on.
        Ok(Duration::from_millis(10 * ticks.context("a stat file without times")?))
    }

    pub(super) fn rss_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(1024 * kibibytes.context("a status file without VmRSS")?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
