//! Between our words and etcd's. A store that was moved here from another one goes on with that one's revisions: etcd's
//! are lower by the [`Base`], everywhere.
use bytes::Bytes;
use etcd_client as etcd;

use crate::store::{Compare, Event, KeyValue, Operation, Relation, StoreError, Target, Transaction};

/// What our revisions are ahead of etcd's: 0, unless the data was moved here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Base(pub(super) u64);

impl Base {
    /// etcd counts from 1, in an `i64`; 0 stays 0 (no such key).
    pub(super) fn ours(self, revision: i64) -> u64 {
        match u64::try_from(revision) {
            Ok(0) | Err(_) => 0,
            Ok(revision) => revision + self.0,
        }
    }

    /// `None`: from before the data was here.
    pub(super) fn theirs(self, revision: u64) -> Option<i64> {
        let revision = revision.checked_sub(self.0).filter(|revision| *revision > 0)?;
        Some(i64::try_from(revision).unwrap_or(i64::MAX))
    }
}

/// The end of the range of keys that start with this; `\0`: there is no end.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key that starts with `prefix` and comes after `after`. etcd knows no empty key: `\0` is the first.
pub(super) fn start_of(prefix: &str, after: Option<&str>) -> Vec<u8> {
    match after.filter(|after| *after >= prefix) {
        Some(after) => [after.as_bytes(), &[0]].concat(),
        None if prefix.is_empty() => vec![0],
        None => prefix.as_bytes().to_vec(),
    }
}

pub(super) fn key_value(item: &etcd::KeyValue, base: Base) -> Result<KeyValue, StoreError> {
    Ok(KeyValue {
        key: text(item.key())?,
        value: Bytes::copy_from_slice(item.value()),
        create_revision: base.ours(item.create_revision()),
        mod_revision: base.ours(item.mod_revision()),
        version: u64::try_from(item.version()).unwrap_or_default(),
    })
}

/// An event, and the revision that it is of.
pub(super) fn event(event: &etcd::Event, base: Base) -> Result<(u64, Event), StoreError> {
    let item = event.kv().ok_or_else(|| StoreError::Corrupt { key: "an event without a key".to_owned() })?;
    let revision = base.ours(item.mod_revision());
    let value = match event.event_type() {
        etcd::EventType::Put => Some(key_value(item, base)?),
        etcd::EventType::Delete => None,
    };
    Ok((revision, Event { key: text(item.key())?, value }))
}

fn text(key: &[u8]) -> Result<String, StoreError> {
    let corrupt = || StoreError::Corrupt { key: String::from_utf8_lossy(key).into_owned() };
    std::str::from_utf8(key).map(str::to_owned).map_err(|_| corrupt())
}

pub(super) fn transaction(transaction: &Transaction, base: Base) -> etcd::Txn {
    etcd::Txn::new()
        .when(compares(transaction, base))
        .and_then(transaction.then.iter().map(operation).collect::<Vec<_>>())
        .or_else(transaction.otherwise.iter().map(operation).collect::<Vec<_>>())
}

/// The same, but when it does not hold, the keys that it would change are read.
pub(super) fn transaction_or_look(transaction: &Transaction, base: Base) -> etcd::Txn {
    etcd::Txn::new()
        .when(compares(transaction, base))
        .and_then(transaction.then.iter().map(operation).collect::<Vec<_>>())
        .or_else(looks(transaction))
}

/// Only reads the keys that it would change.
pub(super) fn look(transaction: &Transaction) -> etcd::Txn {
    etcd::Txn::new().and_then(looks(transaction))
}

fn looks(transaction: &Transaction) -> Vec<etcd::TxnOp> {
    transaction.then.iter().map(|operation| etcd::TxnOp::get(operation.key(), None)).collect()
}

fn compares(transaction: &Transaction, base: Base) -> Vec<etcd::Compare> {
    transaction.compares.iter().filter_map(|wanted| compare(wanted, base)).collect()
}

fn operation(operation: &Operation) -> etcd::TxnOp {
    match operation {
        Operation::Put { key, value } => etcd::TxnOp::put(key.as_str(), value.to_vec(), None),
        Operation::Delete { key } => etcd::TxnOp::delete(key.as_str(), None),
    }
}

/// `None`: it always holds.
fn compare(wanted: &Compare, base: Base) -> Option<etcd::Compare> {
    let (relation, value) = match wanted.target {
        Target::Version => (wanted.relation, i64::try_from(wanted.value).unwrap_or(i64::MAX)),
        Target::CreateRevision | Target::ModRevision => shifted(wanted.relation, wanted.value, base)?,
    };
    let key = wanted.key.as_str();
    Some(match (wanted.target, relation) {
        (Target::Version, relation) => etcd::Compare::version(key, of(relation), value),
        (Target::CreateRevision, relation) => etcd::Compare::create_revision(key, of(relation), value),
        (Target::ModRevision, relation) => etcd::Compare::mod_revision(key, of(relation), value),
    })
}

fn of(relation: Relation) -> etcd::CompareOp {
    match relation {
        Relation::Equal => etcd::CompareOp::Equal,
        Relation::NotEqual => etcd::CompareOp::NotEqual,
        Relation::Less => etcd::CompareOp::Less,
        Relation::Greater => etcd::CompareOp::Greater,
    }
}

/// The comparison of etcd's revision that says the same. Revisions from before the data was here are of no key, and below
/// every key's; an absent key's is 0. `None`: it always holds.
fn shifted(relation: Relation, value: u64, base: Base) -> Option<(Relation, i64)> {
    if value == 0 {
        return Some((relation, 0));
    }
    if let Some(value) = base.theirs(value) {
        return Some((relation, value));
    }
    match relation {
        Relation::NotEqual => None,
        // Never: no revision is below 0.
        Relation::Equal => Some((Relation::Less, 0)),
        Relation::Less => Some((Relation::Equal, 0)),
        Relation::Greater => Some((Relation::NotEqual, 0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_does_not_start_with_it() {
        assert_eq!(end_of("/weft/v1/"), b"/weft/v10");
        assert_eq!(end_of("a"), b"b");
        assert_eq!(end_of(""), [0]);
        assert_eq!(start_of("", None), [0]);
        assert_eq!(start_of("a/", Some("a/1")), b"a/1\0");
        assert_eq!(start_of("b/", Some("a/1")), b"b/", "from before the prefix");
    }

    fn holds(left: i64, relation: Relation, right: i64) -> bool {
        match relation {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        }
    }

    proptest! {
        /// A key's revision in etcd (0: absent) compared as `shifted` says is ours compared as it was asked.
        #[test]
        fn a_comparison_means_the_same_above_any_base(
            revision in 0_i64..20,
            base in 0_u64..20,
            value in 0_u64..60,
            relation in prop::sample::select(vec![
                Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater,
            ]),
        ) {
            let base = Base(base);
            let ours = i64::try_from(base.ours(revision)).unwrap();
            let asked = holds(ours, relation, i64::try_from(value).unwrap());
            let told = shifted(relation, value, base)
                .is_none_or(|(relation, value)| holds(revision, relation, value));
            prop_assert_eq!(told, asked);
        }
    }
}
