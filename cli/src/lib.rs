//! `weft`, the operator's command: manifests and flags → calls of the API → tables and JSON.
mod arguments;
mod client;
mod command;
mod failure;
pub mod import;
mod kind;
pub mod limits;
pub mod manifest;
mod output;

use clap::Parser;

use command::Cli;
use failure::{Failure, exit};

/// Runs the command that the process was started with; the exit code says how it went.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results; all else is bad usage. If even that can't be written, nobody reads it.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE } else { exit::DONE };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => Err(Failure::Failed(format!("cannot start: {error}"))),
    };
    match outcome {
        Ok(()) => exit::DONE,
        Err(failure) => {
            output::report(&failure);
            failure.exit_code()
        }
    }
}
