//! What became of a transaction whose answer was lost. Asking again blindly could apply it twice, or call it refused because
//! of its own first application.
use crate::store::{Compare, KeyValue, Operation, Relation, Target, Transaction};

/// Whether it can be applied only once, so that it may be sent again: it asks for the revision of a key that is there, and
/// changes that key. Revisions only ascend, so that compare never holds again. (That a key is *absent* may hold again, once
/// somebody deleted it.)
pub(super) fn is_guarded(transaction: &Transaction) -> bool {
    let guards = |compare: &Compare| {
        compare.target == Target::ModRevision
            && compare.relation == Relation::Equal
            && compare.value > 0
            && transaction.then.iter().any(|operation| operation.key() == compare.key)
    };
    transaction.otherwise.is_empty() && transaction.compares.iter().any(guards)
}

/// The revision at which all of it was applied, seen in the keys it changes (`found`, in the order of its operations), if
/// nobody has changed them since. Only revisions after `sent_after` can be its. Somebody else who put the very same values
/// into the very same keys at the same time cannot be told apart: the store is then as both wanted, but whoever uses keys to
/// settle who was first must put something of his own into one of them.
pub(super) fn applied_at(
    transaction: &Transaction,
    found: &[Option<KeyValue>],
    sent_after: u64,
) -> Option<u64> {
    if found.len() != transaction.then.len() {
        return None;
    }
    let mut at = None;
    for (operation, found) in transaction.then.iter().zip(found) {
        match (operation, found) {
            (Operation::Delete { .. }, None) => {}
            (Operation::Put { value, .. }, Some(item)) if item.value == *value => {
                if at.is_some_and(|at| at != item.mod_revision) {
                    return None;
                }
                at = Some(item.mod_revision);
            }
            _ => return None,
        }
    }
    at.filter(|at| *at > sent_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, value: &'static str, mod_revision: u64) -> KeyValue {
        KeyValue { key: key.to_owned(), value: value.into(), create_revision: 1, mod_revision, version: 1 }
    }

    fn transaction(compares: Vec<Compare>) -> Transaction {
        let then = vec![Operation::put("a", "1"), Operation::put("b", "2"), Operation::delete("c")];
        Transaction { compares, then, otherwise: Vec::new() }
    }

    #[test]
    fn only_a_key_that_is_there_and_is_changed_guards() {
        assert!(is_guarded(&transaction(vec![Compare::unchanged("a", 7)])));
        assert!(is_guarded(&transaction(vec![Compare::absent("b"), Compare::unchanged("c", 7)])));
        assert!(!is_guarded(&transaction(vec![Compare::unchanged("elsewhere", 7)])));
        assert!(!is_guarded(&transaction(vec![Compare::absent("a")])), "it may be deleted again");
        assert!(!is_guarded(&transaction(vec![Compare::not_changed_after("a", 7)])), "absent holds too");
        assert!(!is_guarded(&transaction(Vec::new())));
        let mut with_otherwise = transaction(vec![Compare::unchanged("a", 7)]);
        with_otherwise.otherwise.push(Operation::delete("d"));
        assert!(!is_guarded(&with_otherwise), "the second time it would take the other branch");
    }

    #[test]
    fn it_was_applied_when_all_keys_are_as_it_makes_them_at_one_revision() {
        let sent = transaction(Vec::new());
        let applied = |found: &[Option<KeyValue>]| applied_at(&sent, found, 5);
        assert_eq!(applied(&[Some(item("a", "1", 6)), Some(item("b", "2", 6)), None]), Some(6));
        assert_eq!(applied(&[Some(item("a", "1", 6)), Some(item("b", "2", 7)), None]), None, "two revisions");
        assert_eq!(applied(&[Some(item("a", "1", 6)), Some(item("b", "x", 6)), None]), None, "another value");
        assert_eq!(
            applied(&[Some(item("a", "1", 6)), Some(item("b", "2", 6)), Some(item("c", "", 6))]),
            None,
            "not deleted"
        );
        assert_eq!(
            applied(&[Some(item("a", "1", 5)), Some(item("b", "2", 5)), None]),
            None,
            "from before it was sent"
        );
        assert_eq!(applied(&[None, None, None]), None);
        let deletes = Transaction { then: vec![Operation::delete("c")], ..Transaction::default() };
        assert_eq!(applied_at(&deletes, &[None], 5), None, "at no revision that could be told");
    }
}
