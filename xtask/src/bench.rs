//! Measures: set-up, build, then the integration crate's `weft-bench` as root.
use std::{convert::Infallible, os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{build, debian::as_root, progress::step, setup, workspace::Workspace};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// Write the figures, in the shape that all benches share
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// For the bench itself, behind `--`: see `-- --help`
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// Packets through the kernel programs, beside a reference
    Datapath,
    /// Services and prefilters: packets, beside a reference; connections, beside direct ones and nftables; and how long many load
    Lb,
    /// From `apply` to realised on up to 1,000 nodes, beside a bare fan-out
    Control,
    /// The policy compiler from scratch and change by change, up to 100,000 endpoints, and into the kernel
    Policy,
}

impl Name {
    /// As `weft-bench` calls it.
    fn subcommand(self) -> &'static str {
        match self {
            Self::Datapath => "datapath",
            Self::Lb => "lb",
            Self::Control => "control",
            Self::Policy => "policy",
        }
    }

    /// Whether what is measured is code of the workspace; the kernel's own is as fast from an unoptimised harness.
    fn optimised(self) -> bool {
        match self {
            Self::Datapath => false,
            Self::Lb | Self::Control | Self::Policy => true,
        }
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<Infallible> {
    let compiler = setup::run(workspace)?;
    println!("build");
    build::bpf(workspace, compiler)?;
    let release = options.name.optimised();
    let mut cargo = build::cargo(workspace);
    cargo.args(["build", "--package", "weft-integration", "--bin", "weft-bench"]);
    if release {
        cargo.arg("--release");
    }
    step(workspace, "weft-bench", &mut cargo)?;
    println!("bench");
    let mut bench = as_root(&build::binaries(workspace, release).join("weft-bench").to_string_lossy())?;
    bench.arg("--object").arg(workspace.bench_object());
    if let Some(path) = &options.json {
        bench.arg("--json").arg(std::env::current_dir()?.join(path));
    }
    bench.arg(options.name.subcommand()).args(&options.arguments);
    // In place of this process, so that Ctrl-C reaches the bench alone.
    Err(bench.exec()).context("start weft-bench")
}
