//! Both halves of the policy compiler, each on one core: the controller's (which policies, sets and addresses a node is to
//! know) and the daemon's (what of it stands in the kernel's tables), from scratch and for each kind of change.

mod controller;
mod fleet;
mod memory;
mod node;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

pub use self::memory::{MemoryOptions, process as memory_process};
use super::{Figure, Report};

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often each change is measured
    #[arg(long, default_value_t = 51)]
    rounds: usize,
    /// Numbers of endpoints of the fleets
    #[arg(long, value_delimiter = ',', default_values_t = fleet::SIZES.map(|size| size.endpoints))]
    endpoints: Vec<u32>,
    /// Only the daemon's half in the kernel
    #[arg(long)]
    kernel_only: bool,
}

pub fn run(options: &Options, say: impl Fn(&str)) -> Result<Report> {
    ensure!(options.rounds > 0, "nothing to measure");
    let mut figures: Vec<Figure> = Vec::new();
    let sizes = fleet::SIZES.into_iter().filter(|size| options.endpoints.contains(&size.endpoints));
    for size in sizes.filter(|_| !options.kernel_only) {
        figures.extend(controller::measure(size, options.rounds, &say)?);
        figures.push(memory::measure(size)?);
        figures.extend(node::measure_compile(size, options.rounds, &say)?);
    }
    figures.extend(node::measure_kernel(options.rounds, &say)?);
    Ok(Report::new("policy", figures))
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
