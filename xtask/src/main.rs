//! One door for every chore: `cargo xtask setup | build | test | demo | bench`.
//!
//! It runs on a machine that has rustup's Rust and a C compiler, and nothing else, so it depends on nothing of the
//! workspace and installs itself what the rest needs.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod checks;
mod debian;
mod demo;
mod packages;
mod progress;
mod setup;
mod stopwatch;
mod summary;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Every chore of the Weft workspace")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Install what building and testing need (Debian packages, bpf-linker); quick when all is there
    Setup,
    /// Build the kernel programs and the workspace
    Build(build::Options),
    /// Bring up a fleet on this machine and show a policy governing real packets
    Demo(demo::Options),
    /// Formatting, lints, unit tests, kernel programs, fleets
    Test(test::Options),
    /// Measure what Weft promises in numbers
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let result = Workspace::find().and_then(|workspace| match Arguments::parse().chore {
        Chore::Setup => setup::run(&workspace).map(|_| ExitCode::SUCCESS),
        Chore::Build(options) => build::run(&workspace, &options).map(|()| ExitCode::SUCCESS),
        Chore::Demo(options) => demo::run(&workspace, &options).map(|never| match never {}),
        Chore::Test(options) => test::run(&workspace, &options),
        Chore::Bench(options) => bench::run(&workspace, &options).map(|never| match never {}),
    });
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
