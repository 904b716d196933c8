//! Policies.

use std::collections::BTreeSet;

use weft_proto::v1;

use super::{
    super::model::{Mode, Policy, Rule, RuleAction, Subject, Tier},
    Errors, FieldError, FieldWarning, metadata,
    peer::peer,
    port::port,
    selector::selector_of,
    text::name,
};

/// A policy.
pub fn policy(message: &v1::Policy) -> Result<Policy, Vec<FieldError>> {
    policy_and_warnings(message).map(|(policy, _)| policy)
}

/// A policy, and what of it can hardly be meant.
pub fn policy_and_warnings(message: &v1::Policy) -> Result<(Policy, Vec<FieldWarning>), Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata(&mut errors, message.metadata.as_ref());
    let tier = tier(&mut errors, message);
    let mode = mode(&mut errors, message.mode);
    let subject = subject(&mut errors, message.subject.as_ref());
    let is_admin = message.tier() == v1::Tier::Admin;
    let ingress = rules(&mut errors, message.ingress.as_ref(), is_admin, "ingress");
    let egress = rules(&mut errors, message.egress.as_ref(), is_admin, "egress");
    if message.ingress.is_none() && message.egress.is_none() && message.default_deny.is_none() {
        errors.add("ingress", "the policy says nothing: expected ingress, egress or defaultDeny");
    }
    let value =
        (|| Some(Policy { name: name?, tier: tier?, mode: mode?, subject: subject?, ingress, egress }))();
    errors.finish_with_warnings(value)
}

fn tier(errors: &mut Errors, message: &v1::Policy) -> Option<Tier> {
    let order = message.order.unwrap_or(Tier::DEFAULT_ORDER);
    let default_deny = message.default_deny.as_ref();
    let ordered = match v1::Tier::try_from(message.tier) {
        Ok(v1::Tier::Unspecified | v1::Tier::Application) => {
            if message.order.is_some() {
                errors.add("order", "policies of the application tier have no order");
                return None;
            }
            let given = default_deny.copied().unwrap_or_default();
            return Some(Tier::Application {
                default_deny_ingress: given.ingress.unwrap_or(message.ingress.is_some()),
                default_deny_egress: given.egress.unwrap_or(message.egress.is_some()),
            });
        }
        Ok(v1::Tier::Admin) => Tier::Admin { order },
        Ok(v1::Tier::Baseline) => Tier::Baseline { order },
        Err(_) => {
            errors.add("tier", "expected admin, application or baseline");
            return None;
        }
    };
    if default_deny.is_some() {
        errors.add("defaultDeny", "is for the application tier: end the rules with one that denies");
    }
    if order > Tier::ORDER_MAX {
        errors.add("order", format!("{order} is out of range: expected 0 to {}", Tier::ORDER_MAX));
    }
    Some(ordered)
}

fn mode(errors: &mut Errors, number: i32) -> Option<Mode> {
    match v1::PolicyMode::try_from(number) {
        Ok(v1::PolicyMode::Unspecified | v1::PolicyMode::Enforce) => Some(Mode::Enforce),
        Ok(v1::PolicyMode::Audit) => Some(Mode::Audit),
        Err(_) => {
            errors.add("mode", "expected enforce or audit");
            None
        }
    }
}

fn subject(errors: &mut Errors, message: Option<&v1::Subject>) -> Option<Subject> {
    let subject = message.cloned().unwrap_or_default();
    match (&subject.endpoints, &subject.nodes) {
        (Some(endpoints), None) => {
            selector_of(errors, endpoints, "subject.endpoints").map(Subject::Endpoints)
        }
        (None, Some(nodes)) => selector_of(errors, nodes, "subject.nodes").map(Subject::Nodes),
        (Some(_), Some(_)) => {
            errors.add("subject", "expected either endpoints or nodes, not both");
            None
        }
        (None, None) => {
            errors.add("subject", "expected endpoints or nodes: a selector ({} selects all)");
            None
        }
    }
}

fn rules(errors: &mut Errors, list: Option<&v1::RuleList>, is_admin: bool, path: &str) -> Option<Vec<Rule>> {
    let list = list?;
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (index, message) in list.items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let rule = rule(errors, message, index, is_admin, &path);
        if rule.as_ref().is_some_and(|rule| !names.insert(rule.name.clone())) {
            errors.add(
                format!("{path}.name"),
                format!("another rule of this list is called \"{}\"", message.name),
            );
        }
        found.extend(rule);
    }
    Some(found)
}

fn rule(errors: &mut Errors, message: &v1::Rule, index: usize, is_admin: bool, path: &str) -> Option<Rule> {
    let rule_name = if message.name.is_empty() { index.to_string() } else { message.name.clone() };
    errors.take(name(&rule_name, &format!("{path}.name")));
    let action = match v1::Action::try_from(message.action) {
        Ok(v1::Action::Allow) => Some(RuleAction::Allow),
        Ok(v1::Action::Deny) => Some(RuleAction::Deny),
        Ok(v1::Action::Pass) if is_admin => Some(RuleAction::Pass),
        Ok(v1::Action::Pass) => {
            errors.add(format!("{path}.action"), "pass is for the admin tier: expected allow or deny");
            None
        }
        Ok(v1::Action::Unspecified) | Err(_) => {
            let also = if is_admin { "allow, deny or pass" } else { "allow or deny" };
            errors.add(format!("{path}.action"), format!("expected {also}"));
            None
        }
    };
    let peers = message.peers.as_ref().map(|list| {
        let peer = |(index, message)| peer(errors, message, &format!("{path}.peers[{index}]"));
        list.items.iter().enumerate().filter_map(peer).collect()
    });
    let ports = message.ports.as_ref().map(|list| {
        let port = |(index, message)| port(errors, message, &format!("{path}.ports[{index}]"));
        list.items.iter().enumerate().filter_map(port).collect()
    });
    Some(Rule { name: rule_name, action: action?, peers, ports })
}
