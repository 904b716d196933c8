//! What this controller says of its nodes: one floor, and those that differ from it.
use std::collections::BTreeMap;

use weft_proto::v1;

use super::Standing;
use crate::limits;

/// What is worth telling of these nodes; `changed` is the last revision that changed anything. The order of nodes does not
/// matter, and what does not change gives equal records.
pub fn record<'a>(
    controller: &str,
    run: &str,
    changed: u64,
    nodes: impl Iterator<Item = (&'a str, Standing)>,
) -> v1::ControllerProgress {
    let mut nodes: Vec<(&str, Standing)> = nodes.collect();
    nodes.sort_unstable_by_key(|(name, _)| *name);
    for (_, standing) in &mut nodes {
        // Later revisions have changed nothing, these records among them.
        standing.realised = standing.realised.min(changed);
        standing.answered = standing.answered.min(changed);
    }
    let floor = floor(&nodes);
    let exceptions = nodes.into_iter().filter(|(_, standing)| {
        !standing.connected || standing.realised < floor || !standing.rejections.is_empty()
    });
    v1::ControllerProgress {
        controller: controller.to_owned(),
        run: run.to_owned(),
        floor,
        exceptions: exceptions.map(|(name, standing)| exception(name, standing)).collect(),
        written_at: None,
        waiting_for_adoption: Vec::new(),
    }
}

/// Where most of the connected nodes are, so that the exceptions are few.
fn floor(nodes: &[(&str, Standing)]) -> u64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, standing) in nodes.iter().filter(|(_, standing)| standing.connected) {
        *counts.entry(standing.realised).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(realised, _)| realised)
}

fn exception(name: &str, standing: Standing) -> v1::NodeProgress {
    let rejected = standing.rejections.into_iter().take(limits::PROGRESS_REJECTIONS);
    v1::NodeProgress {
        node: name.to_owned(),
        connected: standing.connected,
        realised: standing.realised,
        answered: standing.answered,
        rejected: rejected
            .map(|rejected| v1::RejectedAt {
                r#type: i32::from(rejected.kind).cast_unsigned(),
                name: rejected.name,
                reason: rejected.reason,
                revision: rejected.revision,
            })
            .collect(),
        // Of a connected node it would change all the time.
        last_seen: standing.last_seen.filter(|_| !standing.connected).map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(realised: u64, connected: bool) -> Standing {
        Standing { connected, realised, answered: realised, ..Standing::default() }
    }

    fn told(nodes: &[(&'static str, Standing)]) -> (u64, Vec<(String, u64)>) {
        let record = record("c", "r", 50, nodes.iter().cloned());
        let exceptions = record.exceptions.into_iter().map(|node| (node.node, node.realised));
        (record.floor, exceptions.collect())
    }

    #[test]
    fn nodes_that_are_where_most_are_need_no_word() {
        let nodes = [("a", at(50, true)), ("b", at(60, true)), ("c", at(40, true)), ("d", at(50, true))];
        assert_eq!(told(&nodes), (50, vec![("c".to_owned(), 40)]));
    }

    #[test]
    fn who_is_away_is_told_of() {
        assert_eq!(
            told(&[("a", at(50, true)), ("b", at(70, false))]),
            (50, vec![("b".to_owned(), 50)]),
            "what came after the last change is as good as it"
        );
        assert_eq!(told(&[("a", at(7, false))]), (0, vec![("a".to_owned(), 7)]));
    }
}
