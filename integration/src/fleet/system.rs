//! The system's own tools: `ip`, `nsenter`, `setpriv`.
use std::{
    env,
    ffi::OsStr,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// A command that finds administrators' tools also where root's `PATH` lacks them.
pub(crate) fn tool(name: impl AsRef<OsStr>) -> Command {
    let path = env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")).stdin(Stdio::null());
    command
}

/// Runs to the end; standard output, or an error with what it printed.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Several `ip` commands at once in a namespace, one a line.
pub(super) fn ip_batch(netns: &str, lines: &[String]) -> Result<()> {
    let mut command = tool("ip");
    command.args(["-netns", netns, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.join("\n").as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip in {netns}: {}\n{}", String::from_utf8_lossy(&output.stderr).trim(), lines.join("\n"));
    }
    Ok(())
}
