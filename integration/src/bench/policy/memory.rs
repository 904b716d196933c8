//! What the controller's half takes, in a process of its own: memory that was freed would be counted otherwise.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{
    controller::Running,
    fleet::{SIZES, Size},
};
use crate::bench::Figure;

#[derive(Debug, Args)]
pub struct MemoryOptions {
    #[arg(long)]
    endpoints: u32,
}

/// This program again, for one size.
pub(super) fn measure(size: Size) -> Result<Figure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["policy-memory-process", "--endpoints", &size.endpoints.to_string()]);
    let output = command.output().context("start a process to measure memory")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mebibytes: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(Figure::plain(format!("policy.compile.rss.{}", size.name()), "MiB", &[mebibytes]))
}

/// Prints how many MiB more are resident once all is compiled, with a tenth of the nodes connected.
#[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^52")]
pub fn process(options: &MemoryOptions) -> Result<()> {
    let size = SIZES.into_iter().find(|size| size.endpoints == options.endpoints);
    let size = size.context("no fleet has so many endpoints")?;
    let before = rss_bytes()?;
    let mut running = Running::fill(size);
    for node in 0..size.nodes().div_ceil(10) {
        running.connect(node).context("a node that connects is sent everything")?;
    }
    let more = rss_bytes()?.saturating_sub(before);
    println!("{}", more as f64 / 1_048_576.0);
    drop(running);
    Ok(())
}

fn rss_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(1024 * kibibytes.context("a status file without VmRSS")?)
}
