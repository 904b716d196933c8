//! Rulebooks that are short, once more where the programs need no longest-prefix look-up (`BOOKS`). What is there is never
//! all that says it: a rulebook whose place is another's, or that is too long, is in `RULES` alone.

use std::{collections::BTreeMap, sync::Arc};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use weft_shared::{
    layout::{Book, maps::BOOKS},
    policy::compile::Rulebook,
};

use super::{
    KernelError,
    grace::Grace,
    maps::{failed, take},
    trusted::Plain,
};

pub(super) struct Books {
    places: Array<MapData, Plain<Book>>,
    /// Whose each place is.
    owners: BTreeMap<u32, u32>,
}

impl Books {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        Ok(Self { places: take(ebpf, BOOKS)?, owners: BTreeMap::new() })
    }

    /// After an earlier daemon, which may have known of no such map: lets the map say what these rulebooks do. Programs that
    /// run may have any of them in hand, so that nothing is found before it is whole.
    pub(super) fn match_all(
        &mut self,
        rulebooks: &BTreeMap<u32, Arc<Rulebook>>,
        grace: &mut Grace,
    ) -> Result<(), KernelError> {
        let mut missing = Vec::new();
        for (number, rows) in rulebooks {
            let (there, wanted) = (self.at(*number)?, book(*number, rows));
            if there.number != *number {
                // Another's that is kept, or free.
                let is_taken = rulebooks.contains_key(&there.number) || self.is_anothers(*number);
                if let Some(wanted) = wanted.filter(|_| !is_taken) {
                    self.own(*number);
                    missing.push(wanted);
                }
            } else if wanted == Some(there) {
                self.own(*number);
            } else {
                self.write(*number, there.hidden())?;
            }
        }
        for book in &missing {
            self.write(book.number, book.hidden())?;
        }
        if !missing.is_empty() {
            grace.wait()?;
        }
        missing.into_iter().try_for_each(|book| self.write(book.number, book))
    }

    /// A rulebook that nobody finds yet, if it is short and its place is free.
    pub(super) fn put(&mut self, number: u32, rows: &Rulebook) -> Result<(), KernelError> {
        match book(number, rows) {
            Some(book) if !self.is_anothers(number) => {
                self.own(number);
                self.write(number, book)
            }
            _ => Ok(()),
        }
    }

    /// The place may be another's.
    pub(super) fn remove(&mut self, number: u32) -> Result<(), KernelError> {
        if self.owners.get(&Book::place(number)) == Some(&number) {
            let there = self.at(number)?;
            self.write(number, there.hidden())?;
            self.owners.remove(&Book::place(number));
        }
        Ok(())
    }

    /// What programs find here of a rulebook; `None`: they look into `RULES`.
    pub(super) fn read(&self, number: u32) -> Result<Option<Rulebook>, KernelError> {
        let there = self.at(number)?;
        if there.number != number {
            return Ok(None);
        }
        let rows = there.ports.iter().zip(there.policies).take(there.rows as usize);
        Ok(Some(rows.filter_map(|(word, row)| Some((Book::key(*word)?, row))).collect()))
    }

    fn is_anothers(&self, number: u32) -> bool {
        self.owners.get(&Book::place(number)).is_some_and(|owner| *owner != number)
    }

    fn own(&mut self, number: u32) {
        self.owners.insert(Book::place(number), number);
    }

    fn at(&self, number: u32) -> Result<Book, KernelError> {
        self.places.get(&Book::place(number), 0).map(|book| book.0).map_err(failed(BOOKS))
    }

    fn write(&mut self, number: u32, book: Book) -> Result<(), KernelError> {
        self.places.set(Book::place(number), Plain(book), 0).map_err(failed(BOOKS))
    }
}

fn book(number: u32, rows: &Rulebook) -> Option<Book> {
    Book::of(number, rows.iter().map(|(key, row)| (*key, *row)))
}
