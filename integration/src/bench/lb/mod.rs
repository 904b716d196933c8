//! What a packet costs in the program of XDP on uplinks, beside REF-XDP in the same run: as [`super::datapath`] does it for tc.
//!
//! Each run is checked against the program's own counters: one in which a packet went another way than the figure says is
//! an error and no figure.

mod prefilter;
mod wrapper;

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;

use self::{
    prefilter::{PREFIXES, Prefilters, Sources},
    wrapper::Reference,
};
use super::{Figure, Report, datapath::stay_on_this_cpu};

/// How much to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Interleaved rounds
    #[arg(long, default_value_t = 11)]
    pub rounds: u32,
    /// Packets of a measurement
    #[arg(long, default_value_t = 300_000)]
    pub repeat: u32,
    /// Only figures whose name begins so
    #[arg(long, value_name = "NAME", default_value = "")]
    pub only: String,
}

/// Flows of the reference, and sources of packets: caches miss, as they do on a node with work.
const TURNS: u16 = 10_000;
const REFERENCE: &str = "ref.xdp.10k_flows";

#[derive(Debug)]
struct Series {
    sources: Sources,
    prefixes: u32,
    rounds: Vec<f64>,
}

impl Series {
    fn all() -> impl Iterator<Item = Self> {
        let each = Sources::ALL.into_iter().flat_map(|sources| PREFIXES.map(|prefixes| (sources, prefixes)));
        each.map(|(sources, prefixes)| Self { sources, prefixes, rounds: Vec::new() })
    }

    fn name(&self) -> String {
        format!("xdp.prefilter.{}.prefixes_{}", self.sources.name(), self.prefixes)
    }
}

/// Measures. `object` is that of the benches' own kernel programs.
pub fn run(object: &Path, options: &Options, say: impl Fn(&str)) -> Result<Report> {
    ensure!(options.rounds > 0 && options.repeat > 0, "nothing to measure");
    let mut series: Vec<_> =
        Series::all().filter(|series| series.name().starts_with(&options.only)).collect();
    ensure!(!series.is_empty(), "no figure is called {:?}", options.only);
    stay_on_this_cpu()?;
    say("the programs and their tables");
    let mut reference = Reference::load(object)?;
    let mut prefilters = Prefilters::load(object)?;
    let mut base = Vec::new();
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        base.push(reference.run(options.repeat)?);
        for index in 0..series.len() {
            // What drifts while a round goes on does not always drift the same way.
            let index = if round % 2 == 1 { series.len() - 1 - index } else { index };
            let one = &mut series[index];
            one.rounds.push(prefilters.run(one.prefixes, one.sources, options.repeat)?);
        }
    }
    let paired =
        series.iter().map(|one| Figure::paired(one.name(), "ns", &one.rounds, REFERENCE.to_owned(), &base));
    Ok(Report::new("lb", [Figure::plain(REFERENCE, "ns", &base)].into_iter().chain(paired).collect()))
}
