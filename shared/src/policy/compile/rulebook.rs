//! The walk through the tiers, for every port at once.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        model::{
            Action, Direction, FlowPort, NodePolicy, NodeRule, PortRange, RuleAction, Tier, needs_of_the_link,
        },
        ports,
    },
    rule_number,
};
use crate::layout::{PolicyRow, PortKey};

/// What a subject's policy says of a peer. [`PortKey::EVERYTHING`] is always there; of the rows that match, the one with
/// most bits counts.
pub type Rulebook = BTreeMap<PortKey, PolicyRow>;

/// All rules of a subject's policies in one direction, in the order of the walk, and what holds where none matches.
pub(super) struct Rules<'a> {
    placed: Vec<Placed<'a>>,
    /// What the application tier denies by default, by what is enforced and with what is audited.
    default_deny: [Option<u32>; 2],
    default_action: Action,
    /// Whether the subject is judged at all: an endpoint always is.
    judged: [bool; 2],
    /// What its link can't do without: nothing where it is an endpoint.
    needed: Vec<PortRange>,
}

struct Placed<'a> {
    tier: Stage,
    audited: bool,
    rule: &'a NodeRule,
    number: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Admin,
    Application,
    Baseline,
}

fn stage(tier: Tier) -> Stage {
    match tier {
        Tier::Admin { .. } => Stage::Admin,
        Tier::Application { .. } => Stage::Application,
        Tier::Baseline { .. } => Stage::Baseline,
    }
}

