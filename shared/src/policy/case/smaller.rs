//! Fleets that say less. Greedy and exhaustive: what is left can't be made smaller in one step without losing what is wrong.
//! (The shrinking of random values goes by how they were drawn, and ends long before that with what is drawn in dependence on
//! something else.)

use crate::policy::{
    arbitrary::Fleet,
    model::{
        Action, CidrSetSelector, Failsafe, HostToEndpoint, Mode, Peer, Policy, Requirement, Rule, Selector,
        Subject, Tier,
    },
};

/// The fleet made as small as it can be with `fails` still true of it. It must be true of the fleet that is given.
pub fn smallest(mut fleet: Fleet, mut fails: impl FnMut(&Fleet) -> bool) -> Fleet {
    loop {
        let mut found = false;
        let mut place = 0;
        while let Some(candidate) = smaller(&fleet).into_iter().nth(place) {
            if fails(&candidate) {
                // What stands at this place now is another one.
                (fleet, found) = (candidate, true);
            } else {
                place += 1;
            }
        }
        if !found {
            return fleet;
        }
    }
}

/// Each way to say less by one thing, the largest things first.
fn smaller(fleet: &Fleet) -> Vec<Fleet> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Fleet)| {
        let mut one = fleet.clone();
        change(&mut one);
        all.push(one);
    };
    for place in 0..fleet.policies.len() {
        with(&|fleet| drop(fleet.policies.remove(place)));
    }
    for place in unnamed_sets(fleet) {
        with(&|fleet| drop(fleet.cidr_sets.remove(place)));
    }
    for (place, policy) in fleet.policies.iter().enumerate() {
        for policy in policies(policy) {
            with(&|fleet| fleet.policies[place].clone_from(&policy));
        }
    }
    for (place, set) in fleet.cidr_sets.iter().enumerate() {
        for cidrs in without_one(&set.cidrs) {
            with(&|fleet| fleet.cidr_sets[place].cidrs.clone_from(&cidrs));
        }
    }
    let config = &fleet.config;
    if config.default_action == Action::Deny {
        with(&|fleet| fleet.config.default_action = Action::Allow);
    }
    if config.host_to_endpoint == HostToEndpoint::Policy {
        with(&|fleet| fleet.config.host_to_endpoint = HostToEndpoint::Allow);
    }
    if config.failsafe != Failsafe::defaults() {
        with(&|fleet| fleet.config.failsafe = Failsafe::defaults());
        for entries in without_one(&config.failsafe) {
            with(&|fleet| fleet.config.failsafe.clone_from(&entries));
        }
    }
    all
}

/// Those that no policy means by name: such a policy would be refused.
fn unnamed_sets(fleet: &Fleet) -> Vec<usize> {
    let names = |set: &str| {
        let is_it = |peer: &Peer| matches!(peer, Peer::CidrSet(CidrSetSelector::Name(name)) if name == set);
        fleet.policies.iter().flat_map(Policy::peers).any(is_it)
    };
    (0..fleet.cidr_sets.len()).filter(|place| !names(&fleet.cidr_sets[*place].name)).collect()
}

fn policies(policy: &Policy) -> Vec<Policy> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Policy)| {
        let mut one = policy.clone();
        change(&mut one);
        all.push(one);
    };
    if policy.mode == Mode::Audit {
        with(&|policy| policy.mode = Mode::Enforce);
    }
    // A policy of the other tiers that says nothing would be refused.
    let may_be_silent = matches!(policy.tier, Tier::Application { .. });
    if policy.ingress.is_some() && (may_be_silent || policy.egress.is_some()) {
        with(&|policy| policy.ingress = None);
    }
    if policy.egress.is_some() && (may_be_silent || policy.ingress.is_some()) {
        with(&|policy| policy.egress = None);
    }
    for rules in policy.ingress.iter().flat_map(|rules| rule_lists(rules)) {
        with(&|policy| policy.ingress = Some(rules.clone()));
    }
    for rules in policy.egress.iter().flat_map(|rules| rule_lists(rules)) {
        with(&|policy| policy.egress = Some(rules.clone()));
    }
    if let Tier::Application { default_deny_ingress: ingress, default_deny_egress: egress } = policy.tier {
        for (ingress, egress) in [(false, egress), (ingress, false)] {
            let tier = Tier::Application { default_deny_ingress: ingress, default_deny_egress: egress };
            if tier != policy.tier {
                with(&|policy| policy.tier = tier);
            }
        }
    }
    for selector in selectors(policy.subject.named()) {
        with(&|policy| match &mut policy.subject {
            Subject::Endpoints(named) | Subject::Nodes(named) => named.clone_from(&selector),
        });
    }
    all
}

fn rule_lists(rules: &[Rule]) -> Vec<Vec<Rule>> {
    let mut all = without_one(rules);
    for (place, rule) in rules.iter().enumerate() {
        let mut with = |change: &dyn Fn(&mut Rule)| {
            let mut list = rules.to_vec();
            change(&mut list[place]);
            all.push(list);
        };
        if rule.peers.is_some() {
            with(&|rule| rule.peers = None);
        }
        if rule.ports.is_some() {
            with(&|rule| rule.ports = None);
        }
        for peers in rule.peers.iter().flat_map(|peers| peer_lists(peers)) {
            with(&|rule| rule.peers = Some(peers.clone()));
        }
        for ports in rule.ports.iter().flat_map(|ports| without_one(ports)) {
            with(&|rule| rule.ports = Some(ports.clone()));
        }
    }
    all
}

fn peer_lists(peers: &[Peer]) -> Vec<Vec<Peer>> {
    let mut all = without_one(peers);
    for (place, peer) in peers.iter().enumerate() {
        let less: Vec<Peer> = match peer {
            Peer::Endpoints(selector) => selectors(selector).into_iter().map(Peer::Endpoints).collect(),
            Peer::Nodes(selector) => selectors(selector).into_iter().map(Peer::Nodes).collect(),
            Peer::Cidr { cidr, except } => {
                let less = without_one(except).into_iter();
                less.map(|except| Peer::Cidr { cidr: *cidr, except }).collect()
            }
            Peer::CidrSet(_) | Peer::Entity(_) => Vec::new(),
        };
        for peer in less {
            let mut list = peers.to_vec();
            list[place] = peer;
            all.push(list);
        }
    }
    all
}

fn selectors(selector: &Selector) -> Vec<Selector> {
    let requirements: Vec<Requirement> = selector.requirements().cloned().collect();
    let mut all: Vec<Selector> = without_one(&requirements).into_iter().map(Selector::new).collect();
    for (place, requirement) in requirements.iter().enumerate() {
        let (Requirement::In { values, .. } | Requirement::NotIn { values, .. }) = requirement else {
            continue;
        };
        for value in values.iter().filter(|_| values.len() > 1) {
            let mut fewer = requirements.clone();
            if let Requirement::In { values, .. } | Requirement::NotIn { values, .. } = &mut fewer[place] {
                values.remove(value);
            }
            all.push(Selector::new(fewer));
        }
    }
    all
}

fn without_one<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let without = |place| {
        let mut fewer = items.to_vec();
        fewer.remove(place);
        fewer
    };
    (0..items.len()).map(without).collect()
}
