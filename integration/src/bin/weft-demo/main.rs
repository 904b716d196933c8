//! The demo: a controller, three nodes, four workloads and the world outside, and policy governing real packets
//! between them. `cargo xtask demo` builds and starts it.
#![forbid(unsafe_code)]

mod cast;
mod flows;
mod outage;
mod report;
mod revocation;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::time::Instant;
use weft_integration::{
    fleet::{Binaries, Controller, Fleet, Store},
    wait,
};

use crate::{
    cast::Cast,
    outage::Part,
    report::{Outages, Report},
};

const NODES: u8 = 3;
/// How long the demo stays up at most when nobody ends it.
const STAY: Duration = Duration::from_hours(24);

#[derive(Debug, Parser)]
#[command(name = "weft-demo", about = "Policy governing real packets in a fleet of namespaces")]
struct Arguments {
    /// End when everything was shown; exit 1 if anything observed differs from what was expected
    #[arg(long)]
    once: bool,
    /// Keep the controller's state in etcd, which is started for the demo
    #[arg(long)]
    etcd: bool,
    /// Write what was observed and measured
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Copy the logs of controller and daemons to this folder
    #[arg(long, value_name = "FOLDER")]
    keep_logs: Option<PathBuf>,
    /// The folder with weft, weft-controller and weft-noded
    #[arg(long, value_name = "FOLDER")]
    binaries: PathBuf,
    /// The folder with the policies
    #[arg(long, value_name = "FOLDER")]
    policies: PathBuf,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    match listen_for_ctrl_c().and_then(|()| run(&mut arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: what was observed differs from what was expected, see above");
            ExitCode::FAILURE
        }
        Err(error) if wait::interrupted() => {
            eprintln!("interrupted, everything was cleaned up ({error:#})");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True: everything as expected. The fleet is gone when this returns, whatever happened.
fn run(arguments: &mut Arguments) -> Result<bool> {
    // Commands run inside hosts of the fleet, in another folder.
    for folder in [&mut arguments.binaries, &mut arguments.policies] {
        *folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    }
    let binaries = Binaries::in_folder(&arguments.binaries)?;
    let start = Instant::now();
    let (store, named) = if arguments.etcd {
        (Store::Etcd { members: 1 }, "etcd")
    } else {
        (Store::Embedded, "the embedded store")
    };
    say(&format!("a controller on {named} and three nodes, each a network namespace with a real daemon"));
    let mut fleet = Fleet::start("demo", NODES, &binaries, store)?;
    let shown = show(&mut fleet, arguments, start);
    if let Some(folder) = &arguments.keep_logs {
        keep_logs(&fleet, folder)?;
    }
    if let Err(error) = &shown
        && !wait::interrupted()
    {
        eprintln!("{}\n{error:#}", fleet.picture());
    }
    let as_expected = shown?;
    if !arguments.once && !wait::interrupted() {
        look_around(&fleet, &arguments.binaries)?;
    }
    say("cleaning up");
    Ok(as_expected)
}

fn show(fleet: &mut Fleet, arguments: &Arguments, start: Instant) -> Result<bool> {
    let cast = Cast::bring_up(fleet)?;
    say("every flow of the demo, tried before there is any policy");
    let pass_before = flows::pass_before(fleet)?;
    say("policies: weft apply -f deploy/examples --wait");
    let applied = fleet.apply_file(&arguments.policies)?;
    let realised = applied["realised"]["tookMilliseconds"].as_f64().context("no tookMilliseconds")?;
    say(&format!("  realised on every node {realised:.1} ms after the store's commit"));
    say("the same flows, tried again with real connections");
    let flows = flows::observe(fleet)?;
    println!("{}", report::table(&flows));
    let revocation = revocation::show(fleet, &arguments.policies)?;
    let outages = Outages {
        daemon_kill: outage::show(fleet, Part::Daemon)?,
        controller_stop: outage::show(fleet, Part::Controller)?,
        etcd_kill: if arguments.etcd { Some(outage::show(fleet, Part::Etcd)?) } else { None },
    };
    let report = Report::gather(fleet, &flows, realised, &revocation, outages)?;
    drop(cast);
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    println!("{}", report.summary());
    say(&format!("shown in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(report.as_expected() && revocation.held && pass_before)
}

fn look_around(fleet: &Fleet, binaries: &Path) -> Result<()> {
    let weft = binaries.join("weft");
    let node = fleet.node(1).host().enter();
    println!("\nThe fleet stays up. To look around, as root:\n");
    println!(
        "  alias weft='ip netns exec {} env WEFT_SERVER={} {}'",
        fleet.controller().host().netns(),
        Controller::server(),
        weft.display()
    );
    println!("  weft fleet status");
    println!("  weft get policy; weft get endpoint; weft get identity");
    println!("  weft explain --from web --to api --port tcp/8080");
    println!("  weft watch policy\n");
    println!("  {node} bash                     # node n1: ip link, {} endpoint list", weft.display());
    println!("  ip netns exec {} bash    # the workload web\n", fleet.party("web")?.namespace.name());
    println!("Ctrl-C ends it and leaves nothing behind.");
    // The wait ends with an error by Ctrl-C, which is how this is meant to end.
    let _ = wait::until_true("Ctrl-C", STAY, || Ok(false));
    Ok(())
}

fn keep_logs(fleet: &Fleet, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(fleet.home().path())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// From now on Ctrl-C and SIGTERM make every wait end, so that the fleet is cleaned up on the way out.
fn listen_for_ctrl_c() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminate = {
        let _entered = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        wait::interrupt();
    });
    Ok(())
}

/// A line for each thing the demo does.
fn say(what: &str) {
    println!("• {what}");
}
