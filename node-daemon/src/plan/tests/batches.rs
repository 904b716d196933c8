//! Incremental equals from scratch: however a history reaches the node (cut into parts, its batches joined, those that have
//! nothing to do with each other in another order, with empty ones between and full syncs), the kernel's tables are those
//! of its end.

use proptest::sample::Index;

use super::{
    host::{Host, host},
    *,
};
use crate::desired::{
    Key,
    disk::Disk,
    journal::{Change, Journal},
};

/// Of a resource: what it becomes, or that it goes.
pub(super) type Changes = BTreeMap<(i32, String), Option<v1::Upsert>>;
/// Resources that are there.
pub(super) type Contents = BTreeMap<(i32, String), v1::Upsert>;

/// What is done with a history before it reaches the node.
#[derive(Clone, Debug)]
enum Disturbance {
    /// The batch is cut in two.
    Split(Index, Index),
    /// The batch and the next become one.
    Squash(Index),
    /// The longest run of batches from here that have nothing to do with each other is turned round.
    Reverse(Index),
    Empty(Index),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    let place = any::<Index>;
    prop_oneof![
        3 => (place(), place()).prop_map(|(batch, at)| Disturbance::Split(batch, at)),
        2 => place().prop_map(Disturbance::Squash),
        3 => place().prop_map(Disturbance::Reverse),
        1 => place().prop_map(Disturbance::Empty),
    ]
}

/// A model of which some resources are missing; without what is said of the fleet, nothing is written at all.
pub(super) fn contents() -> impl Strategy<Value = Contents> {
    let host = prop::option::of(host());
    (model(), host, vec(prop::bool::weighted(0.85), 64)).prop_map(|(model, host, kept)| {
        let upserts = host.map_or_else(|| model.upserts(), |host: Host| host.upserts(&model));
        let named = upserts.into_iter().map(|upsert| ((upsert.r#type, upsert.name.clone()), upsert));
        let kept =
            named.zip(kept).filter(|((key, _), kept)| *kept || key.0 == i32::from(ResourceType::Fleet));
        kept.map(|(resource, _)| resource).collect()
    })
}

/// From each to the next, beginning with nothing.
fn history(contents: &[Contents]) -> Vec<Changes> {
    let mut before = &Contents::new();
    let mut history = Vec::new();
    for after in contents {
        let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), None));
        let changed = after.iter().filter(|(key, upsert)| before.get(*key) != Some(*upsert));
        history.push(gone.chain(changed.map(|(key, upsert)| (key.clone(), Some(upsert.clone())))).collect());
        before = after;
    }
    history
}

fn independent(left: &Changes, right: &Changes) -> bool {
    left.keys().all(|key| !right.contains_key(key))
}

fn disturb(history: &mut Vec<Changes>, disturbance: &Disturbance) {
    match disturbance {
        Disturbance::Split(batch, at) => {
            let place = batch.index(history.len());
            let changes = std::mem::take(&mut history[place]);
            let middle = at.index(changes.len() + 1);
            let (first, second): (Vec<_>, Vec<_>) =
                changes.into_iter().enumerate().partition(|(index, _)| *index < middle);
            let parts = [second, first].map(|part| part.into_iter().map(|(_, change)| change).collect());
            history.splice(place..=place, parts);
        }
        Disturbance::Squash(batch) if history.len() > 1 => {
            let place = batch.index(history.len() - 1);
            let later = history.remove(place + 1);
            history[place].extend(later);
        }
        Disturbance::Squash(_) => {}
        Disturbance::Reverse(batch) => {
            let start = batch.index(history.len());
            let mut end = start + 1;
            while end < history.len()
                && history[start..end].iter().all(|earlier| independent(earlier, &history[end]))
            {
                end += 1;
            }
            history[start..end].reverse();
        }
        Disturbance::Empty(batch) => history.insert(batch.index(history.len() + 1), Changes::new()),
    }
}

/// A daemon, as far as its tables go.
#[derive(Default)]
pub(super) struct Node {
    pub(super) desired: Desired,
    twin: Twin,
    former_sets: IdentitySets,
    standing: Option<Standing>,
    /// Batches that were planned without looking at the whole.
    pub(super) narrow: usize,
}

impl Node {
    /// Where the narrow way is sure of itself, it must go the very same steps as the whole.
    pub(super) fn take(&mut self, batch: Batch) {
        let in_sync = batch.listed.is_some() || !self.desired.complete;
        let revision = self.desired.revision + 1;
        let batch = Batch { revision, identities_through: 300, in_sync, ..batch };
        let touched = Touched::by(&batch);
        self.desired.apply(batch);
        let (attachments, before) = (attachments(), self.tables());
        let whole = steps_of(&self.twin, &self.desired, &self.former_sets);
        if let (Some(mut standing), Some(touched)) = (self.standing.take(), touched) {
            let input = input(&self.desired, &attachments, &self.former_sets);
            if let Some(plan) = standing.plan(input, &before, &touched) {
                assert_eq!(plan.steps, whole, "after {touched:?}");
                standing.note(&self.desired, &before, &touched, &plan);
                touched.copy_members(self.desired.sets(), &mut self.former_sets);
                assert_eq!(&self.former_sets, self.desired.sets());
                self.standing = Some(standing);
                self.narrow += 1;
            }
        }
        self.twin.write(&whole).unwrap();
        self.former_sets.clone_from(self.desired.sets());
        let fresh = self.fresh_standing(&attachments);
        if let (Some(noted), Some(fresh)) = (&self.standing, &fresh) {
            noted.assert_counts_as(fresh);
        } else {
            self.standing = fresh;
        }
    }

