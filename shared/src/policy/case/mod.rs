//! What a property test shows when compiled and meant are not the same: the smallest fleet in which it is so, as manifests
//! that `weft apply` takes, and the flow with the verdict that was expected and the one that was seen.

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

/// A flow that is not judged as it should be. Printed, it is YAML.
#[derive(Debug)]
pub struct Case<'a> {
    pub fleet: &'a Fleet,
    /// Labels of the node that judges.
    pub node: &'a Labels,
    pub source: &'a Party,
    pub destination: &'a Party,
    pub port: FlowPort,
    /// By the rules.
    pub expected: String,
    /// By what is tested.
    pub seen: String,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&manifests(self.fleet))?;
        let source = manifest::party(self.source);
        let destination = manifest::party(self.destination);
        writeln!(formatter, "---\nnode: {{labels: {}}}", manifest::labels(self.node))?;
        writeln!(formatter, "flow:\n  from: {source}\n  to: {destination}")?;
        writeln!(formatter, "  port: {}", manifest::flow_port(self.port))?;
        write!(formatter, "  expected: {:?}\n  seen: {:?}\n", self.expected, self.seen)
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
/// doesn't. It has shrunk its case by then ([`smallest`]): what is wrong with one flow of many needs none of the others.
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
