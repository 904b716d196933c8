//! Brings up the demo: set-up, build, then the integration crate's `weft-demo` as root.
use std::{convert::Infallible, os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::{build, debian::as_root, stopwatch::Stopwatch, workspace::Workspace};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// End when everything was shown; non-zero if anything observed differs from what was expected
    #[arg(long)]
    once: bool,
    /// Keep the controller's state in etcd, which is started for the demo
    #[arg(long)]
    etcd: bool,
    /// Write what was observed and measured
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the logs of controller and daemons in this folder
    #[arg(long, value_name = "FOLDER")]
    keep_logs: Option<PathBuf>,
    /// Optimised binaries: a longer first build, true figures of memory
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<Infallible> {
    let watch = Stopwatch::start();
    build::run(workspace, &build::Options { release: options.release })?;
    println!("demo ({:.0} s until here)", watch.seconds());
    let binaries = build::binaries(workspace, options.release);
    let mut demo = as_root(&binaries.join("weft-demo").to_string_lossy())?;
    demo.arg("--binaries").arg(&binaries).arg("--policies").arg(workspace.root.join("deploy/examples"));
    if options.once {
        demo.arg("--once");
    }
    if options.etcd {
        demo.arg("--etcd");
    }
    for (flag, path) in [("--json", &options.json), ("--keep-logs", &options.keep_logs)] {
        if let Some(path) = path {
            demo.arg(flag).arg(std::env::current_dir()?.join(path));
        }
    }
    // In place of this process, so that Ctrl-C reaches the demo alone and nothing returns before it has cleaned up.
    Err(demo.exec()).context("start weft-demo")
}
