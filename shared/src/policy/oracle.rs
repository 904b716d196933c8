//! The evaluator of the rules: walks them one by one over labels and addresses. Small and obviously right; what is
//! compiled must agree with it on every flow, and `explain` shows its walk.

use std::{fmt, net::IpAddr};

use super::model::{
    Action, CidrSet, CidrSetSelector, Class, Direction, FleetConfig, FlowPort, HostToEndpoint, Party, Peer,
    Policy, Rule, Subject, Tier, is_listener_discovery, needed_by_the_link, unmanaged_is_closed,
};

/// Everything of the fleet that verdicts depend on, in any order.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub policies: &'a [Policy],
    pub cidr_sets: &'a [CidrSet],
    pub config: &'a FleetConfig,
}

/// A verdict and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    /// In the order walked; the last one decided.
    pub steps: Vec<Step>,
    /// What the verdict would be if all audit policies were enforced; `None`: the same.
    pub audit: Option<Audited>,
}

/// Another verdict than the one that is enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    pub action: Action,
    /// The one that would decide.
    pub step: Step,
}

/// One thing the evaluator looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `None`: no policy, what holds whatever they say, or the fleet's configuration.
    pub tier: Option<TierName>,
    /// Empty: no policy.
    pub policy: String,
    /// Empty: no rule of the policy.
    pub rule: String,
    pub text: String,
    pub decided: bool,
}

/// A tier by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TierName {
    Admin,
    Application,
    Baseline,
}

impl Tier {
    /// Which one it is.
    pub const fn name(self) -> TierName {
        match self {
            Self::Admin { .. } => TierName::Admin,
            Self::Application { .. } => TierName::Application,
            Self::Baseline { .. } => TierName::Baseline,
        }
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Admin => "admin",
            Self::Application => "application",
            Self::Baseline => "baseline",
        })
    }
}

impl Verdict {
    /// The step that decided.
    pub fn decision(&self) -> Option<&Step> {
        self.steps.last()
    }
}

/// Judges a flow for one subject in one direction. The subject is an endpoint ([`Class::Fleet`]) or the node itself
/// ([`Class::Host`]; seen from elsewhere, [`Class::RemoteNode`]); others are not judged. An endpoint that reaches itself is not
/// asked about here: that is always allowed.
pub fn judge(
    context: Context<'_>,
    subject: &Party,
    peer: &Party,
    direction: Direction,
    port: FlowPort,
) -> Verdict {
    let walk = |with_audit| Walk { context, subject, peer, direction, port, with_audit, steps: Vec::new() };
    let (action, steps) = walk(false).run();
    let audited = |policy: &Policy| !policy.is_enforced() && policy.selects(subject);
    let audit = if context.policies.iter().any(audited) {
        let (would_be, mut steps) = walk(true).run();
        steps.pop().filter(|_| would_be != action).map(|step| Audited { action: would_be, step })
    } else {
        None
    };
    Verdict { action, steps, audit }
}

/// One walk through the tiers.
struct Walk<'a> {
    context: Context<'a>,
    subject: &'a Party,
    peer: &'a Party,
    direction: Direction,
    port: FlowPort,
    /// As if audit policies were enforced.
    with_audit: bool,
    steps: Vec<Step>,
}

impl<'a> Walk<'a> {
    fn run(mut self) -> (Action, Vec<Step>) {
        let stages = [
            Self::whatever_the_policies_say,
            Self::never_open_by_ignorance,
            Self::admin,
            Self::application,
            Self::baseline,
        ];
        for stage in stages {
            if let Some(action) = stage(&mut self) {
                return (action, self.steps);
            }
        }
        let action = self.context.config.default_action;
        self.decide(action, None, "", "", "the fleet's default action");
        (action, self.steps)
    }

    fn whatever_the_policies_say(&mut self) -> Option<Action> {
        let text = match self.subject.class {
            Class::Fleet => self.why_endpoint_is_open(),
            Class::Host | Class::RemoteNode => self.why_node_is_open(),
            Class::Unmanaged | Class::World => Some("neither an endpoint nor a node: not judged"),
        }?;
        Some(self.decide(Action::Allow, None, "", "", text))
    }

