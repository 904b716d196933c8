//! A change that touches few rows, planned without looking at the others.
//!
//! Identities that join and leave sets and addresses that come and go are nearly all that ever happens on a node; then
//! there are policies of some of its endpoints. Which rows they may change is known from their names. So the planner ([`diff`](super::diff)) is given two excerpts, of the
//! tables as they are and as they shall be, with those rows alone and what it looks up beside them: the steps are the very
//! ones that it gives for the whole tables. Everything else, and whatever is in doubt, is left to the whole.

mod excerpt;
mod groups;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use weft_shared::{
    layout::{Address, Class, FIRST_LOCAL_IDENTITY, Peer, PeerKey},
    policy::compile::{Kind, Rulebook},
};

use self::{
    excerpt::Excerpt,
    groups::{Groups, Place, Scope},
    words::Word,
};
use super::{
    compile::{self, Constant, Input, Selecting},
    diff::{self, Sweep},
    tables::{Step, Tables},
    who::Lengths,
};
use crate::desired::{Desired, Touched, attachments::Attachment};

/// What the tables were compiled with, as far as members and addresses don't change it, while the kernel holds exactly
/// what is desired and everything has its place.
#[derive(Clone, Debug)]
pub struct Standing {
    attachments: BTreeMap<String, Attachment>,
    /// See [`Attachments`](crate::desired::attachments::Attachments): words may be of former bearers of a name.
    gone: BTreeSet<String>,
    own_addresses: Vec<IpAddr>,
    host_addresses: Vec<IpAddr>,
    constant: Constant,
    lengths: Lengths,
    groups: Groups,
    /// Of all policies, by their names.
    scopes: BTreeMap<String, Scope>,
    /// By identity.
    subjects: BTreeMap<u32, Subject>,
    numbers: HashMap<Arc<Rulebook>, u32>,
    /// By number.
    uses: HashMap<u32, Use>,
    /// Of all rulebooks.
    rows: usize,
}

#[derive(Clone, Debug)]
struct Subject {
    slot: u32,
    /// At most so many rows are its policy's; see [`Unfit`](weft_shared::policy::compile::Unfit).
    rows: usize,
}

/// Of a rulebook.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// How many peers, classes and failsafe prefixes have it.
    uses: usize,
    /// Its own.
    rows: usize,
}

/// A row of an address that is, and that shall be.
#[derive(Clone, Copy, Debug)]
struct AddressChange {
    address: Address,
    was: Option<Peer>,
    shall: Option<Peer>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Subjects with other policies, or policies that are others, and how many rows those take.
    regrouped: Vec<(Place, Vec<String>, usize)>,
}

impl Standing {
    /// After `actual` was brought to exactly what the input asks for, without a problem. `None`: there is no whole word of
    /// a controller.
    pub fn of(input: Input<'_>, actual: &Tables) -> Option<Self> {
        let constant = Constant::of(input, actual)?;
        let policies = input.desired.policies();
        let scopes = policies.iter().map(|(name, policy)| (name.clone(), Scope::of(policy)));
        let mut standing = Self {
            attachments: input.attachments.endpoints.clone(),
            gone: input.attachments.gone.clone(),
            own_addresses: input.own_addresses.to_vec(),
            host_addresses: input.host_addresses.to_vec(),
            constant,
            lengths: Lengths::of([actual]),
            groups: Groups::default(),
            scopes: scopes.collect(),
            subjects: BTreeMap::new(),
            numbers: actual
                .rulebooks
                .iter()
                .rev()
                .map(|(number, book)| (Arc::clone(book), *number))
                .collect(),
            uses: HashMap::new(),
            rows: actual.rulebooks.values().map(|book| book.len()).sum(),
        };
        standing.add_subjects(input, actual);
        standing.count(actual);
        Some(standing)
    }

    fn add_subjects(&mut self, input: Input<'_>, actual: &Tables) {
        let identities = actual.subjects.values().map(|subject| subject.identity);
        let (hosts, desired) = (&self.constant.hosts, input.desired);
        let mut all = compile::policies_of_all(identities, hosts, desired, desired.sets());
        for (slot, subject) in &actual.subjects {
            let identity = subject.identity;
            self.subjects.insert(identity, Subject { slot: *slot, rows: 0 });
            let Selecting { kind, policies } = all.remove(&identity).unwrap_or_default();
            self.groups.put((*slot, identity), kind, &policies);
        }
    }

