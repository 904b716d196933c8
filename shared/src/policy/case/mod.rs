//! What a property test shows when compiled and meant are not the same: the smallest fleet in which it is so, as manifests
//! that `weft apply` takes, and the flow with the verdict that was expected and the one that was seen.

#[expect(clippy::format_push_string, reason = "a case is printed once, and reads better than it costs")]
mod manifest;
mod smaller;
#[cfg(test)]
mod tests;

use std::{cell::RefCell, fmt};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};

pub use self::{manifest::manifests, smaller::smallest};
use super::{
    arbitrary::Fleet,
    compile::rule_number,
    model::{Action, Direction, FlowPort, Labels, Party, Policy},
};

/// A flow and who judges it.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Labels of the node that judges.
    pub node: Labels,
    pub source: Party,
    pub destination: Party,
    pub port: FlowPort,
}

impl Flow {
    /// As one end judges it.
    pub fn of(node: Labels, (subject, peer): (&Party, &Party), direction: Direction, port: FlowPort) -> Self {
        let (source, destination) = match direction {
            Direction::Ingress => (peer.clone(), subject.clone()),
            Direction::Egress => (subject.clone(), peer.clone()),
        };
        Self { node, source, destination, port }
    }
}

/// What is said of a flow, and should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// By the rules.
    pub expected: String,
    /// By what is tested.
    pub seen: String,
}

/// A fleet in which a flow is not judged as it should be. Printed, it is YAML.
#[derive(Debug)]
pub struct Case<'a> {
    pub fleet: &'a Fleet,
    pub flow: &'a Flow,
    pub wrong: Wrong,
}

/// Judges a flow in a fleet; where that goes wrong, it is an error with the smallest [`Case`] of it, as text.
pub fn check(
    fleet: &Fleet,
    flow: &Flow,
    mut judge: impl FnMut(&Fleet) -> Result<(), Wrong>,
) -> Result<(), String> {
    judge(fleet).or_else(|wrong| fail(fleet, flow, wrong, judge))
}

/// The same where it has gone wrong already. Where it does not again, the whole fleet is printed.
pub fn fail(
    fleet: &Fleet,
    flow: &Flow,
    wrong: Wrong,
    mut judge: impl FnMut(&Fleet) -> Result<(), Wrong>,
) -> Result<(), String> {
    let least = smallest(fleet.clone(), |fleet| judge(fleet).is_err());
    match judge(&least) {
        Err(wrong) => Err(Case { fleet: &least, flow, wrong }.to_string()),
        Ok(()) => Err(format!("# Seen once, and not again.\n{}", Case { fleet, flow, wrong })),
    }
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow { node, source, destination, port } = self.flow;
        formatter.write_str(&manifests(self.fleet))?;
        writeln!(formatter, "---\nnode: {{labels: {}}}", manifest::labels(node))?;
        let (source, destination) = (manifest::party(source), manifest::party(destination));
        writeln!(formatter, "flow:\n  from: {source}\n  to: {destination}")?;
        writeln!(formatter, "  port: {}", manifest::flow_port(*port))?;
        let Wrong { expected, seen } = &self.wrong;
        write!(formatter, "  expected: {expected:?}\n  seen: {seen:?}\n")
    }
}

/// A verdict with the rule of the fleet that has the number: `deny, ingress of policy-1, rule 0`.
pub fn verdict(fleet: &Fleet, action: Action, rule: u32) -> String {
    let action = match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    format!("{action}, {}", rule_name(fleet, rule))
}

fn rule_name(fleet: &Fleet, number: u32) -> String {
    if number == 0 {
        return "by no rule".to_owned();
    }
    let of_policy = |policy: &Policy| {
        Direction::ALL.into_iter().find_map(|direction| {
            let name = &policy.name;
            let of = || format!("{} of {name}", manifest::direction(direction));
            if rule_number(name, direction, "") == number {
                return Some(format!("{}, by default", of()));
            }
            let rules = policy.rules(direction).iter();
            let rule = rules.map(|rule| &rule.name).find(|rule| rule_number(name, direction, rule) == number);
            rule.map(|rule| format!("{}, rule {rule}", of()))
        })
    };
    let found = fleet.policies.iter().find_map(of_policy);
    found.unwrap_or_else(|| format!("by rule number {number}, which no policy has"))
}

/// Asks of many random values whether a property holds; panics with what the property says of the first one of which it
/// doesn't. It has shrunk its case by then ([`check`]): what is wrong with one flow of many needs none of the others.
pub fn hold<S: Strategy>(cases: u32, values: &S, property: impl Fn(S::Value) -> Result<(), String>) {
    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::with_cases(cases) };
    let said = RefCell::new(None);
    let ask = |value| {
        property(value).map_err(|text| {
            said.replace(Some(text));
            TestCaseError::fail("it does not hold")
        })
    };
    match TestRunner::new(config).run(values, ask) {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => match said.take() {
            Some(text) => panic!("\n{text}"),
            None => panic!("{reason}"),
        },
        Err(error @ TestError::Abort(_)) => panic!("{error}"),
    }
}
