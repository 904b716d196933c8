//! `weft delete`: one resource.
use weft_proto::v1;

use super::{
    Global, apply,
    wait::{self, WaitFlags},
};
use crate::{
    client::{self, Operator, request},
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
        let said = format!("{} {} deleted", kind::name(kind), self.name);
        let message = v1::DeleteRequest { kind: kind.into(), name: self.name, if_revision: self.if_revision };
        delete(&mut operator, global, message, &self.waiting, &said).await
    }
}

/// Deletes, waits if that is asked for, and says what was done.
pub(super) async fn delete(
    operator: &mut Operator,
    global: &Global,
    message: v1::DeleteRequest,
    waiting: &WaitFlags,
    said: &str,
) -> Result<(), Failure> {
    let answer = operator.client.delete(request(message)).await;
    let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
    let mut value = manifest::answer("DeleteResponse", &answer);
    let mut text = format!("{said}\n\nrevision {}\n", answer.revision);
    let mut outcome = Ok(());
    if waiting.wait {
        let waited = wait::realised(operator, answer.revision, waiting.limit.timeout).await;
        value["realised"] = manifest::answer("WaitRealisedResponse", &waited.last);
        if waited.outcome.is_ok() {
            text.push_str(&apply::realised(&value["realised"]));
        }
        outcome = waited.outcome;
    }
    global.output.write(|| text, || value)?;
    outcome
}