    fn why_endpoint_is_open(&self) -> Option<&'static str> {
        let from_own_node = self.direction == Direction::Ingress && self.peer.class == Class::Host;
        (from_own_node && self.context.config.host_to_endpoint == HostToEndpoint::Allow)
            .then_some("traffic from a node to its own endpoints is allowed")
    }

    fn why_node_is_open(&self) -> Option<&'static str> {
        let config = self.context.config;
        let to_own_endpoint =
            self.direction == Direction::Egress && self.peer.class == Class::Fleet && self.peer.local;
        let on_a_link = matches!(self.peer.class, Class::RemoteNode | Class::World);
        let failsafe =
            || config.failsafe.iter().any(|entry| entry.holds(self.direction, self.peer.address, self.port));
        if self.peer.class == Class::Host {
            Some("a node always reaches itself")
        } else if to_own_endpoint && config.host_to_endpoint == HostToEndpoint::Allow {
            Some("traffic from a node to its own endpoints is allowed")
        } else if !self.policies().any(|policy| policy.is_about(self.direction)) {
            Some("no host policy selects the node in this direction: it is not judged")
        } else if failsafe() {
            Some("a failsafe entry, which no host policy can close")
        } else if is_listener_discovery(self.direction, self.peer.address, self.port) {
            Some("multicast listener discovery of a node's links always passes")
        } else if on_a_link && needed_by_the_link(self.direction, self.port) {
            Some("neighbour discovery, router messages and DHCP of a node always pass")
        } else {
            None
        }
    }

    fn never_open_by_ignorance(&mut self) -> Option<Action> {
        let policies: Vec<&Policy> = self.policies().collect();
        let rules = policies.iter().flat_map(|policy| policy.rules(self.direction));
        (self.peer.class == Class::Unmanaged && unmanaged_is_closed(rules)).then(|| {
            let text = "rules deny endpoints, and nothing is known of this address inside the pools";
            self.decide(Action::Deny, None, "", "", text)
        })
    }

    fn admin(&mut self) -> Option<Action> {
        self.first_match(TierName::Admin)
    }

    fn baseline(&mut self) -> Option<Action> {
        self.first_match(TierName::Baseline)
    }

    /// The first rule that matches, by order, then name, then as written.
    fn first_match(&mut self, tier: TierName) -> Option<Action> {
        for policy in self.of_tier(tier) {
            let Some(rule) = self.matching(policy).next() else {
                self.note(Some(tier), &policy.name, "", "no rule matches");
                continue;
            };
            if let Some(action) = rule.action.verdict() {
                return Some(self.decide(action, Some(tier), &policy.name, &rule.name, "the first match"));
            }
            self.note(Some(tier), &policy.name, &rule.name, "passed on to the application tier");
            return None;
        }
        None
    }

    /// Deny before allow before default deny, whatever the order.
    fn application(&mut self) -> Option<Action> {
        let tier = TierName::Application;
        let policies = self.of_tier(tier);
        for (action, text) in
            [(Action::Deny, "a matching deny wins"), (Action::Allow, "allowed, and nothing denies")]
        {
            let first = policies.iter().find_map(|policy| {
                let mut matching = self.matching(policy);
                Some((*policy, matching.find(|rule| rule.action.verdict() == Some(action))?))
            });
            if let Some((policy, rule)) = first {
                return Some(self.decide(action, Some(tier), &policy.name, &rule.name, text));
            }
        }
        let denying = policies.iter().find(|policy| policy.default_deny(self.direction));
        for policy in &policies {
            if denying.is_none_or(|denying| denying.name != policy.name) {
                self.note(Some(tier), &policy.name, "", "no rule matches");
            }
        }
        let text = "no rule matches, and its default is deny";
        denying.map(|policy| self.decide(Action::Deny, Some(tier), &policy.name, "", text))
    }

    /// Policies that select the subject and take part.
    fn policies(&self) -> impl Iterator<Item = &'a Policy> + use<'a> {
        let (subject, with_audit) = (self.subject, self.with_audit);
        let takes_part = move |policy: &&Policy| policy.is_enforced() || with_audit;
        self.context
            .policies
            .iter()
            .filter(takes_part)
            .filter(move |policy: &&Policy| policy.selects(subject))
    }

    fn of_tier(&self, tier: TierName) -> Vec<&'a Policy> {
        let mut policies: Vec<&Policy> =
            self.policies().filter(|policy| policy.tier.name() == tier).collect();
        policies.sort_by(|a, b| (a.tier.order(), &a.name).cmp(&(b.tier.order(), &b.name)));
        policies
    }

    /// Rules that match the flow, in the order written.
    fn matching(&self, policy: &'a Policy) -> impl Iterator<Item = &'a Rule> + use<'a> {
        let (sets, peer, port) = (self.context.cidr_sets, self.peer, self.port);
        policy.rules(self.direction).iter().filter(move |rule: &&Rule| rule.matches(sets, peer, port))
    }

    fn note(&mut self, tier: Option<TierName>, policy: &str, rule: &str, text: &str) {
        let step = Step {
            tier,
            policy: policy.to_owned(),
            rule: rule.to_owned(),
            text: text.to_owned(),
            decided: false,
        };
        self.steps.push(step);
    }

    fn decide(
        &mut self,
        action: Action,
        tier: Option<TierName>,
        policy: &str,
        rule: &str,
        text: &str,
    ) -> Action {
        self.note(tier, policy, rule, text);
        if let Some(step) = self.steps.last_mut() {
            step.decided = true;
        }
        action
    }
}

impl Policy {
    /// Whether it judges this party.
    pub fn selects(&self, subject: &Party) -> bool {
        match &self.subject {
            Subject::Endpoints(selector) => {
                subject.class == Class::Fleet && selector.matches(&subject.labels)
            }
            Subject::Nodes(selector) => is_node(subject.class) && selector.matches(&subject.labels),
        }
    }
}

impl Rule {
    /// Whether the rule is about this peer and port.
    pub fn matches(&self, sets: &[CidrSet], peer: &Party, port: FlowPort) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.iter().any(|item| item.matches(sets, peer)))
            && self.ports.as_ref().is_none_or(|ports| ports.iter().any(|range| range.contains(port)))
    }
}

impl Peer {
    /// Whether the party is one of those meant.
    pub fn matches(&self, sets: &[CidrSet], party: &Party) -> bool {
        let in_world = |contains: &dyn Fn(IpAddr) -> bool| {
            party.class == Class::World && party.address.is_some_and(contains)
        };
        match self {
            Self::Endpoints(selector) => party.class == Class::Fleet && selector.matches(&party.labels),
            Self::Nodes(selector) => is_node(party.class) && selector.matches(&party.labels),
            Self::Cidr { cidr, except } => in_world(&|address| {
                cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
            }),
            Self::CidrSet(meant) => in_world(&|address| in_sets(sets, meant, address)),
            Self::Entity(entity) => entity.contains(party.class),
        }
    }
}

fn in_sets(sets: &[CidrSet], meant: &CidrSetSelector, address: IpAddr) -> bool {
    sets.iter().any(|set| meant.selects(set) && set.contains(address))
}

fn is_node(class: Class) -> bool {
    matches!(class, Class::Host | Class::RemoteNode)
}

#[cfg(test)]
mod tests;
