//! Looks at a node's tables while they are written and when they rest: nothing that the node was not told of may be
//! allowed where a rule denies it.
use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc};

use weft_noded::{
    balance::tables::{Services, Step as ServiceStep},
    desired::{Desired, attachments::Attachments, disk::Disk},
    plan::{
        tables::{Step, Tables},
        who::{Lengths, Who},
    },
};
use weft_shared::{
    layout::{Address, Class, Direction, endpoint_flags},
    policy::model::{FlowPort, Party},
};

use crate::{
    chance::Chance,
    history::History,
    store::{Ledger, Shared},
    verdict::{self, Question, Rules},
};

/// Of the writes, how many are looked at: it is not cheap.
const WRITES_LOOKED_AT_PERCENT: u64 = 25;
/// Peers that are tried at each look.
const PEERS_AT_REST: usize = 6;

/// Ports that rules name, and one that none does.
pub(crate) const PORTS: [FlowPort; 5] = [
    FlowPort { protocol: 6, port: 22 },
    FlowPort { protocol: 6, port: 80 },
    FlowPort { protocol: 6, port: 8080 },
    FlowPort { protocol: 17, port: 53 },
    FlowPort { protocol: 6, port: 9 },
];

#[derive(Clone)]
pub(crate) struct Inspector {
    pub(crate) node: String,
    pub(crate) directory: PathBuf,
    pub(crate) shared: Arc<Shared>,
    pub(crate) chance: Chance,
    pub(crate) history: History,
}

/// A flow between a subject of this node, an endpoint or the node itself, and somebody.
struct Flow {
    slot: u32,
    subject: Party,
    peer: Party,
    question: Question,
}

impl Inspector {
    pub(crate) fn wants_to_look(&self) -> bool {
        self.chance.percent(WRITES_LOOKED_AT_PERCENT)
    }

    /// What the daemon wants: on disk before it is in the kernel.
    pub(crate) fn desired(&self) -> Option<Desired> {
        let desired = Disk::open(&self.directory).ok()?.load_desired().ok()?;
        desired.complete.then_some(desired)
    }

    /// After a step: what is allowed now was allowed before, or the rules that are being written allow it.
    pub(crate) fn on_the_way(&self, before: &Tables, now: &Tables, desired: &Desired, step: &Step) {
        let ledger = self.shared.ledger();
        let rules = Rules::of_node(desired, &ledger.selectors);
        for _ in 0..2 {
            let Some(flow) = self.some_identity(now, &ledger) else { return };
            let slot_before =
                slot_of(before, now.subjects.get(&flow.slot).map_or(0, |subject| subject.identity));
            let allowed = verdict::allows(now, flow.slot, flow.question);
            let was = slot_before
                .is_some_and(|slot| is_used(before, slot) && verdict::allows(before, slot, flow.question));
            // A table by which nobody is judged opens nothing, and having been open counts for nothing.
            if is_used(now, flow.slot) && allowed && !was && !rules_allow(rules.as_ref(), &flow) {
                self.open(&flow, &format!("after the step {step:?}"));
            }
        }
    }

    /// With nothing underway, the tables allow no more than the rules that this node was told of say about who is
    /// really there. Until the pass that follows, a daemon that has just started leaves tables that nobody is judged by as
    /// they were: they are not looked at.
    pub(crate) fn at_rest(&self, tables: &Tables, desired: &Desired) {
        let ledger = self.shared.ledger();
        let rules = Rules::of_node(desired, &ledger.selectors);
        for _ in 0..PEERS_AT_REST {
            if let Some(flow) = self.some_identity(tables, &ledger)
                && is_used(tables, flow.slot)
                && verdict::allows(tables, flow.slot, flow.question)
                && !rules_allow(rules.as_ref(), &flow)
            {
                self.open(&flow, "at rest");
            }
            if let Some(flow) = self.some_unknown_address(tables, &ledger)
                && is_used(tables, flow.slot)
                && verdict::allows(tables, flow.slot, flow.question)
                && !names_unmanaged(rules.as_ref(), &flow)
                && !rules_allow(rules.as_ref(), &flow)
            {
                self.open(&flow, "at rest, by an address that this node was not told of");
            }
        }
        self.own_endpoints(tables, &ledger);
    }

    /// After a step, too: flows to a frontend would be refused that its service has backends for.
    pub(crate) fn every_frontend_leads_to_a_table(&self, services: &Services, step: &ServiceStep) {
        for (key, frontend) in &services.frontends {
            for slot in [frontend.inside, frontend.outside] {
                if !services.tables.contains_key(&slot) {
                    self.history.violated(format!(
                        "node {}: {key:?} leads to slot {slot}, which has no table, after the step {step:?}",
                        self.node
                    ));
                }
            }
        }
    }

