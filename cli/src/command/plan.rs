//! `weft plan`: what applying manifests would change, the objects and the verdicts.
use std::{fmt::Write, path::PathBuf};

use weft_proto::v1;

use super::{
    Global,
    apply::{at_their_places, change_name, check_size, warn},
};
use crate::{
    client::{self, request},
    failure::Failure,
    kind, manifest,
    output::{count, difference, failsafe, note, table},
};

/// Show what applying manifests would change: the resources, and who may talk to whom
///
/// Changes nothing. Exit code 2: there are differences; 0: there are none. Verdicts are compared over the pairs of every
/// label set whose policies change with all label sets of endpoints and nodes, classes and prefixes, by class of ports.
///
/// JSON: {revision, objects: [{kind, name, change, before, after}], warnings: [{field, message}], verdicts: {newlyAllowed,
/// newlyDenied, pairs: [{subject, direction, peer, ports, before, after, decidedBefore, decidedAfter}], subjects, compared,
/// cutOff}, failsafe}.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// A file, a directory (its *.yaml and *.yml), or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    filenames: Vec<PathBuf>,
}

impl Plan {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let manifests = manifest::load(&self.filenames)?;
        if manifests.objects.is_empty() {
            note("nothing to plan: the manifests hold no resources");
            return Ok(());
        }
        check_size(&manifests)?;
        let mut operator = client::operator(&global.server).await?;
        let message = v1::PlanRequest { objects: manifests.objects.clone() };
        let planned = match operator.client.plan(request(message)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(at_their_places(operator.remote.failure(&status), &manifests)),
        };
        warn(&planned.warnings, &manifests);
        global.output.write(|| text(&planned), || manifest::answer("PlanResponse", &planned))?;
        if differs(&planned) { Err(Failure::Differences) } else { Ok(()) }
    }
}

fn differs(planned: &v1::PlanResponse) -> bool {
    let objects = planned.objects.iter().any(|object| object.change() != v1::Change::Unchanged);
    let verdicts = planned.verdicts.as_ref();
    objects || verdicts.is_some_and(|diff| diff.newly_allowed > 0 || diff.newly_denied > 0)
}

fn text(planned: &v1::PlanResponse) -> String {
    let rows = planned.objects.iter().map(|object| {
        [kind::name(object.kind()).to_owned(), object.name.clone(), change_name(object.change()).to_owned()]
    });
    let mut text = table(["KIND", "NAME", "CHANGE"], rows);
    for object in planned.objects.iter().filter(|object| object.change() != v1::Change::Unchanged) {
        let written = |object: &Option<v1::Object>| {
            object.as_ref().map(|object| manifest::document(&manifest::object(object))).unwrap_or_default()
        };
        let shown = difference(&written(&object.before), &written(&object.after));
        // Writing to a String never fails.
        let _ = write!(text, "\n{} {}\n{shown}", kind::name(object.kind()), object.name);
    }
    if let Some(diff) = &planned.verdicts {
        text.push_str(&verdicts(diff));
    }
    if let Some(entries) = &planned.failsafe {
        text.push('\n');
        text.push_str(&failsafe("held open on every node, whatever host policies say", &entries.items));
    }
    let _ = writeln!(text, "\nplan at revision {}: nothing was changed", planned.revision);
    text
}

fn verdicts(diff: &v1::VerdictDiff) -> String {
    let pairs = |number| count(number, "pair", "pairs");
    let mut text = format!(
        "\n{} newly allowed, {} newly denied ({} compared, {})\n",
        pairs(diff.newly_allowed),
        diff.newly_denied,
        diff.compared,
        count(diff.subjects, "changed subject", "changed subjects"),
    );
    if !diff.pairs.is_empty() {
        let rows = diff.pairs.iter().map(|pair| {
            let mark = if pair.after() == v1::Verdict::Allow { "+ allow" } else { "- deny" };
            let direction = match pair.direction() {
                v1::Direction::Ingress => "from",
                v1::Direction::Egress => "to",
                v1::Direction::Unspecified => "",
            };
            [
                mark.to_owned(),
                pair.subject.clone(),
                format!("{direction} {}", pair.peer),
                pair.ports.clone(),
                decided(pair.decided_after.as_ref()),
                decided(pair.decided_before.as_ref()),
            ]
        });
        text.push_str(&table(["VERDICT", "SUBJECT", "PEER", "PORTS", "DECIDED BY", "BEFORE"], rows));
    }
    for missing in &diff.cut_off {
        let _ = writeln!(text, "not all is here: {missing}");
    }
    text
}

/// The rule, or what else decided.
fn decided(step: Option<&v1::VerdictStep>) -> String {
    let Some(step) = step else { return String::new() };
    match (step.policy.as_str(), step.rule.as_str()) {
        ("", _) => step.text.clone(),
        (policy, "") => format!("{policy}: default deny"),
        (policy, rule) => format!("{policy} / {rule}"),
    }
}
