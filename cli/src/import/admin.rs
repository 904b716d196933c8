//! `AdminNetworkPolicy` and `BaselineAdminNetworkPolicy` of policy.networking.k8s.io/v1alpha1, and what became of both:
//! `ClusterNetworkPolicy` of v1alpha2. Rules in order, the first match decides: the tiers admin and baseline.
mod peers;
mod protocols;

use std::collections::BTreeSet;

use weft_proto::v1::{self, Action, Tier};

use super::{
    document::{Draft, Origin},
    ports, selector,
    view::{Fields, Item, View},
};
use crate::manifest::Place;

const NOTHING_BEYOND: &str = "after the baseline tier there is only the fleet's default action: write what is meant, \
                              Allow/Accept or Deny";

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Admin,
    Baseline,
    Cluster,
}

impl Form {
    const fn actions(self) -> &'static [(&'static str, Action)] {
        match self {
            Self::Admin => &[("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)],
            Self::Baseline => &[("Allow", Action::Allow), ("Deny", Action::Deny)],
            Self::Cluster => &[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        }
    }
}

pub(super) fn read<'a>(
    view: &mut View<'a>,
    document: &mut Fields<'a>,
    origin: Origin,
    drafts: &mut Vec<Draft>,
) {
    let kind = origin.kind;
    let form = match kind {
        "AdminNetworkPolicy" => Form::Admin,
        "BaselineAdminNetworkPolicy" => Form::Baseline,
        _ => Form::Cluster,
    };
    let Some(spec) = document.get("spec") else {
        return view.missing(origin.place, &format!("this {kind}"), "spec");
    };
    let mut fields = view.fields(spec, "the spec");
    let place = view.place(spec);
    let tier = match form {
        Form::Admin => Tier::Admin,
        Form::Baseline => Tier::Baseline,
        Form::Cluster => {
            let item = fields.get("tier");
            if item.is_none() {
                view.missing(place.clone(), "the spec", "tier");
            }
            let words = [("Admin", Tier::Admin), ("Baseline", Tier::Baseline)];
            item.and_then(|item| view.one_of(item, &words)).unwrap_or(Tier::Admin)
        }
    };
    // There is one BaselineAdminNetworkPolicy in a cluster.
    let order = (form != Form::Baseline).then(|| priority(view, &mut fields, &place));
    let subject = subject(view, &mut fields, &place);
    let ingress = rules(view, fields.get("ingress"), form, tier, false);
    let egress = rules(view, fields.get("egress"), form, tier, true);
    if ingress.is_empty() && egress.is_empty() {
        view.wrong(spec, format!("this {kind} has no rules, so it says nothing"), "leave it out");
    }
    view.finish(&fields);
    let list = |items: Vec<v1::Rule>| (!items.is_empty()).then_some(v1::RuleList { items });
    let policy = v1::Policy {
        tier: tier.into(),
        order,
        subject,
        ingress: list(ingress),
        egress: list(egress),
        ..v1::Policy::default()
    };
    drafts.push(Draft { origin, part: None, policy });
}

fn priority<'a>(view: &mut View<'a>, fields: &mut Fields<'a>, place: &Place) -> u32 {
    let Some(item) = fields.get("priority") else {
        view.missing(place.clone(), "the spec", "priority");
        return 0;
    };
    view.number(item, 1000)
}

fn subject<'a>(view: &mut View<'a>, fields: &mut Fields<'a>, place: &Place) -> Option<v1::Subject> {
    let Some(item) = fields.get("subject") else {
        view.missing(place.clone(), "the spec", "subject");
        return None;
    };
    let mut fields = view.fields(item, "a subject");
    let meant = peers::pods(view, &mut fields);
    view.finish(&fields);
    match meant.as_slice() {
        [selector::Meant::These(requirements)] => {
            let endpoints = Some(selector::selector(requirements.clone()));
            Some(v1::Subject { endpoints, nodes: None })
        }
        [selector::Meant::None] => {
            view.wrong(item, "the subject is in none of the namespaces of --namespaces", "nobody is judged");
            None
        }
        _ => {
            view.wrong(item, "a subject is either `namespaces` or `pods`", "expected one of them");
            None
        }
    }
}

fn rules<'a>(
    view: &mut View<'a>,
    item: Option<Item<'a>>,
    form: Form,
    tier: Tier,
    egress: bool,
) -> Vec<v1::Rule> {
    let Some(item) = item else { return Vec::new() };
    let mut taken = BTreeSet::new();
    let mut rules = Vec::new();
    for (index, item) in view.list(item).into_iter().enumerate() {
        let mut rule = rule(view, item, form, tier, egress);
        rule.name = rule_name(&rule.name, index, &mut taken);
        rules.push(rule);
    }
    rules
}

fn rule<'a>(view: &mut View<'a>, item: Item<'a>, form: Form, tier: Tier, egress: bool) -> v1::Rule {
    let mut fields = view.fields(item, "a rule");
    let name = fields.get("name").map(|name| view.text(name)).unwrap_or_default();
    let place = view.place(item);
    let written = fields.get("action");
    if written.is_none() {
        view.missing(place.clone(), "this rule", "action");
    }
    let action = written.and_then(|item| view.one_of(item, form.actions())).unwrap_or(Action::Deny);
    if let Some(item) = written.filter(|_| action == Action::Pass && tier == Tier::Baseline) {
        view.refuse(item, "`Pass` in the baseline tier has no equivalent", NOTHING_BEYOND);
    }
    let side = if egress { "to" } else { "from" };
    let peers = match fields.get(side) {
        Some(item) if !item.is_empty() => peers::list(view, item, egress, action == Action::Allow),
        _ => {
            view.missing(place, "this rule", side);
            v1::PeerList::default()
        }
    };
    let mut found = Vec::new();
    let mut written = false;
    if let Some(item) = fields.get("ports") {
        written = true;
        found.extend(protocols::ports(view, item));
    }
    if form == Form::Cluster
        && let Some(item) = fields.get("protocols")
    {
        written = true;
        found.extend(protocols::protocols(view, item));
    }
    view.finish(&fields);
    let ports = written.then(|| ports::list(found));
    v1::Rule { name, action: action.into(), peers: Some(peers), ports }
}

/// The name in Weft's alphabet, and unlike the others of the list; empty (its place in the list) where nothing is left.
fn rule_name(written: &str, index: usize, taken: &mut BTreeSet<String>) -> String {
    let folded = written.to_ascii_lowercase();
    let letters = folded.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' });
    let joined = letters.collect::<String>();
    let name = joined.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    // A rule without a name is called by its place.
    let implied = if name.is_empty() { index.to_string() } else { name.clone() };
    if taken.insert(implied.clone()) {
        return name;
    }
    let numbered = (2_usize..).map(|number| format!("{implied}-{number}"));
    numbered.into_iter().find(|name| taken.insert(name.clone())).unwrap_or_default()
}
