//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` of cilium.io/v2, as far as they are about addresses, labels
//! and ports. A deny wins over every allow, and who is selected by a rule in a direction is closed there unless
//! `enableDefaultDeny` says otherwise: the application tier.
mod entities;
mod labels;
mod ports;
mod rule;

use weft_proto::v1::{self, Action};

use super::{
    document::{Draft, Origin},
    selector,
    view::{Fields, Item, View},
};
use rule::{EGRESS, INGRESS, Side};

pub(super) fn read<'a>(
    view: &mut View<'a>,
    document: &mut Fields<'a>,
    origin: Origin,
    drafts: &mut Vec<Draft>,
) {
    let mut specs: Vec<_> = document.get("spec").into_iter().collect();
    if let Some(more) = document.get("specs") {
        specs.extend(view.list(more));
    }
    if specs.is_empty() {
        return view.missing(origin.place, &format!("this {}", origin.kind), "spec");
    }
    let several = specs.len() > 1;
    for (index, spec) in specs.into_iter().enumerate() {
        let policy = policy(view, spec, origin.namespace.as_deref());
        drafts.push(Draft { origin: origin.clone(), part: several.then_some(index + 1), policy });
    }
}

fn policy<'a>(view: &mut View<'a>, spec: Item<'a>, namespace: Option<&str>) -> v1::Policy {
    let mut fields = view.fields(spec, "the spec");
    let subject = subject(view, &mut fields, spec, namespace);
    let wanted = fields.get("enableDefaultDeny").map(|item| {
        let mut fields = view.fields(item, "enableDefaultDeny");
        let wanted = ["ingress", "egress"].map(|name| fields.get(name).map(|item| view.boolean(item)));
        view.finish(&fields);
        wanted
    });
    let [wanted_ingress, wanted_egress] = wanted.unwrap_or_default();
    let (ingress, deny_ingress) = direction(view, &mut fields, &INGRESS, namespace, wanted_ingress);
    let (egress, deny_egress) = direction(view, &mut fields, &EGRESS, namespace, wanted_egress);
    // They name the rule and say what it is for; flows do not depend on them.
    fields.leave(&["description", "labels"]);
    view.finish(&fields);
    if ingress.is_none() && egress.is_none() {
        let label = "an empty list of rules does not close a direction for Cilium";
        view.wrong(spec, "there is no rule in this spec, so it says nothing", label);
    }
    v1::Policy {
        tier: v1::Tier::Application.into(),
        subject,
        ingress,
        egress,
        default_deny: Some(v1::DefaultDeny { ingress: deny_ingress, egress: deny_egress }),
        ..v1::Policy::default()
    }
}

fn subject<'a>(
    view: &mut View<'a>,
    fields: &mut Fields<'a>,
    spec: Item<'a>,
    namespace: Option<&str>,
) -> Option<v1::Subject> {
    let endpoints = fields.get("endpointSelector");
    let nodes = fields.get("nodeSelector");
    match (endpoints, nodes) {
        (Some(item), None) => {
            let requirements = labels::subject(view, item, namespace);
            Some(v1::Subject { endpoints: Some(selector::selector(requirements)), nodes: None })
        }
        (None, Some(item)) => {
            if namespace.is_some() {
                let label = "only a CiliumClusterwideNetworkPolicy selects nodes";
                view.wrong(item, "a policy of a namespace cannot select nodes", label);
            }
            let requirements = labels::nodes(view, item);
            Some(v1::Subject { endpoints: None, nodes: Some(selector::selector(requirements)) })
        }
        _ => {
            let label = "expected one of them";
            view.wrong(spec, "a spec has either `endpointSelector` or `nodeSelector`", label);
            None
        }
    }
}

/// The rules of a direction and its default; neither where the spec says nothing about the direction.
fn direction<'a>(
    view: &mut View<'a>,
    fields: &mut Fields<'a>,
    side: &'static Side,
    namespace: Option<&str>,
    wanted: Option<bool>,
) -> (Option<v1::RuleList>, Option<bool>) {
    let mut items = Vec::new();
    let mut written = false;
    for (name, action) in [(side.deny, Action::Deny), (side.allow, Action::Allow)] {
        let Some(item) = fields.get(name) else { continue };
        for item in view.list(item) {
            written = true;
            items.extend(rule::read(view, item, side, action, namespace));
        }
    }
    // A list without a rule is as good as none; a rule without any peer and port only closes.
    let denies = wanted.unwrap_or(written);
    if written || denies { (Some(v1::RuleList { items }), Some(denies)) } else { (None, None) }
}
