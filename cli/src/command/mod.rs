//! One file a command.
mod apply;
mod completion;
mod delete;
mod endpoint;
mod explain;
mod fleet;
mod get;
mod import;
mod monitor;
mod node;
mod plan;
mod schema;
mod service;
mod wait;
mod watch;

use clap::{Parser, Subcommand};

use crate::{failure::Failure, output::Format};

const AFTER_HELP: &str = "\
Results go to stdout, everything else to stderr. `--output json` writes one document whose fields do not change within
a version of the API: answers with the field names of the API in camelCase, durations as numbers named
…Milliseconds, resources in the form of their manifests.

Exit codes:
  0   done, or nothing to do
  1   failed
  2   there are differences, or a test failed
  3   timed out waiting
  64  bad usage
  69  the server cannot be reached";

/// Networking and policy for fleets without Kubernetes
#[derive(Debug, Parser)]
#[command(name = "weft", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The controller, as http://HOST:PORT
    #[arg(
        long,
        env = "WEFT_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7443",
        global = true
    )]
    pub server: String,
    /// How results are written
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table", global = true)]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Apply(apply::Apply),
    Plan(plan::Plan),
    Get(get::Get),
    Delete(delete::Delete),
    Watch(watch::Watch),
    Explain(explain::Explain),
    /// The fleet as a whole
    #[command(subcommand)]
    Fleet(fleet::Fleet),
    /// The nodes of the fleet
    #[command(subcommand)]
    Node(node::Node),
    Endpoint(endpoint::Endpoint),
    /// Services: who answers for them, and with what share
    #[command(subcommand)]
    Service(service::Service),
    Monitor(monitor::Monitor),
    Import(import::Import),
    Schema(schema::Schema),
    Completion(completion::Completion),
}

impl Cli {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let global = self.global;
        match self.command {
            Command::Apply(command) => command.run(&global).await,
            Command::Plan(command) => command.run(&global).await,
            Command::Get(command) => command.run(&global).await,
            Command::Delete(command) => command.run(&global).await,
            Command::Watch(command) => command.run(&global).await,
            Command::Explain(command) => command.run(&global).await,
            Command::Fleet(command) => command.run(&global).await,
            Command::Node(command) => command.run(&global).await,
            Command::Endpoint(command) => command.run(&global).await,
            Command::Service(command) => command.run(&global).await,
            Command::Monitor(command) => command.run(&global).await,
            Command::Import(command) => command.run(&global).await,
            Command::Schema(command) => command.run(&global),
            Command::Completion(command) => command.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds_together() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_in_the_documents_is_one() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut seen = 0;
        for name in [
            "README.md",
            "docs/policy.md",
            "docs/services.md",
            "docs/import.md",
            "docs/architecture.md",
            "docs/operations.md",
            "docs/PROMISES.md",
        ] {
            let text = std::fs::read_to_string(root.join(name)).unwrap();
            let code = text.split("```").skip(1).step_by(2);
            let commands = code.flat_map(str::lines).flat_map(|line| line.split(" && ")).map(str::trim);
            for command in commands.filter(|command| command.starts_with("weft ")) {
                let command = command.split(" #").next().unwrap();
                let command = command.split(" > ").next().unwrap();
                if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
                    panic!("{name}: {command}\n{error}");
                }
                seen += 1;
            }
        }
        assert!(seen > 0, "the documents show commands");
    }
}
