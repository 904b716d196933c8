//! `weft schema`: the manifests' JSON Schema.
use super::Global;
use crate::{
    failure::Failure,
    kind::{self, KindArgument},
    manifest,
    output::{Format, pretty, print},
};

const AFTER_HELP: &str = "\
With the YAML language server, in an editor:
  weft schema > weft.schema.json
and as the first line of a manifest:
  # yaml-language-server: $schema=./weft.schema.json";

/// Print the JSON Schema of the manifests, for editors
///
/// JSON Schema 2020-12: one of the kinds' schemas by `kind`, with every field, its values and what it means. Fields
/// that are not known are refused. No server is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Schema {
    /// Of this kind only, such as policy or fleetconfig
    #[arg(value_parser = kind::parse)]
    kind: Option<KindArgument>,
}

impl Schema {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let schema = manifest::json_schema(self.kind.map(|kind| kind::name(kind.0)));
        // The words that `kind` knows are the kinds of the API.
        let schema = schema.ok_or_else(|| Failure::Failed("no such kind".to_owned()))?;
        match global.output {
            Format::Table | Format::Json => print(&pretty(&schema)),
            Format::Yaml => print(&manifest::document(&schema)),
        }
    }
}
