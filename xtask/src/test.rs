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
    toolchain::BpfCompiler,
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
    counts += build_and_run(workspace, options, compiler)?;
    println!("({:.0} s)", watch.seconds());
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(if counts.failed == 0 && counts.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What needs the kernel programs: they are built first, and nothing else is tried where that fails.
fn build_and_run(workspace: &Workspace, options: &Options, compiler: BpfCompiler) -> Result<Counts> {
    if let Err(error) = build::bpf(workspace, compiler) {
        println!("  {error:#}: nothing that embeds them can be tested");
        return Ok(Counts::one(false));
    }
    let mut counts = Counts::one(true);
    if options.wants(Part::Lints) {
        counts += checks::lints(workspace, compiler)?;
    }
    if options.wants(Part::Unit) || options.wants(Part::Fleet) {
        // All at once, so that dependencies are built for one set of features; fleets start the binaries.
        let mut all = build::cargo(workspace);
        all.args(["build", "--workspace", "--all-targets"]);
        let built = attempt(workspace, "binaries and tests", &mut all)?.status.success();
        counts += Counts::one(built);
        if !built {
            return Ok(counts);
        }
    }
    if options.wants(Part::Unit) {
        counts += tests(workspace, options, Part::Unit)?;
    }
    if options.wants(Part::Fleet) {
        counts += tests(workspace, options, Part::Fleet)?;
    }
    Ok(counts)
}

/// What nextest runs, too: no examples in comments, and all of it after a failure.
const AS_NEXTEST: [&str; 4] = ["--lib", "--bins", "--tests", "--no-fail-fast"];

/// Runs tests as root: kernel programs and namespaces need it, and one way of running them is enough.
fn tests(workspace: &Workspace, options: &Options, part: Part) -> Result<Counts> {
    let fleets = part == Part::Fleet;
    let label = if fleets { "fleets in namespaces" } else { "tests of the crates, and the kernel programs" };
    let mut run = build::cargo(workspace);
    if program("cargo-nextest").is_some() {
        let which = if fleets { "package(weft-integration)" } else { "not package(weft-integration)" };
        run.args(["nextest", "run", "--workspace", "-E", which, "--no-fail-fast", "--no-tests=pass"]);
    } else if fleets {
        run.args(["test", "--package", "weft-integration"]).args(AS_NEXTEST);
    } else {
        run.args(["test", "--workspace", "--exclude", "weft-integration"]).args(AS_NEXTEST);
    }
    run.args(&options.filter).env("WEFT_BINARIES", build::binaries(workspace, false));
    run.env("WEFT_BENCH_OBJECT", workspace.bench_object());
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
