//! What a watch is told, put together: whole revisions, in order, each once.
use crate::store::{Batch, Event};

#[derive(Debug)]
pub(super) struct Assembler {
    /// Everything up to here was handed out.
    position: u64,
    pending: Option<Batch>,
}

impl Assembler {
    pub(super) fn new(position: u64) -> Self {
        Self { position, pending: None }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Takes the events of one answer, of which more is to come if it is a fragment. Returns what is complete.
    pub(super) fn take(&mut self, events: Vec<(u64, Event)>, is_fragment: bool) -> Vec<Batch> {
        let mut complete = Vec::new();
        for (revision, event) in events {
            if revision <= self.position {
                continue;
            }
            match &mut self.pending {
                Some(batch) if batch.revision == revision => batch.events.push(event),
                pending => {
                    complete.extend(pending.replace(Batch { revision, events: vec![event] }));
                }
            }
        }
        if !is_fragment {
            complete.extend(self.pending.take());
        }
        self.position = complete.last().map_or(self.position, |batch| batch.revision);
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str) -> Event {
        Event { key: key.to_owned(), value: None }
    }

    #[test]
    fn a_revision_that_comes_in_fragments_is_one_batch() {
        let mut assembler = Assembler::new(1);
        let first = assembler.take(vec![(2, event("a")), (3, event("b"))], true);
        assert_eq!(first, [Batch { revision: 2, events: vec![event("a")] }]);
        assert_eq!(assembler.position(), 2, "3 is not whole yet");
        let second = assembler.take(vec![(3, event("c")), (4, event("d"))], false);
        let whole = Batch { revision: 3, events: vec![event("b"), event("c")] };
        assert_eq!(second, [whole, Batch { revision: 4, events: vec![event("d")] }]);
        assert_eq!(assembler.position(), 4);
    }

    #[test]
    fn what_was_handed_out_before_is_not_handed_out_again() {
        let mut assembler = Assembler::new(3);
        assert!(assembler.take(vec![(2, event("a")), (3, event("b"))], false).is_empty());
        assert_eq!(assembler.take(vec![(3, event("b")), (4, event("c"))], false).len(), 1);
    }
}