    fn count(&mut self, actual: &Tables) {
        self.uses.extend(
            actual.rulebooks.iter().map(|(number, book)| (*number, Use { uses: 0, rows: book.len() })),
        );
        let mut books: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        let of_classes = actual
            .subjects
            .values()
            .flat_map(|subject| subject.rulebooks.into_iter().map(|number| (subject.identity, number, 0)));
        for number in actual.failsafe.values() {
            if let Some(used) = self.uses.get_mut(number) {
                used.uses += 1;
            }
        }
        let of_peers = actual.peer_rules.iter().map(|(key, number)| (key.subject, *number, 1));
        for (identity, number, rows) in of_classes.chain(of_peers) {
            let Some(used) = self.uses.get_mut(&number) else { continue };
            used.uses += 1;
            if let Some(subject) = self.subjects.get_mut(&identity) {
                let new = books.entry(identity).or_default().insert(number);
                subject.rows += rows + if new { used.rows } else { 0 };
            }
        }
    }

    /// The steps to what is desired, after nothing but `touched` has changed in the desired state. `None`: the whole must be
    /// looked at. After they were written, [`Standing::note`] must be told before anything else is asked.
    pub fn plan(&self, input: Input<'_>, actual: &Tables, touched: &Touched) -> Option<Plan> {
        input.desired.fleet().filter(|_| input.desired.complete)?;
        let same = input.attachments.endpoints == self.attachments
            && input.attachments.gone == self.gone
            && input.own_addresses == self.own_addresses
            && input.host_addresses == self.host_addresses;
        if !same || input.desired.identities_through < actual.identities_through || self.groups.are_sparse() {
            return None;
        }
        let addresses = self.addresses(input, actual, touched)?;
        if !self.are_plain_members(input, touched, &addresses) {
            return None;
        }
        let regrouped = self.regrouped(input, touched)?;
        let words = self.words(input, touched, &regrouped)?;
        let excerpt = Excerpt::of(self, input, actual, &addresses, &words)?;
        let regrouped = regrouped.into_iter().filter_map(|(place, policies)| {
            let names = policies.into_iter().map(|policy| policy.name.clone()).collect();
            let Word::Whole(table) = words.get(&place)? else { return None };
            Some((place, names, table.rows()))
        });
        Some(Plan {
            regrouped: regrouped.collect(),
            steps: diff::diff(&excerpt.before, &excerpt.after, Sweep::Remove),
        })
    }

    /// What becomes of addresses of other nodes' endpoints. `None`: one of them is somebody else's.
    fn addresses(&self, input: Input<'_>, actual: &Tables, touched: &Touched) -> Option<Vec<AddressChange>> {
        let mut changes = Vec::new();
        for said in &touched.addresses {
            let address = Address::from(*said);
            let local = |own: &Attachment| own.addresses().any(|own| Address::from(own) == address);
            let on_this_node = self.own_addresses.iter().chain(&self.host_addresses);
            let special = actual.node_addresses.contains_key(&address)
                || on_this_node.into_iter().any(|own| Address::from(*own) == address)
                || self.attachments.values().any(local)
                || is_said_twice(*said, input.desired);
            let was = actual.ipcache.get(&address).copied();
            let of_fleet = |peer: Peer| peer.class == Class::Fleet as u32 && peer.ifindex == 0;
            if special || !was.is_none_or(of_fleet) {
                return None;
            }
            let slot = |node: &str| self.constant.node_slots.get(node).copied();
            let shall =
                input.desired.addresses().get(said).and_then(|said| compile::fleet_peer(input, said, slot));
            if was != shall {
                changes.push(AddressChange { address, was, shall });
            }
        }
        Some(changes)
    }

    /// Whether all are peers alone, and none leaves while an address that carries it changes: see `keep_members`.
    fn are_plain_members(&self, input: Input<'_>, touched: &Touched, addresses: &[AddressChange]) -> bool {
        let own_node = input.desired.nodes().get(input.node).map(|route| route.identity);
        touched.members.iter().all(|(set, identity)| {
            let stays = input.desired.sets().get(set).is_some_and(|members| members.contains(identity));
            let carried =
                || addresses.iter().any(|change| change.was.is_some_and(|was| was.identity == *identity));
            *identity < FIRST_LOCAL_IDENTITY
                && own_node != Some(*identity)
                && !self.subjects.contains_key(identity)
                && (stays || !carried())
        })
    }

