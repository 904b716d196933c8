//! Short rulebooks, with their rows in one place.

use bytemuck::{Pod, Zeroable};

use super::{PolicyRow, PortKey};

/// Rows of a rulebook that is short.
pub const BOOK_ROWS_MAX: usize = 12;

/// Value of the array `BOOKS`: the rows of one rulebook once more, for programs to find without a longest-prefix look-up,
/// which costs several times as much. Everything in it is in `RULES`, too, which is asked where a rulebook is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Book {
    /// Whose rows these are; 0: nobody's.
    pub number: u32,
    /// How many there are. The rest is zeros.
    pub rows: u32,
    /// What each row is about, as [`Book::word`] has it. Longer prefixes come first, so that the first that matches counts.
    pub ports: [u32; BOOK_ROWS_MAX],
    pub policies: [PolicyRow; BOOK_ROWS_MAX],
}

impl Book {
    /// Bits of protocol and port in a word; above them is the number of those that are not significant.
    const SHIFT: u32 = PortKey::FULL_BITS as u32;
    const WHOLE: u32 = (1 << Self::SHIFT) - 1;

    /// The place in the array that a rulebook may have. Others may have the same; it is one's at a time.
    #[inline(always)]
    pub const fn place(number: u32) -> u32 {
        number & ((1 << super::maps::BOOKS_BITS) - 1)
    }

    /// A rulebook whose rows come as its keys are ordered; `None`: it is too long, and is in `RULES` alone.
    pub fn of(number: u32, rows: impl DoubleEndedIterator<Item = (PortKey, PolicyRow)>) -> Option<Self> {
        let mut book = Self { number, ..Self::zeroed() };
        for (key, row) in rows.rev() {
            let index = book.rows as usize;
            *book.ports.get_mut(index)? = Self::word(key);
            *book.policies.get_mut(index)? = row;
            book.rows += 1;
        }
        Some(book)
    }

    /// The same rows, which nobody finds.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self { number: 0, ..self }
    }

    /// What a row is about.
    pub const fn word(key: PortKey) -> u32 {
        let [high, low] = key.port.to_be_bytes();
        u32::from_be_bytes([PortKey::FULL_BITS - key.bits, key.protocol, high, low])
    }

    /// What a word is of; `None`: of nothing.
    pub const fn key(word: u32) -> Option<PortKey> {
        let [insignificant, protocol, high, low] = word.to_be_bytes();
        match PortKey::FULL_BITS.checked_sub(insignificant) {
            Some(bits) => Some(PortKey { bits, protocol, port: u16::from_be_bytes([high, low]) }),
            None => None,
        }
    }

    /// Whether the row of a word is about a flow, which is a word without a number of bits.
    #[inline(always)]
    pub const fn is_about(word: u32, flow: u32) -> bool {
        // At most 24 where the daemon has written it; the verifier does not know.
        ((word ^ flow) & Self::WHOLE) >> ((word >> Self::SHIFT) & 31) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{layout::Action, policy::compile::Rulebook};

    fn keys() -> impl Strategy<Value = PortKey> {
        (0..=PortKey::FULL_BITS, prop_oneof![Just(6), Just(17)], 0..4_u16, any::<u16>()).prop_map(
            |(bits, protocol, near, port)| {
                PortKey::exact(protocol, if bits % 2 == 0 { near } else { port }).cut(bits)
            },
        )
    }

    /// As the kernel programs look.
    fn first(book: &Book, flow: PortKey) -> Option<PolicyRow> {
        let mut rows = book.ports.iter().zip(&book.policies).take(book.rows as usize);
        rows.find(|(word, _)| Book::is_about(**word, Book::word(flow))).map(|(_, row)| *row)
    }

    fn longest(rulebook: &Rulebook, flow: PortKey) -> Option<PolicyRow> {
        (0..=PortKey::FULL_BITS).rev().find_map(|bits| rulebook.get(&flow.cut(bits)).copied())
    }

    proptest! {
        #[test]
        fn the_first_row_that_matches_is_that_of_the_longest_prefix(
            keys in prop::collection::btree_set(keys(), 0..=BOOK_ROWS_MAX),
            asked in prop::collection::vec((prop_oneof![Just(6), Just(17), Just(0)], 0..6_u16), 8),
        ) {
            let rows = keys.iter().zip(1..).map(|(key, rule)| (*key, PolicyRow::of(Action::Allow, rule)));
            let rulebook: Rulebook = rows.collect();
            let book = Book::of(7, rulebook.iter().map(|(key, row)| (*key, *row))).unwrap();
            let ends = keys.iter().map(|key| PortKey::exact(key.protocol, key.port));
            for flow in asked.iter().map(|(protocol, port)| PortKey::exact(*protocol, *port)).chain(ends) {
                prop_assert_eq!(first(&book, flow), longest(&rulebook, flow));
            }
        }

        #[test]
        fn a_key_comes_back_out_of_its_word(key in keys()) {
            prop_assert_eq!(Book::key(Book::word(key)), Some(key));
        }
    }

    #[test]
    fn a_rulebook_with_one_row_more_is_too_long() {
        let rows = |count| (0..count).map(|port| (PortKey::exact(6, port), PolicyRow::of(Action::Deny, 0)));
        let count = u16::try_from(BOOK_ROWS_MAX).unwrap();
        assert_eq!(Book::of(1, rows(count)).unwrap().rows, u32::from(count));
        assert_eq!(Book::of(1, rows(count + 1)), None);
    }

    #[test]
    fn what_is_no_word_is_no_key() {
        assert_eq!(Book::key(25 << 24), None);
    }
}
