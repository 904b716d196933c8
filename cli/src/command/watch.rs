//! `weft watch`: changes as they happen, until interrupted.
use serde_json::{Value, json};
use tonic::{Code, Request};
use weft_proto::v1;

use super::Global;
use crate::{
    client,
    failure::Failure,
    kind::{self, KindArgument},
    manifest,
    output::{Format, print},
};

/// Show changes as they happen, until interrupted
///
/// JSON: one line for each change, {revision, change: created|configured|deleted, object: RESOURCE}.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// Kinds to watch; all without
    #[arg(value_parser = kind::parse)]
    kinds: Vec<KindArgument>,
    /// Every change after this revision, instead of from now on
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    from_revision: u64,
}

impl Watch {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut operator = client::operator(&global.server).await?;
        let kinds = self.kinds.iter().map(|kind| kind.0.into()).collect();
        // Without a deadline: it ends when the operator ends it.
        let request = Request::new(v1::WatchRequest { kinds, from_revision: self.from_revision });
        let mut reached = self.from_revision;
        let mut answers = match operator.client.watch(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Err(operator.remote.failure(&status)),
        };
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    reached = answer.revision;
                    for event in &answer.events {
                        print(&line(global.output, reached, event))?;
                    }
                }
                Ok(None) => return Err(Failure::Failed(ended(reached, "the server ended the watch"))),
                Err(status) if status.code() == Code::Unavailable => {
                    let Failure::Unreachable { message, help } = operator.remote.failure(&status) else {
                        return Err(Failure::Failed(ended(reached, status.message())));
                    };
                    return Err(Failure::Unreachable { message: ended(reached, &message), help });
                }
                Err(status) => return Err(operator.remote.failure(&status)),
            }
        }
    }
}

fn ended(reached: u64, why: &str) -> String {
    if reached == 0 { why.to_owned() } else { format!("{why} (go on with --from-revision {reached})") }
}

fn line(format: Format, revision: u64, event: &v1::WatchEvent) -> String {
    let change = match event.change() {
        v1::Change::Unspecified | v1::Change::Unchanged => "unchanged",
        v1::Change::Created => "created",
        v1::Change::Configured => "configured",
        v1::Change::Deleted => "deleted",
    };
    let object = event.object.clone().unwrap_or_default();
    if format == Format::Table {
        let (kind, name) =
            manifest::metadata_of(&object).map_or(("?", "?"), |(kind, it)| (kind, it.name.as_str()));
        return format!("{revision:<8}  {change:<10}  {kind:<13}  {name}\n");
    }
    let value: Value = json!({"revision": revision, "change": change, "object": manifest::object(&object)});
    if format == Format::Json { format!("{value}\n") } else { format!("---\n{}", manifest::document(&value)) }
}
