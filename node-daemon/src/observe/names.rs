//! Names for the numbers that the kernel programs report.

use std::{collections::BTreeMap, net::IpAddr};

use weft_shared::{
    layout::Direction,
    policy::{compile::rule_number, model::NodePolicy, selector::Labels},
};

use crate::desired::{Desired, attachments::Attachments};

/// An endpoint of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    pub name: String,
    pub labels: Labels,
}

/// A snapshot, taken after each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Rule number → policy and rule.
    rules: BTreeMap<u32, (String, String)>,
    /// Interface index → endpoint.
    endpoints: BTreeMap<u32, String>,
    /// Both families.
    parties: BTreeMap<IpAddr, Party>,
}

impl Names {
    pub fn of(desired: &Desired, attachments: &Attachments) -> Self {
        let mut rules = BTreeMap::new();
        for policy in desired.policies().values() {
            for direction in [Direction::Ingress, Direction::Egress] {
                add_rules(&mut rules, policy, direction);
            }
        }
        let endpoints = attachments.endpoints.values().map(|own| (own.ifindex, own.name.clone())).collect();
        let mut parties = BTreeMap::new();
        for own in attachments.endpoints.values() {
            let party = Party { name: own.name.clone(), labels: own.labels.clone() };
            parties.extend(own.addresses().map(|address| (address, party.clone())));
        }
        Self { rules, endpoints, parties }
    }

    /// Policy and rule; empty where there is none. The rule of a default deny is empty.
    pub fn rule(&self, number: u32) -> (&str, &str) {
        self.rules.get(&number).map_or(("", ""), |(policy, rule)| (policy, rule))
    }

    /// The endpoint of this node that has the address.
    pub fn party(&self, address: IpAddr) -> Option<&Party> {
        self.parties.get(&address)
    }

    pub fn endpoint(&self, ifindex: u32) -> &str {
        self.endpoints.get(&ifindex).map_or("", String::as_str)
    }
}

fn add_rules(rules: &mut BTreeMap<u32, (String, String)>, policy: &NodePolicy, direction: Direction) {
    let named = policy.rules(direction).iter().map(|rule| rule.name.as_str()).chain([""]);
    for rule in named {
        let name = (policy.name.clone(), rule.to_owned());
        rules.entry(rule_number(&policy.name, direction, rule)).or_insert(name);
    }
}