    /// `None`: not all has its place.
    fn fresh_standing(&self, attachments: &Attachments) -> Option<Standing> {
        let (input, tables) = (input(&self.desired, attachments, &self.former_sets), self.tables());
        let compiled = compile::compile(input, &tables, Stale::Drop);
        let fits = compiled.problems.is_empty() && compiled.unfit.is_empty();
        fits.then(|| Standing::of(input, &tables)).flatten()
    }

    pub(super) fn tables(&self) -> Tables {
        self.twin.with(|state| state.tables.clone())
    }
}

pub(super) fn batch(changes: Changes) -> Batch {
    let mut batch = Batch::default();
    for ((kind, name), upsert) in changes {
        match upsert {
            Some(upsert) => batch.upserts.push(upsert),
            None => batch.removes.push(v1::Remove { r#type: kind, name }),
        }
    }
    batch
}

pub(super) fn everything(contents: &Contents) -> Batch {
    let listed = contents
        .keys()
        .map(|(kind, name)| Key { kind: ResourceType::try_from(*kind).unwrap(), name: name.clone() });
    Batch {
        upserts: contents.values().cloned().collect(),
        listed: Some(listed.collect()),
        ..Batch::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn however_a_history_reaches_the_node_its_tables_are_those_of_the_end(
        contents in vec(contents(), 1..5),
        disturbances in vec(disturbance(), 0..12),
        full_sync in prop::option::of(any::<Index>()),
    ) {
        let mut history = history(&contents);
        for disturbance in &disturbances {
            disturb(&mut history, disturbance);
        }
        let mut node = Node::default();
        let (mut held, full_sync) = (Contents::new(), full_sync.map(|place| place.index(history.len())));
        for (place, changes) in history.into_iter().enumerate() {
            for (key, upsert) in &changes {
                match upsert {
                    Some(upsert) => drop(held.insert(key.clone(), upsert.clone())),
                    None => drop(held.remove(key)),
                }
            }
            // It lists what is there, and names nothing of what has gone.
            node.take(if full_sync == Some(place) { everything(&held) } else { batch(changes) });
        }
        let last = contents.last().unwrap();
        prop_assert_eq!(&held, last, "a history that is disturbed ends where it did");

        let mut fresh = Node::default();
        fresh.take(everything(last));
        prop_assert_eq!(node.desired.digests(), fresh.desired.digests());
        // Numbers of slots and prefixes are those that were free when they were given: compared are the tables that a node
        // that has seen nothing else makes of them.
        let attachments = attachments();
        let former_sets = IdentitySets::default();
        let from_scratch = input(&fresh.desired, &attachments, &former_sets);
        let found = node.tables();
        prop_assert_eq!(&compile::compile(from_scratch, &found, Stale::Drop).tables, &found);
        // And the verdicts are those of a node with numbers of its own.
        let expected = fresh.tables();
        for ifindex in [10, 11] {
            for from in OWN.iter().chain(&OTHERS).chain(&WORLD) {
                for port in [80, 85, 443] {
                    prop_assert_eq!(judge(&found, ifindex, from, port), judge(&expected, ifindex, from, port));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_restart_at_any_point_of_a_history_finds_what_was_there(
        contents in vec(contents(), 1..4),
        disturbances in vec(disturbance(), 0..8),
        full_sync in prop::option::of(any::<Index>()),
    ) {
        let mut history = history(&contents);
        for disturbance in &disturbances {
            disturb(&mut history, disturbance);
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path()).unwrap();
        let (mut held, full_sync) = (Contents::new(), full_sync.map(|place| place.index(history.len())));
        let (mut desired, mut journal) = (Desired::default(), None);
        for (place, changes) in history.into_iter().enumerate() {
            held.extend(changes.iter().filter_map(|(key, upsert)| Some((key.clone(), upsert.clone()?))));
            held.retain(|key, _| changes.get(key).is_none_or(Option::is_some));
            let batch = if full_sync == Some(place) { everything(&held) } else { batch(changes) };
            let change = Change::of(&batch);
            let revision = desired.revision + 1;
            desired.apply(Batch { revision, identities_through: 300, in_sync: place == 0, ..batch });
            let appended = match (&mut journal, change) {
                (Some(journal), Some(change)) => Journal::append(journal, &desired, &change).unwrap(),
                _ => false,
            };
            if !appended {
                journal = Some(disk.store_desired(&desired).unwrap());
            }
            let loaded = disk.load_desired().unwrap();
            prop_assert_eq!(loaded.digests(), desired.digests());
            let numbers = |of: &Desired| (of.revision, of.realised, of.identities_through, of.complete);
            prop_assert_eq!(numbers(&loaded), numbers(&desired));
            // What it enforces is the same, from the parsed forms.
            prop_assert_eq!(loaded.sets(), desired.sets());
            prop_assert_eq!(loaded.policies(), desired.policies());
            prop_assert_eq!(loaded.addresses(), desired.addresses());
        }
    }
}