impl<'a> Rules<'a> {
    pub(super) fn of(policies: &[&'a NodePolicy], direction: Direction, default_action: Action) -> Self {
        let mut policies = policies.to_vec();
        policies.sort_by_key(|policy| (stage(policy.tier), policy.tier.order(), policy.name.as_str()));
        let placed = policies.iter().flat_map(|policy| {
            policy.rules(direction).iter().map(|rule| Placed {
                tier: stage(policy.tier),
                audited: !policy.is_enforced(),
                rule,
                number: rule_number(&policy.name, direction, &rule.name),
            })
        });
        let default_deny = [false, true].map(|with_audit| {
            let mut taking_part = policies.iter().filter(|policy| with_audit || policy.is_enforced());
            let denying = taking_part.find(|policy| policy.default_deny(direction));
            denying.map(|policy| rule_number(&policy.name, direction, ""))
        });
        let placed = placed.collect();
        Self { placed, default_deny, default_action, judged: [true; 2], needed: Vec::new() }
    }

    /// Of a node, which is judged only where a policy is about the direction.
    pub(super) fn of_node(policies: &[&'a NodePolicy], direction: Direction, default_action: Action) -> Self {
        let judged = [false, true].map(|with_audit| {
            let mut taking_part = policies.iter().filter(|policy| with_audit || policy.is_enforced());
            taking_part.any(|policy| policy.is_about(direction))
        });
        let needed = needs_of_the_link(direction).to_vec();
        Self { judged, needed, ..Self::of(policies, direction, default_action) }
    }

    /// Of a node that must be closed.
    pub(super) fn closed_node(direction: Direction) -> Self {
        Self { judged: [true; 2], ..Self::of_node(&[], direction, Action::Deny) }
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &'a NodeRule> + '_ {
        self.placed.iter().map(|placed| placed.rule)
    }
}

/// A rulebook in the making.
pub(super) struct Book<'a> {
    rules: &'a Rules<'a>,
    /// Those that speak of the peer, in their order.
    spoken: Vec<&'a Placed<'a>>,
    audited: bool,
    /// What passes before all tiers.
    needed: &'a [PortRange],
    /// Whether nothing else does, by what is enforced and with what is audited.
    closed: [bool; 2],
}

impl<'a> Book<'a> {
    /// `spoken`: places of the rules that speak of the peer, ascending. `on_a_link`: the peer may be on a node's link.
    pub(super) fn new(rules: &'a Rules<'a>, spoken: &[u32], on_a_link: bool) -> Self {
        let spoken = spoken.iter().filter_map(|place| rules.placed.get(*place as usize)).collect();
        let audited = rules.placed.iter().any(|placed| placed.audited)
            || rules.default_deny[0] != rules.default_deny[1]
            || rules.judged[0] != rules.judged[1];
        let needed = if on_a_link { rules.needed.as_slice() } else { &[] };
        Self { rules, spoken, audited, needed, closed: [false; 2] }
    }

    /// The same, closed whatever the rules say: by what is enforced, and with what is audited.
    pub(super) fn closed(self, closed: [bool; 2]) -> Self {
        Self { closed, audited: self.audited || closed[0] != closed[1], ..self }
    }

    /// First the row of everything, then, for each protocol that a rule names, each run of ports with the same row.
    pub(super) fn compile(&self) -> Rulebook {
        let everything = self.row(None);
        let mut book = Rulebook::from([(PortKey::EVERYTHING, everything)]);
        for protocol in self.protocols() {
            for (first, last, row) in self.runs(protocol) {
                if row == everything {
                    continue;
                }
                for (port, bits) in ports::prefixes(first, last) {
                    // At most 16.
                    let bits = PortKey::PROTOCOL_BITS + u8::try_from(bits).unwrap_or(16);
                    book.insert(PortKey { bits, protocol, port }, row);
                }
            }
        }
        book
    }

    fn protocols(&self) -> BTreeSet<u8> {
        self.ranges().map(|range| range.protocol).collect()
    }

    /// Those that anything is said of.
    fn ranges(&self) -> impl Iterator<Item = &PortRange> {
        let of_rules = self.spoken.iter().flat_map(|placed| placed.rule.ports.iter().flatten());
        of_rules.chain(self.needed)
    }

    /// The longest runs of ports of a protocol with the same row; together they are all ports.
    fn runs(&self, protocol: u8) -> Vec<(u16, u16, PolicyRow)> {
        let ends = self.ranges().filter(|range| range.protocol == protocol);
        let mut starts = BTreeSet::from([0]);
        for range in ends {
            starts.insert(range.first);
            starts.extend(range.last.checked_add(1));
        }
        let mut found: Vec<(u16, u16, PolicyRow)> = Vec::new();
        let mut starts = starts.into_iter().peekable();
        while let Some(start) = starts.next() {
            let end = starts.peek().map_or(u16::MAX, |next| next - 1);
            let row = self.row(Some(FlowPort { protocol, port: start }));
            match found.last_mut() {
                Some((_, last, same)) if *same == row => *last = end,
                _ => found.push((start, end, row)),
            }
        }
        found
    }

    /// What is said of a port; `None`: of what no rule names a port of.
    fn row(&self, port: Option<FlowPort>) -> PolicyRow {
        let (action, rule) = self.walk(port, false);
        let row = PolicyRow::of(action, rule);
        if !self.audited {
            return row;
        }
        let (action, rule) = self.walk(port, true);
        row.audited_as((action as u32, rule))
    }

    fn walk(&self, port: Option<FlowPort>, with_audit: bool) -> (Action, u32) {
        let is_needed = |port| self.needed.iter().any(|range| range.contains(port));
        if !self.rules.judged[usize::from(with_audit)] || port.is_some_and(is_needed) {
            return (Action::Allow, 0);
        }
        if self.closed[usize::from(with_audit)] {
            return (Action::Deny, 0);
        }
        self.first_verdict(Stage::Admin, port, with_audit)
            .or_else(|| self.application(port, with_audit))
            .or_else(|| self.first_verdict(Stage::Baseline, port, with_audit))
            .unwrap_or((self.rules.default_action, 0))
    }

    /// Of the first rule that matches; `None` where it passes on.
    fn first_verdict(&self, stage: Stage, port: Option<FlowPort>, with_audit: bool) -> Option<(Action, u32)> {
        let first = self.matching(stage, port, with_audit).next()?;
        Some((first.rule.action.verdict()?, first.number))
    }

    fn application(&self, port: Option<FlowPort>, with_audit: bool) -> Option<(Action, u32)> {
        let first = |wanted: RuleAction| {
            let mut matching = self.matching(Stage::Application, port, with_audit);
            let found = matching.find(|placed| placed.rule.action == wanted)?;
            Some((found.rule.action.verdict()?, found.number))
        };
        let default_deny =
            || self.rules.default_deny[usize::from(with_audit)].map(|number| (Action::Deny, number));
        first(RuleAction::Deny).or_else(|| first(RuleAction::Allow)).or_else(default_deny)
    }

    fn matching(
        &self,
        stage: Stage,
        port: Option<FlowPort>,
        with_audit: bool,
    ) -> impl Iterator<Item = &&'a Placed<'a>> {
        self.spoken.iter().filter(move |placed| {
            placed.tier == stage
                && (with_audit || !placed.audited)
                && placed.rule.ports.as_ref().is_none_or(|ranges| {
                    port.is_some_and(|port| ranges.iter().any(|range| range.contains(port)))
                })
        })
    }
}
