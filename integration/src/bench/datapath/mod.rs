//! What a packet costs in the kernel programs, beside REF-TC in the same run: `BPF_PROG_TEST_RUN` with repeats, the packet
//! restored before each, interleaved rounds, ratios to the reference of the same round.
//!
//! Each run is checked against the programs' own counters: one in which a packet went another way than the figure says is
//! an error and no figure.

pub(super) mod packets;
pub(super) mod reference;
pub(super) mod subject;
pub(super) mod wrapper;

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use self::{
    reference::Reference,
    subject::{ENTRIES, Subjects, Way},
};
use super::{Figure, Report};

/// How much to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Interleaved rounds
    #[arg(long, default_value_t = 11)]
    pub rounds: u32,
    /// Packets of a measurement of known flows
    #[arg(long, default_value_t = 300_000)]
    pub repeat: u32,
    /// Flows of a measurement of new ones, each with one packet
    #[arg(long, default_value_t = 40_000)]
    pub new_flows: u16,
    /// Only figures whose name begins so
    #[arg(long, value_name = "NAME", default_value = "")]
    pub only: String,
}

/// Source ports of the flows that are known, and those of new ones.
const KNOWN_PORT: u16 = 2000;
const NEW_PORT: u16 = 20_000;
const NEW_PORTS_MAX: u16 = 45_000;

/// How many flows take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flows {
    /// One: everything is in the caches.
    One,
    /// 10,000: caches miss, as they do on a node with work.
    Many,
}

impl Flows {
    const ALL: [Self; 2] = [Self::One, Self::Many];

    fn name(self) -> &'static str {
        match self {
            Self::One => "1_flows",
            Self::Many => "10k_flows",
        }
    }

    fn ports(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Many => 10_000,
        }
    }

    fn reference(self) -> String {
        format!("ref.tc.{}", self.name())
    }
}

/// What is measured beside one run of the reference: the same for each size of policy.
#[derive(Debug)]
struct Group {
    way: Way,
    new: bool,
    flows: Flows,
    reference: Vec<f64>,
    /// By [`ENTRIES`].
    rounds: [Vec<f64>; ENTRIES.len()],
}

impl Group {
    fn all() -> Vec<Self> {
        let mut groups = Vec::new();
        for way in Way::ALL {
            for new in [false, true] {
                for flows in Flows::ALL {
                    let rounds = ENTRIES.map(|_| Vec::new());
                    groups.push(Self { way, new, flows, reference: Vec::new(), rounds });
                }
            }
        }
        groups
    }

    fn name(&self, entries: u32) -> String {
        let state = if self.new { "new" } else { "established" };
        format!("{}.{state}.{}.entries_{entries}", self.way.name(), self.flows.name())
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures: Vec<_> = ENTRIES
            .iter()
            .zip(&self.rounds)
            .map(|(entries, rounds)| {
                let to = self.flows.reference();
                Figure::paired(self.name(*entries), "ns", rounds, to, &self.reference)
            })
            .collect();
        let [least, .., most] = &self.rounds;
        let [fewest, .., largest] = ENTRIES;
        let name = format!("{}_to_{fewest}", self.name(largest));
        figures.push(Figure::paired(name, "ns", most, self.name(fewest), least));
        figures
    }
}

/// Measures. `object` is that of the benches' own kernel programs.
pub fn run(object: &Path, options: &Options, say: impl Fn(&str)) -> Result<Report> {
    ensure!(options.rounds > 0 && options.repeat > 0 && options.new_flows > 0, "nothing to measure");
    ensure!(options.new_flows <= NEW_PORTS_MAX, "at most {NEW_PORTS_MAX} new flows at once");
    stay_on_this_cpu()?;
    say("the programs and their tables");
    let mut subjects = Subjects::load(object)?;
    let mut reference = Reference::load(object, KNOWN_PORT, Flows::Many.ports())?;
    for way in Way::ALL {
        for entries in ENTRIES {
            subjects.establish(way, entries, KNOWN_PORT, Flows::Many.ports())?;
        }
    }
    let mut groups = Group::all();
    groups.retain(|group| group.name(ENTRIES[0]).starts_with(&options.only));
    ensure!(!groups.is_empty(), "no figure is called {:?}", options.only);
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for group in &mut groups {
            let run = reference.run(KNOWN_PORT, group.flows.ports(), options.repeat)?;
            group.reference.push(run.nanoseconds);
            let mut order = [0, 1, 2];
            // What drifts while a round goes on does not always drift the same way.
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let cost = one(&mut subjects, group, ENTRIES[index], options, round == 0)?;
                group.rounds[index].push(cost);
            }
        }
    }
    Ok(Report::new("datapath", figures(&groups)))
}

/// One measurement.
fn one(subjects: &mut Subjects, group: &Group, entries: u32, options: &Options, count: bool) -> Result<f64> {
    let (way, ports) = (group.way, group.flows.ports());
    if !group.new {
        return subjects.established(way, entries, (KNOWN_PORT, ports), options.repeat);
    }
    // With many flows to be known at once, as many at a time; with one, one after another.
    let at_once = if group.flows == Flows::Many { ports.min(options.new_flows) } else { options.new_flows };
    let batches = options.new_flows / at_once;
    let mut sum = 0.0;
    for _ in 0..batches {
        sum += subjects.new_flows(way, entries, NEW_PORT, at_once)?;
        if count {
            let known = subjects.known(way, entries, NEW_PORT, at_once)?;
            ensure!(known == usize::from(at_once), "{at_once} new flows made {known} entries");
        }
        subjects.forget(way, entries, NEW_PORT, at_once)?;
    }
    Ok(sum / f64::from(batches))
}

fn figures(groups: &[Group]) -> Vec<Figure> {
    let references = Flows::ALL.into_iter().filter_map(|flows| {
        let of_all = groups.iter().filter(|group| group.flows == flows);
        let rounds: Vec<f64> = of_all.flat_map(|group| group.reference.iter().copied()).collect();
        (!rounds.is_empty()).then(|| Figure::plain(flows.reference(), "ns", &rounds))
    });
    references.chain(groups.iter().flat_map(Group::figures)).collect()
}

/// Another CPU's caches are cold, and its share of the tables' free rows is another.
pub(super) fn stay_on_this_cpu() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &here)?)
}
