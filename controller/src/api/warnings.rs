//! What is right and can still hardly be meant, as far as only the fleet's configuration tells.
use weft_proto::v1::{self, LabelOperator, object::Kind as Of};
use weft_shared::policy::model::IdentityLabels;

use super::apply::Wanted;

/// Selectors that demand a label which makes no identity: nothing that is judged has it, so they select nothing.
pub(super) fn of_labels(wanted: &[Wanted], labels: &IdentityLabels) -> Vec<v1::Warning> {
    let selectors = wanted.iter().flat_map(|wanted| match &wanted.object.kind {
        Some(Of::Policy(policy)) => selectors(&wanted.path, policy),
        Some(Of::Service(service)) => {
            let selector = service.selector.iter();
            selector.map(|selector| (format!("{}.selector", wanted.path), selector)).collect()
        }
        Some(Of::Prefilter(prefilter)) => {
            let nodes = prefilter.nodes.iter();
            nodes.map(|nodes| (format!("{}.nodes", wanted.path), nodes)).collect()
        }
        // Endpoints are shaped by all their labels.
        Some(Of::Shaping(shaping)) => {
            let nodes = shaping.nodes.iter();
            nodes.map(|nodes| (format!("{}.nodes", wanted.path), nodes)).collect()
        }
        _ => Vec::new(),
    });
    let warning = |(field, selector): (String, &v1::Selector)| {
        let key = demanded(selector).find(|key| !labels.contains(key))?;
        let message =
            format!("\"{key}\" makes no identity (identityLabels), so the selector selects nothing");
        Some(v1::Warning { field, message })
    };
    let mut warnings: Vec<v1::Warning> = selectors.filter_map(warning).collect();
    warnings.extend(wanted.iter().filter_map(|wanted| topology(wanted, labels)));
    warnings
}

/// What makes no identity, nobody knows of a node.
fn topology(wanted: &Wanted, labels: &IdentityLabels) -> Option<v1::Warning> {
    let Some(Of::Service(service)) = &wanted.object.kind else { return None };
    let label = service.topology_label.as_ref().filter(|label| !labels.contains(label))?;
    let message = format!("\"{label}\" makes no identity (identityLabels), so no backend is preferred");
    Some(v1::Warning { field: format!("{}.topologyLabel", wanted.path), message })
}

/// Keys of labels that must be there.
fn demanded(selector: &v1::Selector) -> impl Iterator<Item = &str> {
    let needs = |operator| matches!(operator, LabelOperator::In | LabelOperator::Exists);
    let expressions = selector.match_expressions.iter().filter(move |one| needs(one.operator()));
    selector.match_labels.keys().map(String::as_str).chain(expressions.map(|one| one.key.as_str()))
}

/// All of a policy, by their fields' paths in the request.
fn selectors<'a>(path: &str, policy: &'a v1::Policy) -> Vec<(String, &'a v1::Selector)> {
    let mut found = Vec::new();
    if let Some(subject) = &policy.subject {
        found.extend(subject.endpoints.iter().map(|one| (format!("{path}.subject.endpoints"), one)));
        found.extend(subject.nodes.iter().map(|one| (format!("{path}.subject.nodes"), one)));
    }
    for (direction, list) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
        for (rule_index, rule) in list.iter().flat_map(|list| &list.items).enumerate() {
            for (index, peer) in rule.peers.iter().flat_map(|list| &list.items).enumerate() {
                let path = format!("{path}.{direction}[{rule_index}].peers[{index}]");
                found.extend(peer.endpoints.iter().map(|one| (format!("{path}.endpoints"), one)));
                found.extend(peer.nodes.iter().map(|one| (format!("{path}.nodes"), one)));
            }
        }
    }
    found
}
