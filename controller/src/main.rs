//! `weft-controller`: flags and wiring.
mod flags;

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tracing_subscriber::EnvFilter;
use weft_controller::{
    Config, Controller, ServeError, StoreConfig, opening, relocation::Step, store::EtcdConfigError,
};

use flags::{StoreFlags, Usage};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 64;

/// Between two lines about how far a move is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Serves operators and nodes of a Weft fleet. All state is in the store: an embedded one in the data directory, for one
/// controller, or etcd, for several.
#[derive(Debug, Parser)]
#[command(
    name = "weft-controller",
    version,
    after_help = "Exit status: 0 stopped by a signal, 1 failed (the store could not be reached for 15 s, for one), 64 bad \
                  usage. A store that is lost later does not end the controller: calls answer UNAVAILABLE until it is \
                  back, and nodes keep what they have."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Address and port to serve gRPC on
    #[arg(long, env = "WEFT_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
    listen: SocketAddr,

    #[command(flatten)]
    store: StoreFlags,

    /// What this controller calls itself to nodes and in their status; no two of a fleet may have one name [default: the host
    /// name]
    #[arg(long, env = "WEFT_CONTROLLER_NAME", value_name = "NAME")]
    name: Option<String>,

    /// How logs look. What is logged is set by the variable `RUST_LOG` (default: info)
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Move the fleet's data from the embedded store to etcd, store id kept
    ///
    /// No controller may run meanwhile. The target must hold no fleet's data. Everything is compared before the target may be
    /// served; a move that broke off is started over by running it again. The embedded store stays where it is, and is not
    /// served any more.
    Move(StoreFlags),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    start_logging(arguments.log_format);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&format!("cannot start: {error}"), EXIT_FAILED),
    };
    let ended = match arguments.command {
        Some(Command::Move(flags)) => runtime.block_on(move_to_etcd(flags)),
        None => runtime.block_on(run(arguments)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.downcast_ref::<ServeError>().is_some_and(ServeError::is_usage)
                || error.is::<EtcdConfigError>()
                || error.is::<Usage>();
            report(&format!("{error:#}"), if usage { EXIT_USAGE } else { EXIT_FAILED })
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Before anything is started, so that no signal finds nobody.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let store = match arguments.store.etcd.config()? {
        Some(etcd) => StoreConfig::Etcd(etcd),
        None => StoreConfig::Embedded { directory: arguments.store.data_dir },
    };
    let name = arguments.name.map_or_else(host_name, Ok)?;
    let config = Config { listen: arguments.listen, name, insecure: arguments.store.insecure };
    let starting = Controller::start(config, &store);
    let mut controller = tokio::select! {
        controller = starting => controller?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        error = controller.failed() => return Err(error.into()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    Ok(controller.stop().await?)
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("no host name; give --name")?;
    Ok(name.trim().to_owned())
}

async fn move_to_etcd(flags: StoreFlags) -> anyhow::Result<()> {
    let etcd = flags.etcd.config()?.ok_or(Usage("where to? Say it with --etcd".to_owned()))?;
    etcd.check(flags.insecure)?;
    let mut told_at = Instant::now();
    let tell = |step: Step, keys: usize| {
        if told_at.elapsed() >= PROGRESS_INTERVAL {
            told_at = Instant::now();
            tracing::info!(?step, keys, "moving");
        }
    };
    let (moved, revision) = opening::move_to_etcd(&flags.data_dir, &etcd, tell).await?;
    let say = format!(
        "moved store {}: {} keys, now at revision {revision}. Start controllers with --etcd; the embedded store in {} is not \
         served any more.",
        moved.store_id,
        moved.keys,
        flags.data_dir.display()
    );
    Ok(writeln!(std::io::stdout(), "{say}")?)
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever read the log may be gone; that must not end the controller.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn report(error: &str, code: u8) -> ExitCode {
    drop(writeln!(std::io::stderr(), "weft-controller: {error}"));
    ExitCode::from(code)
}
