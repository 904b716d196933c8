//! What a packet costs in the kernel programs, beside REF-TC in the same run: `BPF_PROG_TEST_RUN` with repeats, the packet
//! restored before each, interleaved rounds, ratios to the reference of the same round.

mod packets;
mod reference;
mod wrapper;

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;

use self::reference::Reference;
use super::{Figure, Report};

/// How much to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Interleaved rounds
    #[arg(long, default_value_t = 11)]
    pub rounds: u32,
    /// Packets of a measurement
    #[arg(long, default_value_t = 300_000)]
    pub repeat: u32,
}

const FIRST_PORT: u16 = 2000;
/// Flows that take turns, with the name that figures have for them.
const FLOWS: [(u16, &str); 2] = [(1, "1_flows"), (10_000, "10k_flows")];

/// Measures. `object` is that of the benches' own kernel programs.
pub fn run(object: &Path, options: &Options, say: impl Fn(&str)) -> Result<Report> {
    ensure!(options.rounds > 0 && options.repeat > 0, "nothing to measure");
    let mut reference = Reference::load(object, FIRST_PORT, FLOWS[1].0)?;
    let mut references = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for ((ports, _), samples) in FLOWS.iter().zip(&mut references) {
            samples.push(reference.run(FIRST_PORT, *ports, options.repeat)?.nanoseconds);
        }
    }
    let figures = FLOWS.iter().zip(&references);
    let figures = figures.map(|((_, name), samples)| Figure::plain(format!("ref.tc.{name}"), "ns", samples));
    Ok(Report::new("datapath", figures.collect()))
}