    /// An open endpoint is judged by its own labels' table.
    fn own_endpoints(&self, tables: &Tables, ledger: &Ledger) {
        let Ok(attachments) = Disk::open(&self.directory).and_then(|disk| Attachments::load(&disk)) else {
            return;
        };
        for (ifindex, row) in &tables.endpoints {
            if row.flags & endpoint_flags::OPEN == 0 {
                continue;
            }
            let labels = ledger.identities.get(&row.identity);
            let own = attachments.endpoints.values().find(|own| own.ifindex == *ifindex);
            if own.is_some_and(|own| Some(&own.labels) != labels) {
                self.history.violated(format!(
                    "node {}: interface {ifindex} is open as identity {} ({labels:?}), its workload is {own:?}",
                    self.node, row.identity
                ));
            }
            if tables.subjects.get(&row.subject).map(|subject| subject.identity) != Some(row.identity) {
                self.history.violated(format!(
                    "node {}: interface {ifindex} is open without the table of identity {}",
                    self.node, row.identity
                ));
            }
        }
    }

    /// A packet with the identity of an endpoint, however far it is known here.
    fn some_identity(&self, tables: &Tables, ledger: &Ledger) -> Option<Flow> {
        let (slot, subject) = self.some_subject(tables, ledger)?;
        // Nobody sends as who is gone; an endpoint is in the store before it has its identity, and after it was detached.
        let borne: BTreeSet<u32> = ledger
            .addresses(|_| true)
            .map(|(_, identity)| identity)
            .filter(|identity| *identity != 0)
            .collect();
        let numbers: Vec<u32> = borne.into_iter().collect();
        let identity = *self.chance.pick(&numbers)?;
        let labels = ledger.identities.get(&identity)?;
        if weft_controller::identity::is_of_node(labels) {
            return None;
        }
        let peer = Party { class: Class::Fleet, labels: labels.clone(), address: None, local: false };
        Some(Flow { slot, subject, peer, question: self.question(identity, Class::Fleet)? })
    }

    /// A packet to or from an endpoint's address of which this node was not told. Of its own it knows before all others
    /// when they are gone.
    fn some_unknown_address(&self, tables: &Tables, ledger: &Ledger) -> Option<Flow> {
        let (slot, subject) = self.some_subject(tables, ledger)?;
        let addresses: Vec<(IpAddr, u32)> = ledger.addresses(|node| node != self.node).collect();
        let (address, identity) = *self.chance.pick(&addresses)?;
        if tables.ipcache.contains_key(&Address::from(address)) {
            return None;
        }
        let labels = ledger.identities.get(&identity)?.clone();
        let found = Who::new(tables, &Lengths::of([tables])).is(Address::from(address));
        let class = Class::ALL.into_iter().find(|class| *class as u32 == found.class)?;
        let peer = Party { class: Class::Fleet, labels, address: Some(address), local: false };
        Some(Flow { slot, subject, peer, question: self.question(found.identity, class)? })
    }

    fn some_subject(&self, tables: &Tables, ledger: &Ledger) -> Option<(u32, Party)> {
        let subjects: Vec<(u32, u32)> =
            tables.subjects.iter().map(|(slot, subject)| (*slot, subject.identity)).collect();
        let (slot, identity) = *self.chance.pick(&subjects)?;
        Some((slot, verdict::subject(ledger.identities.get(&identity)?)))
    }

    fn question(&self, identity: u32, class: Class) -> Option<Question> {
        let direction = if self.chance.percent(50) { Direction::Ingress } else { Direction::Egress };
        Some(Question { direction, identity, class, port: *self.chance.pick(&PORTS)? })
    }

    fn open(&self, flow: &Flow, when: &str) {
        self.history.violated(format!(
            "node {} allows what the rules deny {when}: subject {:?}, peer {:?}, {:?}",
            self.node, flow.subject, flow.peer, flow.question
        ));
    }
}

/// Without a configuration they allow nothing.
fn rules_allow(rules: Option<&Rules>, flow: &Flow) -> bool {
    let Question { direction, port, .. } = flow.question;
    rules.is_some_and(|rules| rules.allow(&flow.subject, &flow.peer, direction, port))
}

fn slot_of(tables: &Tables, identity: u32) -> Option<u32> {
    tables.subjects.iter().find(|(_, known)| known.identity == identity).map(|(slot, _)| *slot)
}

/// Whether an endpoint, or the node, is judged by this subject's table.
fn is_used(tables: &Tables, slot: u32) -> bool {
    tables.host.is_some_and(|host| host.subject == slot)
        || tables.endpoints.values().any(|row| row.subject == slot)
}

/// Who names the class of what nothing is known of has taken the chance.
fn names_unmanaged(rules: Option<&Rules>, flow: &Flow) -> bool {
    let policies = rules.into_iter().flat_map(|rules| &rules.policies);
    let selecting = policies.filter(|policy| policy.selects(&flow.subject));
    let mut rules = selecting.flat_map(|policy| policy.rules(flow.question.direction));
    rules.any(|rule| rule.names_class(Class::Unmanaged))
}