    /// What was planned of what was touched is about to be taken into `actual`.
    pub fn note(&mut self, desired: &Desired, actual: &Tables, touched: &Touched, plan: &Plan) {
        for step in &plan.steps {
            match step {
                Step::Rulebook { number, rows: Some(book) } => {
                    self.rows += book.len();
                    self.numbers.insert(Arc::clone(book), *number);
                    self.uses.insert(*number, Use { uses: 0, rows: book.len() });
                }
                Step::Rulebook { number, rows: None } => {
                    self.uses.remove(number);
                    let Some(book) = actual.rulebooks.get(number) else { continue };
                    self.rows = self.rows.saturating_sub(book.len());
                    self.numbers.remove(book);
                }
                Step::PeerRules { key, rulebook } => self.note_peer(actual, *key, *rulebook),
                Step::Subject { slot, subject: Some(row) } => {
                    let former = actual.subjects.get(slot).into_iter().flat_map(|former| former.rulebooks);
                    former.for_each(|number| self.note_use(number, -1));
                    row.rulebooks.into_iter().for_each(|number| self.note_use(number, 1));
                }
                _ => {}
            }
        }
        for name in &touched.policies {
            match desired.policies().get(name) {
                Some(policy) => drop(self.scopes.insert(name.clone(), Scope::of(policy))),
                None => drop(self.scopes.remove(name)),
            }
        }
        for (place, names, rows) in &plan.regrouped {
            let policies: Vec<_> = names.iter().filter_map(|name| desired.policies().get(name)).collect();
            self.groups.put(*place, Kind::Endpoint, &policies);
            if let Some(subject) = self.subjects.get_mut(&place.1) {
                subject.rows = *rows;
            }
        }
    }

    fn note_use(&mut self, number: u32, more: isize) {
        if let Some(used) = self.uses.get_mut(&number) {
            used.uses = used.uses.saturating_add_signed(more);
        }
    }

    /// What was noted step by step is what is counted at once; of a subject's rows at least as many.
    #[cfg(test)]
    pub(super) fn assert_counts_as(&self, fresh: &Self) {
        let uses = |of: &Self| -> BTreeMap<u32, (usize, usize)> {
            of.uses.iter().map(|(number, known)| (*number, (known.uses, known.rows))).collect()
        };
        assert_eq!(uses(self), uses(fresh));
        assert_eq!(self.numbers, fresh.numbers);
        assert_eq!(self.rows, fresh.rows);
        assert_eq!(self.constant.prefixes, fresh.constant.prefixes);
        assert_eq!(self.constant.node_slots, fresh.constant.node_slots);
        assert_eq!(self.constant.hosts, fresh.constant.hosts);
        assert!(self.groups.agree_with(&fresh.groups), "{:#?}, not {:#?}", self.groups, fresh.groups);
        assert_eq!(self.scopes, fresh.scopes);
        for (identity, subject) in &fresh.subjects {
            assert!(self.subjects.get(identity).is_some_and(|noted| noted.rows >= subject.rows));
        }
    }

    fn note_peer(&mut self, actual: &Tables, key: PeerKey, rulebook: Option<u32>) {
        if let Some(former) = actual.peer_rules.get(&key) {
            self.note_use(*former, -1);
        }
        let Some(used) = rulebook.and_then(|number| self.uses.get_mut(&number)) else { return };
        used.uses += 1;
        if let Some(subject) = self.subjects.get_mut(&key.subject) {
            // As if the rulebook were new to the subject: too many rows are counted, never too few.
            subject.rows += 1 + used.rows;
        }
    }
}

/// Whether the address might also be written as IPv6 writes those of IPv4: both ways have one row.
fn is_said_twice(address: IpAddr, desired: &Desired) -> bool {
    match address {
        IpAddr::V4(v4) => desired.addresses().contains_key(&IpAddr::V6(v4.to_ipv6_mapped())),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    }
}
