//! The benches. `cargo xtask bench NAME` builds and starts this.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use weft_integration::bench::{Report, control, datapath, lb, policy};

#[derive(Debug, Parser)]
#[command(name = "weft-bench", about = "Measures what Weft promises in numbers")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// Write the figures, in the shape that all benches share
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The benches' own kernel programs
    #[arg(long, value_name = "FILE", default_value = "target/bpf/weft-bench.o")]
    object: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Packets through the kernel programs, beside a reference
    Datapath(datapath::Options),
    /// Services and prefilters: packets, beside a reference; connections, beside direct ones and nftables; and how long many load
    Lb(lb::Options),
    /// What `lb` lets connect
    #[command(hide = true)]
    ConnectProcess,
    /// From `apply` to realised, beside a bare fan-out of the same bytes
    Control(control::Options),
    /// The policy compiler: the controller's half and the daemon's, into the kernel
    Policy(policy::Options),
    /// What `policy` measures the memory of
    #[command(hide = true)]
    PolicyMemoryProcess(policy::MemoryOptions),
    /// What `control` measures, as a process of its own
    #[command(hide = true)]
    ControllerProcess(control::servers::ControllerOptions),
    /// What `control` compares with, as a process of its own
    #[command(hide = true)]
    FanOutProcess(control::servers::FanOutOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let say = |text: &str| eprintln!("  {text}");
    let report: Report = match &arguments.bench {
        Bench::Datapath(options) => datapath::run(&arguments.object, options, say)?,
        Bench::Lb(options) => lb::run(&arguments.object, options, say)?,
        Bench::Control(options) => control::run(options, say)?,
        Bench::Policy(options) => policy::run(options, say)?,
        Bench::ConnectProcess => return lb::connect_process(),
        Bench::PolicyMemoryProcess(options) => return policy::memory_process(options),
        Bench::ControllerProcess(options) => return control::servers::controller(options),
        Bench::FanOutProcess(options) => return control::servers::fan_out(options),
    };
    println!("{}", report.table());
    if let Some(path) = &arguments.json {
        report.write(path)?;
        println!("written to {}", path.display());
    }
    Ok(())
}
