//! `weft monitor` on a node, and what it says line by line.
use anyhow::{Context, Result};
use serde_json::Value;

use super::{Node, Process};
use crate::{limits::READY, wait};

/// A monitor that is being told of events.
#[derive(Debug)]
pub struct Monitor {
    process: Process,
}

impl Monitor {
    /// Runs `weft monitor` with these arguments; it is being told by the time this returns.
    pub fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        let log = arguments.join("").replace(['-', '/', '='], "");
        let arguments = [&["monitor", "--output", "json"], arguments].concat();
        let process = node.start_weft(&format!("monitor{log}"), &arguments)?;
        wait::until_true("the monitor is told of events", READY, || {
            Ok(process.output().contains("monitoring\n"))
        })?;
        Ok(Self { process })
    }

    /// What it has said so far.
    pub fn lines(&self) -> Result<Vec<Value>> {
        let output = self.output();
        // The last line may be half written.
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter(|line| *line != "monitoring");
        lines.map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line:?}"))).collect()
    }

    /// The first line that is so, when it has been said.
    pub fn wait_for(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(what, READY, || Ok(self.lines()?.into_iter().find(|line| is(line))))
            .with_context(|| format!("the monitor said:\n{}", self.output()))
    }

    /// As it was printed.
    pub fn output(&self) -> String {
        self.process.output()
    }
}
