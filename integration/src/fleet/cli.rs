//! The `weft` command, run as an operator runs it.
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Answer {
    command: String,
    /// None: killed by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Runs to the end; how it ended is for the caller to judge.
    pub(super) fn of(command: &mut Command) -> Result<Self> {
        let output = command.output().with_context(|| format!("start {command:?}"))?;
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        // Without the part that enters the namespace.
        let own = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
        Ok(Self {
            command: words[own..].join(" "),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// An error unless it succeeded.
    pub fn success(self) -> Result<Self> {
        if self.code != Some(0) {
            bail!("{}: exit code {:?}\n{}{}", self.command, self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// What it printed with `--output json`.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("{} printed {:?}", self.command, self.stdout))
    }
}
