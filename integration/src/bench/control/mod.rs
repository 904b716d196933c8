//! From `apply` to *realised*: a controller of its own process on a real etcd, and nodes that are the real stream and desired
//! state without a kernel to write. Beside it, in the same rounds, a server that does nothing but send the same bytes to as
//! many streams and take an answer from each.
//!
//! What a node's planner and kernel take is not in it: a thousand of them share this machine's processors here.

mod child;
mod nodes;
mod operator;
mod reconnect;
pub mod servers;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::time::Instant;
use weft_test_etcd::{Cluster, Options as EtcdOptions};

use super::report::{Figure, Report};
use child::Child;
use nodes::Fleet;
use operator::Operator;

/// Nothing here takes as long unless something is wrong.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Debug, Args)]
pub struct Options {
    /// How many nodes, each in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000])]
    nodes: Vec<usize>,
    /// How often each is measured
    #[arg(long, default_value_t = 21)]
    rounds: usize,
}

pub fn run(options: &Options, say: impl Fn(&str)) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let etcd = Cluster::start(1, &EtcdOptions::default())?;
    let url = etcd.urls().first().context("a cluster has members")?.clone();
    runtime.block_on(measure(options, &url, say))
}

async fn measure(options: &Options, etcd: &str, say: impl Fn(&str)) -> Result<Report> {
    let controller = Child::start(&["controller-process", "--etcd", etcd])?;
    let mut operator = Operator::connect(controller.url()).await?;
    operator.configure().await?;
    say("a reconnect");
    let mut figures = reconnect::measure(controller.url(), &mut operator).await?;
    let (mut sent, mut busy, mut memory) = (0_usize, Duration::ZERO, Vec::new());
    // Upwards: every node there is takes part.
    for &count in options.nodes.iter().collect::<BTreeSet<_>>() {
        say(&format!("{count} nodes"));
        let fleet = Fleet::start(controller.url(), count).await?;
        let mut policy = operator.policy(0).await?;
        fleet.realised(policy).await?;
        let reference = Child::start(&["fan-out-process", "--bytes", &fleet.last_delta_bytes().to_string()])?;
        let fan_out = nodes::FanOut::start(reference.url(), count).await?;
        let (mut control_ms, mut fan_out_ms) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            let (before, began) = (controller.cpu()?, Instant::now());
            policy = operator.policy(round).await?;
            operator.wait_realised(policy).await?;
            control_ms.push(milliseconds(began.elapsed()));
            fleet.realised(policy).await?;
            busy += controller.cpu()?.saturating_sub(before);
            sent += count;
            fan_out_ms.push(milliseconds(fan_out.round().await?));
        }
        memory.push((count, controller.rss_bytes()?));
        let (name, to) =
            (format!("control.apply_to_realised.nodes_{count}"), format!("ref.fanout.nodes_{count}"));
        figures.push(Figure::paired(name, "ms", &control_ms, &to, &fan_out_ms));
        figures.push(Figure::plain(to, "ms", &fan_out_ms));
        fleet.stop().await;
    }
    figures.extend(costs(sent, busy, &memory));
    Ok(Report::new("control", figures))
}

#[expect(clippy::cast_precision_loss, reason = "bytes and nodes are far below 2^52")]
fn costs(sent: usize, busy: Duration, memory: &[(usize, u64)]) -> Vec<Figure> {
    let mut figures = vec![Figure::plain(
        "control.cpu_per_million_deltas",
        "s",
        &[busy.as_secs_f64() * 1e6 / sent.max(1) as f64],
    )];
    if let (Some((few, small)), Some((many, large))) = (memory.first(), memory.last())
        && many > few
    {
        let each = large.saturating_sub(*small) as f64 / (many - few) as f64;
        figures.push(Figure::plain("control.rss_per_node", "B", &[each]));
    }
    let whole = memory.iter().map(|(count, bytes)| {
        Figure::plain(format!("control.rss.nodes_{count}"), "MiB", &[*bytes as f64 / 1_048_576.0])
    });
    figures.extend(whole);
    figures
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
