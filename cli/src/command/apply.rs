//! `weft apply`: manifests → one transaction.
use std::{fmt::Write, path::PathBuf};

use prost::Message;
use serde_json::Value;
use weft_proto::v1;

use super::{
    Global,
    wait::{self, WaitFlags},
};
use crate::{
    client::{self, Operator, request},
    failure::Failure,
    kind,
    limits::{APPLY_BYTES_MAX, APPLY_OBJECTS_MAX},
    manifest::{self, Manifests, Problem},
    output::{count, note, table},
};

/// Create or change resources from YAML manifests, all or none
///
/// JSON: {revision, objects: [{kind, name, change: created|configured|unchanged, uid}], warnings: [{field, message}],
/// dryRun}; with --wait also realised: {nodes, realised, waitingFor, done, tookMilliseconds}.
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// A file, a directory (its *.yaml and *.yml), or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    filenames: Vec<PathBuf>,
    /// Check everything, change nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Apply only if no resource that operators write has changed after this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    #[command(flatten)]
    waiting: WaitFlags,
}

impl Apply {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let manifests = manifest::load(&self.filenames)?;
        if manifests.objects.is_empty() {
            note("nothing to apply: the manifests hold no resources");
            return Ok(());
        }
        check_size(&manifests)?;
        let mut operator = client::operator(&global.server).await?;
        let applied = self.send(&mut operator, &manifests).await?;
        warn(&applied.warnings, &manifests);
        let revision = applied.revision;
        let mut value = manifest::answer("ApplyResponse", &applied);
        value["dryRun"] = self.dry_run.into();
        let mut text = objects(&applied);
        let mut outcome = Ok(());
        // Writing to a String never fails.
        let _ = if self.dry_run {
            writeln!(text, "\ndry run at revision {revision}: nothing was changed")
        } else {
            writeln!(text, "\nrevision {revision}")
        };
        if self.waiting.wait {
            let waited = wait::realised(&mut operator, revision, self.waiting.limit.timeout).await;
            value["realised"] = manifest::answer("WaitRealisedResponse", &waited.last);
            if waited.outcome.is_ok() {
                text.push_str(&realised(&value["realised"]));
            }
            outcome = waited.outcome;
        }
        global.output.write(|| text, || value)?;
        outcome
    }

    async fn send(
        &self,
        operator: &mut Operator,
        manifests: &Manifests,
    ) -> Result<v1::ApplyResponse, Failure> {
        let objects = manifests.objects.clone();
        let message = v1::ApplyRequest { objects, dry_run: self.dry_run, if_revision: self.if_revision };
        match operator.client.apply(request(message)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(at_their_places(operator.remote.failure(&status), manifests)),
        }
    }
}

pub(super) fn realised(value: &Value) -> String {
    if value["nodes"] == 0 {
        return "realised: no node is affected\n".to_owned();
    }
    let milliseconds = value["tookMilliseconds"].as_f64();
    let took = milliseconds.map(|took| format!(" in {took:.1} ms")).unwrap_or_default();
    let nodes = count(value["realised"].as_u64().unwrap_or_default(), "node", "nodes");
    format!("realised on {nodes}{took}\n")
}

fn objects(applied: &v1::ApplyResponse) -> String {
    let rows = applied.objects.iter().map(|object| {
        let change = change_name(object.change()).to_owned();
        [kind::name(object.kind()).to_owned(), object.name.clone(), change]
    });
    table(["KIND", "NAME", "CHANGE"], rows)
}

pub(super) fn change_name(change: v1::Change) -> &'static str {
    match change {
        v1::Change::Unspecified => "",
        v1::Change::Created => "created",
        v1::Change::Configured => "configured",
        v1::Change::Unchanged => "unchanged",
        v1::Change::Deleted => "deleted",
    }
}

/// The server would refuse it as well, but can't say which file.
pub(super) fn check_size(manifests: &Manifests) -> Result<(), Failure> {
    let objects = &manifests.objects;
    let place = |index: usize| manifests.place(&format!("objects[{index}]")).cloned();
    if objects.len() > APPLY_OBJECTS_MAX
        && let Some(place) = place(APPLY_OBJECTS_MAX)
    {
        let message = format!("{} objects are too many for one apply", objects.len());
        let problem = Problem::new(place, message).label(format!("object {}", APPLY_OBJECTS_MAX + 1));
        return Err(Failure::Manifest(vec![
            problem.help(format!("at most {APPLY_OBJECTS_MAX} objects in one apply")),
        ]));
    }
    let request = v1::ApplyRequest { objects: objects.clone(), ..Default::default() };
    let size = request.encoded_len();
    let largest = (0..objects.len()).max_by_key(|index| objects[*index].encoded_len());
    if size > APPLY_BYTES_MAX
        && let Some(largest) = largest
        && let Some(place) = place(largest)
    {
        let message = format!("{size} bytes are too much for one apply");
        let problem = Problem::new(place, message)
            .label(format!("the largest: {} bytes", objects[largest].encoded_len()));
        return Err(Failure::Manifest(vec![
            problem.help(format!("at most {APPLY_BYTES_MAX} bytes in one apply")),
        ]));
    }
    Ok(())
}

/// What is right and can still hardly be meant, at the line where it was written.
pub(super) fn warn(warnings: &[v1::Warning], manifests: &Manifests) {
    for v1::Warning { field, message } in warnings {
        match manifests.place(field) {
            Some(place) => note(&format!("warning: {place}: {}: {message}", within_object(field))),
            None => note(&format!("warning: {field}: {message}")),
        }
    }
}

/// `objects[2].policy.ingress[0].action`: which object is clear from the place.
fn within_object(field: &str) -> &str {
    field.splitn(3, '.').nth(2).unwrap_or(field)
}

/// What the server says of a field, at the line where the field was written.
pub(super) fn at_their_places(failure: Failure, manifests: &Manifests) -> Failure {
    let Failure::Refused { message, fields, code } = failure else { return failure };
    let mut problems = Vec::new();
    for (field, description) in &fields {
        let Some(place) = manifests.place(field) else {
            return Failure::Refused { message, fields, code };
        };
        let short = within_object(field);
        let problem = Problem::new(place.clone(), format!("{short}: {description}"));
        problems.push((object_index(field), problem.label("refused by the controller")));
    }
    // As they stand in the files.
    problems.sort_by_key(|(object, problem)| (*object, problem.place.span.start));
    let problems: Vec<_> = problems.into_iter().map(|(_, problem)| problem).collect();
    if problems.is_empty() { Failure::Refused { message, fields, code } } else { Failure::Manifest(problems) }
}

/// 2, of `objects[2].policy…`.
fn object_index(field: &str) -> Option<usize> {
    field.strip_prefix("objects[")?.split(']').next()?.parse().ok()
}
