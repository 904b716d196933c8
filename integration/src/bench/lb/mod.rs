//! What a packet costs in the program of XDP on uplinks, beside REF-XDP in the same run: as [`super::datapath`] does it for tc;
//! what services cost at tc, beside REF-TC; what connections to services cost, beside connections to what is none and beside
//! nftables; and how long many services take to load.
//!
//! Each run of packets is checked against the program's own counters, and each block of connections by who accepted them: one
//! that went another way than the figure says is an error and no figure.

mod client;
mod connect;
mod endpoints;
mod load;
mod nft;
mod packets;
mod prefilter;
mod routed;
mod services;
mod wrapper;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;

pub use self::client::process as connect_process;
use self::{
    client::CONNECTS_MAX,
    packets::Endpoints,
    prefilter::{Family, PREFIXES, Prefilters, Sources},
    services::{Mode, SERVICES, Services, State},
    wrapper::{Flows, Reference},
};
use super::{
    Figure, Report,
    datapath::{stay_on_this_cpu, subject},
};

/// How much to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Interleaved rounds
    #[arg(long, default_value_t = 11)]
    pub rounds: u32,
    /// Packets of a measurement
    #[arg(long, default_value_t = 300_000)]
    pub repeat: u32,
    /// Connections of a block; a round has five blocks of each figure
    #[arg(long, default_value_t = 1000)]
    pub connects: u32,
    /// Services that are loaded at once
    #[arg(long, default_value_t = 10_000)]
    pub services: u32,
    /// Only figures whose name begins so
    #[arg(long, value_name = "NAME", default_value = "")]
    pub only: String,
}

impl Options {
    fn wants(&self, figure: &str) -> bool {
        figure.starts_with(&self.only)
    }
}

/// Flows of the reference, and sources of packets: caches miss, as they do on a node with work.
const TURNS: u16 = 10_000;

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Prefilter {
        family: Family,
        sources: Sources,
        prefixes: u32,
    },
    Service {
        mode: Mode,
        state: State,
        flows: Flows,
        services: u32,
    },
    /// From an endpoint, at tc.
    Packets {
        flows: Flows,
        services: u32,
    },
}

impl Subject {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for family in Family::ALL {
            for sources in Sources::ALL {
                all.extend(PREFIXES.map(|prefixes| Self::Prefilter { family, sources, prefixes }));
            }
        }
        for mode in Mode::ALL {
            for state in State::ALL {
                for flows in Flows::ALL {
                    all.extend(SERVICES.map(|services| Self::Service { mode, state, flows, services }));
                }
            }
        }
        for flows in Flows::ALL {
            all.extend(packets::SERVICES.map(|services| Self::Packets { flows, services }));
        }
        all
    }

    fn name(self) -> String {
        match self {
            Self::Prefilter { family, sources, prefixes } => {
                format!("{}.{}.prefixes_{prefixes}", family.name(), sources.name())
            }
            Self::Service { mode, state, flows, services } => {
                format!("xdp.lb.{}.{}.{}.services_{services}", mode.name(), state.name(), flows.name())
            }
            Self::Packets { flows, services } => {
                format!("tc.lb.established.{}.services_{services}", flows.name())
            }
        }
    }

    /// What it is compared with.
    fn flows(self) -> Flows {
        match self {
            Self::Prefilter { .. } => Flows::Many,
            Self::Service { flows, .. } | Self::Packets { flows, .. } => flows,
        }
    }

    fn reference(self) -> String {
        match self {
            Self::Packets { flows, .. } => format!("ref.tc.{}", flows.name()),
            _ => self.flows().reference(),
        }
    }
}

#[derive(Debug)]
struct Series {
    subject: Subject,
    rounds: Vec<f64>,
    /// The reference, right before.
    base: Vec<f64>,
}

/// What runs.
struct Bench {
    reference: Reference,
    prefilters: Prefilters,
    services: Services,
    endpoints: Endpoints,
}

impl Bench {
    /// In a network namespace of this thread's own.
    fn load(object: &Path) -> Result<Self> {
        subject::enter_namespace()?;
        Ok(Self {
            services: Services::load(object)?,
            reference: Reference::load(object)?,
            prefilters: Prefilters::load(object)?,
            endpoints: Endpoints::load(object)?,
        })
    }

    fn base(&mut self, subject: Subject, repeat: u32) -> Result<f64> {
        match subject {
            Subject::Packets { flows, .. } => self.endpoints.reference(flows, repeat),
            _ => self.reference.run(subject.flows(), repeat),
        }
    }

    fn run(&mut self, subject: Subject, repeat: u32) -> Result<f64> {
        match subject {
            Subject::Prefilter { family, sources, prefixes } => {
                self.prefilters.run((family, prefixes), sources, repeat)
            }
            Subject::Service { mode, state, flows, services } => {
                self.services.run(mode, services, state, flows, repeat)
            }
            Subject::Packets { flows, services } => self.endpoints.run(services, flows, repeat),
        }
    }
}

/// Measures. `object` is that of the benches' own kernel programs.
pub fn run(object: &Path, options: &Options, say: impl Fn(&str)) -> Result<Report> {
    let Options { rounds, repeat, connects, services, .. } = options;
    ensure!(*rounds > 0 && *repeat > 0 && *services > 0, "nothing to measure");
    ensure!((1..=CONNECTS_MAX).contains(connects), "a block has 1 to {CONNECTS_MAX} connections");
    // On all processors, as in a daemon.
    let mut figures = load::measure(options, &say)?;
    stay_on_this_cpu()?;
    figures.extend(connect::measure(options, &say)?);
    figures.extend(routed::measure(options, &say)?);
    figures.extend(measure_packets(object, options, &say)?);
    ensure!(!figures.is_empty(), "no figure is called {:?}", options.only);
    Ok(Report::new("lb", figures))
}

fn measure_packets(object: &Path, options: &Options, say: impl Fn(&str)) -> Result<Vec<Figure>> {
    let subjects = Subject::all().into_iter().filter(|subject| options.wants(&subject.name()));
    let mut series: Vec<_> =
        subjects.map(|subject| Series { subject, rounds: Vec::new(), base: Vec::new() }).collect();
    if series.is_empty() {
        return Ok(Vec::new());
    }
    say("the programs and their tables");
    let mut bench = Bench::load(object)?;
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for index in 0..series.len() {
            // What drifts while a round goes on does not always drift the same way.
            let index = if round % 2 == 1 { series.len() - 1 - index } else { index };
            let one = &mut series[index];
            one.base.push(bench.base(one.subject, options.repeat)?);
            one.rounds.push(bench.run(one.subject, options.repeat)?);
        }
    }
    Ok(figures(&series))
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

fn figures(series: &[Series]) -> Vec<Figure> {
    let mut references: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for one in series {
        references.entry(one.subject.reference()).or_default().extend(&one.base);
    }
    let references = references.into_iter().map(|(name, rounds)| Figure::plain(name, "ns", &rounds));
    let paired = series.iter().map(|one| {
        let Series { subject, rounds, base } = one;
        Figure::paired(subject.name(), "ns", rounds, subject.reference(), base)
    });
    references.chain(paired).collect()
}
