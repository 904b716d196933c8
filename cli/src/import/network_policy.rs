//! `NetworkPolicy` of networking.k8s.io/v1. Policies add up: who is selected by one in a direction is closed there, but for
//! what any of them allows. That is the application tier, without a deny.
use weft_proto::v1;

use super::{
    blocks::{self, About, Block},
    document::{Draft, Origin},
    ports,
    selector::{self, Meant},
    view::{Fields, Item, View},
};
use crate::manifest::tree::Value;

/// Which of the two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

pub(super) fn read<'a>(
    view: &mut View<'a>,
    document: &mut Fields<'a>,
    origin: Origin,
    drafts: &mut Vec<Draft>,
) {
    let Some(spec) = document.get("spec") else {
        return view.missing(origin.place, "this NetworkPolicy", "spec");
    };
    let mut fields = view.fields(spec, "a NetworkPolicy");
    let namespace = origin.namespace.clone().unwrap_or_default();
    let mut requirements = vec![selector::in_namespace(view, &namespace)];
    if let Some(pods) = fields.get("podSelector") {
        requirements.append(&mut selector::pods(view, pods));
    }
    let ingress = rules(view, fields.get("ingress"), Way::Ingress, &namespace);
    let egress = rules(view, fields.get("egress"), Way::Egress, &namespace);
    let types = fields.get("policyTypes").filter(|item| !item.is_empty());
    let (judges_ingress, judges_egress) = match types {
        Some(types) => policy_types(view, types),
        None => (true, !egress.is_empty()),
    };
    for (judges, rules, name) in [(judges_ingress, &ingress, "ingress"), (judges_egress, &egress, "egress")] {
        if !judges
            && !rules.is_empty()
            && let Some(item) = fields.get(name)
        {
            let message = format!("the rules of `{name}` have no effect");
            view.refuse(item, message, "Kubernetes ignores them, because `policyTypes` does not name the direction: take them out, or name it");
        }
    }
    view.finish(&fields);
    let list = |items| v1::RuleList { items };
    let policy = v1::Policy {
        tier: v1::Tier::Application.into(),
        subject: Some(v1::Subject { endpoints: Some(selector::selector(requirements)), nodes: None }),
        ingress: judges_ingress.then(|| list(ingress)),
        egress: judges_egress.then(|| list(egress)),
        default_deny: Some(v1::DefaultDeny {
            ingress: judges_ingress.then_some(true),
            egress: judges_egress.then_some(true),
        }),
        ..v1::Policy::default()
    };
    drafts.push(Draft { origin, part: None, policy });
}

fn policy_types<'a>(view: &mut View<'a>, item: Item<'a>) -> (bool, bool) {
    let mut found = (false, false);
    for item in view.list(item) {
        match view.one_of(item, &[("Ingress", Way::Ingress), ("Egress", Way::Egress)]) {
            Some(Way::Ingress) => found.0 = true,
            Some(Way::Egress) => found.1 = true,
            None => {}
        }
    }
    found
}

fn rules<'a>(view: &mut View<'a>, item: Option<Item<'a>>, way: Way, namespace: &str) -> Vec<v1::Rule> {
    let Some(item) = item else { return Vec::new() };
    view.list(item).into_iter().map(|item| rule(view, item, way, namespace)).collect()
}

fn rule<'a>(view: &mut View<'a>, item: Item<'a>, way: Way, namespace: &str) -> v1::Rule {
    let (noun, peers) = match way {
        Way::Ingress => ("an ingress rule", "from"),
        Way::Egress => ("an egress rule", "to"),
    };
    let mut fields = view.fields(item, noun);
    // Empty or missing: everybody, and every port.
    let peers =
        fields.get(peers).filter(|item| !item.is_empty()).map(|item| peer_list(view, item, namespace));
    let ports = fields.get("ports").filter(|item| !item.is_empty()).map(|item| {
        let items = view.list(item);
        ports::list(items.into_iter().map(|item| port(view, item)).collect())
    });
    view.finish(&fields);
    v1::Rule { action: v1::Action::Allow.into(), peers, ports, ..v1::Rule::default() }
}

fn peer_list<'a>(view: &mut View<'a>, item: Item<'a>, namespace: &str) -> v1::PeerList {
    let mut items = Vec::new();
    let mut found = Vec::new();
    for item in view.list(item) {
        let mut fields = view.fields(item, "a peer");
        let pods = fields.get("podSelector");
        let namespaces = fields.get("namespaceSelector");
        let block = fields.get("ipBlock");
        match (pods, namespaces, block) {
            (None, None, Some(block)) => found.extend(ip_block(view, block)),
            (None, None, None) if matches!(item.node.value, Value::Mapping(_)) => {
                let label = "expected podSelector, namespaceSelector or ipBlock";
                view.wrong(item, "this peer is nobody", label);
            }
            (None, None, None) => {}
            (pods, namespaces, None) => {
                let meant = match namespaces {
                    Some(namespaces) => selector::namespaces(view, namespaces),
                    None => Meant::These(vec![selector::in_namespace(view, namespace)]),
                };
                let pods = pods.map(|pods| selector::pods(view, pods)).unwrap_or_default();
                items.extend(meant.and(pods).peer());
            }
            (_, _, Some(block)) => view.wrong(block, "`ipBlock` stands alone in a peer", "beside a selector"),
        }
        view.finish(&fields);
    }
    items.extend(blocks::peers(view, &found, About::Everyone, true));
    v1::PeerList { items }
}

fn ip_block<'a>(view: &mut View<'a>, item: Item<'a>) -> Option<Block<'a>> {
    let mut fields = view.fields(item, "an ipBlock");
    let cidr = fields.get("cidr");
    if cidr.is_none() {
        view.wrong(item, "this `ipBlock` has no `cidr`", "here");
    }
    let parsed = cidr.and_then(|cidr| blocks::prefix(view, cidr));
    let except = fields.get("except").map(|item| blocks::exceptions(view, item, parsed)).unwrap_or_default();
    view.finish(&fields);
    Some(Block { item: cidr?, cidr: parsed?, except })
}

fn port<'a>(view: &mut View<'a>, item: Item<'a>) -> v1::Port {
    let mut fields = view.fields(item, "a port");
    let protocol = ports::protocol(view, &mut fields);
    let first = fields.get("port").and_then(|item| match &item.node.value {
        Value::Scalar { text, plain }
            if !plain || !text.starts_with(|first: char| first.is_ascii_digit() || first == '-') =>
        {
            ports::refuse_name(view, item, text);
            None
        }
        _ => Some(ports::number(view, item)),
    });
    let last = match fields.get("endPort") {
        // The name of the first was refused already.
        Some(_) if first.is_none() && fields.get("port").is_some() => None,
        Some(item) => ports::end(view, item, first),
        None => None,
    };
    view.finish(&fields);
    ports::port(protocol, first, last)
}
