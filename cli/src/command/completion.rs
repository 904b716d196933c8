//! `weft completion`: scripts for shells.
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Cli;
use crate::{failure::Failure, output::print};

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// bash, zsh or fish
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "weft", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}
