//! The evaluator of the rules: walks them one by one over labels and addresses. Small and obviously right; what is
//! compiled must agree with it on every flow, and `explain` shows its walk.

use super::model::{Action, Class, Direction, FlowPort, Party, Peer, Policy, Rule, unmanaged_is_closed};

/// A verdict and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    /// In the order walked; the last one decided.
    pub steps: Vec<Step>,
}

/// One thing the evaluator looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Empty: no policy, the fleet's configuration.
    pub policy: String,
    /// Empty: no rule of the policy.
    pub rule: String,
    pub text: String,
    pub decided: bool,
}

/// Judges a flow for one subject in one direction. `policies` are all of the fleet's, in any order.
pub fn judge(
    policies: &[Policy],
    default_action: Action,
    subject: &Party,
    peer: &Party,
    direction: Direction,
    port: FlowPort,
) -> Verdict {
    if direction == Direction::Ingress && peer.class == Class::Host {
        return decided(Action::Allow, "", "", "traffic from a node to its own endpoints is allowed");
    }
    let mut selecting: Vec<&Policy> =
        policies.iter().filter(|policy| policy.subject.matches(&subject.labels)).collect();
    selecting.sort_by(|a, b| a.name.cmp(&b.name));

    let rules = selecting.iter().flat_map(|policy| policy.rules(direction));
    if peer.class == Class::Unmanaged && unmanaged_is_closed(rules) {
        let text = "rules deny endpoints, and nothing is known of this address inside the pools";
        return decided(Action::Deny, "", "", text);
    }
    for action in [Action::Deny, Action::Allow] {
        if let Some((policy, rule)) = first_match(&selecting, direction, action, peer, port) {
            let text = match action {
                Action::Deny => "a matching deny wins",
                Action::Allow => "allowed, and nothing denies",
            };
            return decided(action, &policy.name, &rule.name, text);
        }
    }
    let mut steps: Vec<Step> =
        selecting.iter().map(|policy| step(&policy.name, "", "no rule matches")).collect();
    if let Some(policy) = selecting.iter().find(|policy| policy.default_deny(direction)) {
        steps.retain(|step| step.policy != policy.name);
        steps.push(Step {
            decided: true,
            ..step(&policy.name, "", "no rule matches, and its default is deny")
        });
        return Verdict { action: Action::Deny, steps };
    }
    steps.push(Step { decided: true, ..step("", "", "the fleet's default action") });
    Verdict { action: default_action, steps }
}

fn first_match<'a>(
    selecting: &[&'a Policy],
    direction: Direction,
    action: Action,
    peer: &Party,
    port: FlowPort,
) -> Option<(&'a Policy, &'a Rule)> {
    selecting.iter().find_map(|policy| {
        let rule =
            policy.rules(direction).iter().find(|rule| rule.action == action && rule.matches(peer, port))?;
        Some((*policy, rule))
    })
}

fn decided(action: Action, policy: &str, rule: &str, text: &str) -> Verdict {
    Verdict { action, steps: vec![Step { decided: true, ..step(policy, rule, text) }] }
}

fn step(policy: &str, rule: &str, text: &str) -> Step {
    Step { policy: policy.to_owned(), rule: rule.to_owned(), text: text.to_owned(), decided: false }
}

impl Rule {
    /// Whether the rule is about this peer and port.
    pub fn matches(&self, peer: &Party, port: FlowPort) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.iter().any(|item| item.matches(peer)))
            && self.ports.as_ref().is_none_or(|ports| ports.iter().any(|range| range.contains(port)))
    }
}

impl Peer {
    /// Whether the party is one of those meant.
    pub fn matches(&self, party: &Party) -> bool {
        match self {
            Self::Endpoints(selector) => party.class == Class::Fleet && selector.matches(&party.labels),
            Self::Cidr { cidr, except } => {
                party.class == Class::World
                    && party.address.is_some_and(|address| {
                        cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
                    })
            }
            Self::Entity(entity) => entity.contains(party.class),
        }
    }
}
