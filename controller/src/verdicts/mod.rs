//! What a change of policies does to verdicts: the pairs of each changed subject with everybody there is, by class of ports,
//! judged by the oracle before and after. Pure: no store, no clock.
mod parties;
mod ports;
mod subjects;

#[cfg(test)]
mod tests;

use weft_shared::policy::{
    model::{Action, CidrSet, Direction, FleetConfig, Labels, Party, Policy},
    oracle::{self, Context, Step},
};

use parties::Named;
use ports::PortClass;

/// Everything that verdicts depend on.
#[derive(Debug, Clone)]
pub struct State {
    pub policies: Vec<Policy>,
    pub cidr_sets: Vec<CidrSet>,
    pub config: FleetConfig,
}

/// Label sets that endpoints and nodes have, each once.
#[derive(Debug, Clone, Default)]
pub struct Bearers {
    pub endpoints: Vec<Labels>,
    pub nodes: Vec<Labels>,
}

/// How much is looked at, and told.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Pairs by class of ports that are judged, before and after.
    pub compared: usize,
    /// Pairs that are listed; all that differ are counted.
    pub listed: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    pub newly_allowed: usize,
    pub newly_denied: usize,
    pub pairs: Vec<Pair>,
    /// Label sets for which policies, what these mean, or the configuration changes.
    pub subjects: usize,
    pub compared: usize,
    /// Changed subjects that were not compared to the end.
    pub subjects_cut: usize,
}

/// A subject and a peer whose verdict differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// For people, as all names here.
    pub subject: String,
    pub direction: Direction,
    pub peer: String,
    pub ports: String,
    pub before: Judged,
    pub after: Judged,
}

/// A verdict, and what decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub action: Action,
    pub step: Option<Step>,
}

/// Compares two states for all that changes between them.
pub fn diff(before: &State, after: &State, bearers: &Bearers, bounds: Bounds) -> Diff {
    let mut diff = Diff::default();
    let change = subjects::Changed::between(before, after);
    for subject in parties::subjects(bearers).into_iter().filter(|subject| change.may_concern(&subject.party))
    {
        let (old, new) =
            (subjects::seen_by(before, &subject.party), subjects::seen_by(after, &subject.party));
        if old == new {
            continue;
        }
        diff.subjects += 1;
        let mut whole = true;
        for direction in [Direction::Egress, Direction::Ingress] {
            let compared = Comparison { before: &old, after: &new, subject: &subject, direction };
            whole &= compared.run(bearers, bounds, &mut diff);
        }
        if !whole {
            diff.subjects_cut += 1;
        }
    }
    diff
}

/// One subject in one direction. The states are as the subject sees them.
struct Comparison<'a> {
    before: &'a State,
    after: &'a State,
    subject: &'a Named,
    direction: Direction,
}

impl Comparison<'_> {
    /// `false`: the bound was reached first.
    fn run(&self, bearers: &Bearers, bounds: Bounds, diff: &mut Diff) -> bool {
        let states = [self.before, self.after];
        let classes = ports::classes(states, &self.subject.party, self.direction);
        for peer in parties::peers(states, bearers, &self.subject.party, self.direction) {
            let mut differing: Vec<(PortClass, Judged, Judged)> = Vec::new();
            for class in classes.iter().filter(|class| class.can_be(peer.party.address)) {
                if diff.compared >= bounds.compared {
                    self.note(differing, &peer, bounds, diff);
                    return false;
                }
                diff.compared += 1;
                let (old, new) =
                    (self.judge(self.before, &peer, class), self.judge(self.after, &peer, class));
                if old.action == new.action {
                    continue;
                }
                // By the same rules as the class before it: for people it is one.
                let joined = differing
                    .last_mut()
                    .is_some_and(|(last, was, is)| *was == old && *is == new && last.join(class));
                if !joined {
                    differing.push((class.clone(), old, new));
                }
            }
            self.note(differing, &peer, bounds, diff);
        }
        true
    }

    fn judge(&self, state: &State, peer: &Named, class: &PortClass) -> Judged {
        let State { policies, cidr_sets, config } = state;
        let context = Context { policies, cidr_sets, config };
        let subject: &Party = &self.subject.party;
        let verdict = oracle::judge(context, subject, &peer.party, self.direction, class.example());
        Judged { action: verdict.action, step: verdict.steps.last().cloned() }
    }

    fn note(
        &self,
        differing: Vec<(PortClass, Judged, Judged)>,
        peer: &Named,
        bounds: Bounds,
        diff: &mut Diff,
    ) {
        for (class, before, after) in differing {
            match after.action {
                Action::Allow => diff.newly_allowed += 1,
                Action::Deny => diff.newly_denied += 1,
            }
            if diff.pairs.len() < bounds.listed {
                let (subject, peer) = (self.subject.name.clone(), peer.name.clone());
                let pair = Pair {
                    subject,
                    direction: self.direction,
                    peer,
                    ports: class.to_string(),
                    before,
                    after,
                };
                diff.pairs.push(pair);
            }
        }
    }
}
