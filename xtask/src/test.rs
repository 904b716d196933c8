//! Everything that must hold, in one command, with one count at the end.
use std::{env, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    build, checks,
    debian::is_root,
    progress::attempt,
    setup,
    stopwatch::Stopwatch,
    summary::Counts,
    workspace::{Workspace, program},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Only tests whose name contains this
    filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// rustfmt
    Format,
    /// clippy
    Lints,
    /// cargo-deny, where it is installed
    Dependencies,
    /// Tests of every crate, and the kernel programs through `BPF_PROG_TEST_RUN`
    Unit,
    /// Fleets of network namespaces with real daemons
    Fleet,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        match part {
            // A name picks tests, not checks.
            Part::Format | Part::Lints | Part::Dependencies if self.filter.is_some() => false,
            _ => self.only.is_empty() || self.only.contains(&part),
        }
    }
}

/// Runs all parts, also after one failed, and prints `N passed, N failed` as its last line.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let watch = Stopwatch::start();
    let compiler = setup::run(workspace)?;
    if options.wants(Part::Format) || options.wants(Part::Lints) {
        checks::install_tools(workspace)?;
    }
    println!("test");
    let mut counts = Counts::default();
    if options.wants(Part::Format) {
        counts += checks::format(workspace)?;
    }
    if options.wants(Part::Dependencies) {
        counts += checks::dependencies(workspace)?;
    }
    let built = build::bpf(workspace, compiler);
    counts += Counts::one(built.is_ok());
    if let Err(error) = built {
        println!("  {error:#}: nothing that embeds them can be tested");
    } else {
        if options.wants(Part::Lints) {
            counts += checks::lints(workspace, compiler)?;
        }
        if options.wants(Part::Unit) {
            counts +=
                tests(workspace, options, "tests of the crates", &["--workspace", "--exclude", FLEETS])?;
        }
        if options.wants(Part::Fleet) {
            counts += fleets(workspace, options)?;
        }
    }
    println!("({:.0} s)", watch.seconds());
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if counts.failed == 0 && counts.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const FLEETS: &str = "weft-integration";

/// The fleets start the real binaries, so these are built first.
fn fleets(workspace: &Workspace, options: &Options) -> Result<Counts> {
    let mut binaries = build::cargo(workspace);
    binaries.args(["build", "--workspace", "--bins"]);
    let built = attempt(workspace, "the binaries for fleets", &mut binaries)?.status.success();
    let mut counts = Counts::one(built);
    if built {
        counts += tests(workspace, options, "fleets in namespaces", &["--package", FLEETS])?;
    }
    Ok(counts)
}

/// Runs tests as root: kernel programs and namespaces need it, and one way of running them is enough.
fn tests(workspace: &Workspace, options: &Options, label: &str, packages: &[&str]) -> Result<Counts> {
    let nextest = program("cargo-nextest").is_some();
    let mut run = build::cargo(workspace);
    if nextest {
        run.args(["nextest", "run", "--no-fail-fast", "--no-tests=pass"]);
    } else {
        run.args(["test", "--no-fail-fast"]);
    }
    run.args(packages).args(&options.filter).env("WEFT_BINARIES", build::binaries(workspace, false));
    if !is_root() {
        run.env(format!("CARGO_TARGET_{}_RUNNER", host_triple()), "sudo --preserve-env");
    }
    let finished = attempt(workspace, label, &mut run)?;
    let counts = Counts::of_run(&finished.log, finished.status.success());
    println!("  {label}: {} passed, {} failed", counts.passed, counts.failed);
    Ok(counts)
}

fn host_triple() -> String {
    format!("{}_UNKNOWN_LINUX_GNU", env::consts::ARCH.to_uppercase())
}
