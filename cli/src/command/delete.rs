//! `weft delete`: one resource.
use weft_proto::v1;

use super::{
    Global, apply,
    wait::{self, WaitFlags},
};
use crate::{
    client::{self, request},
    failure::Failure,
    kind::{self, KindArgument},
    manifest,
};

/// Delete one resource
///
/// JSON: {revision}; with --wait also realised, as of `weft apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    #[arg(value_parser = kind::parse)]
    kind: KindArgument,
    name: String,
    /// Delete only if no resource that operators write has changed after this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    #[command(flatten)]
    waiting: WaitFlags,
}

impl Delete {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut operator = client::operator(&global.server).await?;
        let kind = self.kind.0;
        let message =
            v1::DeleteRequest { kind: kind.into(), name: self.name.clone(), if_revision: self.if_revision };
        let answer = operator.client.delete(request(message)).await;
        let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
        let mut value = manifest::answer("DeleteResponse", &answer);
        let mut text =
            format!("{} {} deleted\n\nrevision {}\n", kind::name(kind), self.name, answer.revision);
        let mut outcome = Ok(());
        if self.waiting.wait {
            let waited = wait::realised(&mut operator, answer.revision, self.waiting.limit.timeout).await;
            value["realised"] = manifest::answer("WaitRealisedResponse", &waited.last);
            if waited.outcome.is_ok() {
                text.push_str(&apply::realised(&value["realised"]));
            }
            outcome = waited.outcome;
        }
        global.output.write(|| text, || value)?;
        outcome
    }
}
