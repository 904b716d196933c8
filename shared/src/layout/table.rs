//! Tables of connections as the kernel programs keep them: rows that are given out one after the other, and an index by which
//! they are found. The kernel's own tables that forget the least recently used take two locks and touch four cold cache lines
//! for a row that comes, and twice as much once they are full; here it is a line of the index, which is small enough to stay
//! near, and the next row, which the CPU has fetched ahead.
//!
//! A row is written by whichever CPU has taken it: its mark is exchanged for an odd one, the row written, and the next even mark
//! put there. Readers find a row by the index, look at its key, and at the mark again after what they have read: if it is
//! another one by then, they have seen nothing. Rows that are over need not be taken out: the next who comes by takes them.

/// Places in a line of the index.
pub const PLACES: usize = 15;
/// Rows for which there is a line: half of the places are empty when all rows are taken.
pub const ROWS_OF_A_LINE: u32 = 8;

/// One line of the index: for each row the upper bits of its key's hash, and below them its number. 0: none; row 0 is never
/// given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Line {
    pub places: [u32; PLACES],
    /// Always 0. Whoever is going to look at the line, and most likely to write it, writes this before: a line that is written comes
    /// while the CPU does other things, and one that is read is waited for.
    pub touched: u32,
}

/// A key, and what is remembered under it. As long as it must be, and not across more cache lines than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct Row<K, V> {
    pub key: K,
    pub mark: Mark,
    pub value: V,
}

/// In whose hands a row is: in the upper half a number that is odd while somebody writes it, in the lower half where in the
/// index it is: the line's number and, in the last four bits, the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Mark(pub u64);

impl Mark {
    /// Whether somebody writes the row.
    #[inline(always)]
    pub const fn is_taken(self) -> bool {
        self.0 >> 32 & 1 != 0
    }

    /// Changes whenever the row is written.
    #[inline(always)]
    pub const fn turn(self) -> u32 {
        halves(self.0)[1]
    }

    /// Of the same place, and the next turn.
    #[inline(always)]
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1 << 32))
    }

    /// The same turn, in another place.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, line: u32, place: u32) -> Self {
        Self(self.0 & !0xffff_ffff | (line as u64) << 4 | place as u64 & 15)
    }

    #[inline(always)]
    pub const fn line(self) -> u32 {
        halves(self.0)[0] >> 4
    }

    #[inline(always)]
    pub const fn place(self) -> u32 {
        halves(self.0)[0] & 15
    }
}

/// Where a key's row may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Number of the line, if the index had as many as there are numbers.
    pub line: u32,
    /// What the row's place has above the row's number, if numbers took no room. The highest bit is set, so that no empty place looks
    /// like it.
    pub tag: u32,
}

/// A hash of five words, different for each seed: nobody who does not know it can aim at a line.
#[inline(always)]
pub const fn spot(words: [u64; 5], seed: u64) -> Spot {
    let sum = fold(words[0] ^ seed, 0x9e37_79b9_7f4a_7c15)
        .wrapping_add(fold(words[1] ^ seed, 0xc2b2_ae3d_27d4_eb4f))
        .wrapping_add(fold(words[2] ^ seed, 0x1656_67b1_9e37_79f9))
        .wrapping_add(fold(words[3] ^ seed, 0xff51_afd7_ed55_8ccd))
        .wrapping_add(fold(words[4] ^ seed, 0xc4ce_b9fe_1a85_ec53));
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(0x9fb2_1c65_1e98_df25);
    let mixed = mixed ^ (mixed >> 29);
    let [line, tag] = halves(mixed);
    Spot { line, tag: tag | 1 << 31 }
}

/// The lower one first.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "each is half of it")]
const fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

#[inline(always)]
const fn fold(word: u64, by: u64) -> u64 {
    let product = word.wrapping_mul(by);
    product ^ (product >> 31)
}

/// How many rows and lines a table has for so many connections: powers of two.
pub const fn sizes(connections: u32) -> (u32, u32) {
    const LEAST: u32 = 2 * ROWS_OF_A_LINE;
    // One row is never given out, but powers of two are what people ask for.
    let rows = if connections < LEAST { LEAST } else { connections.next_power_of_two() };
    (rows, rows / ROWS_OF_A_LINE)
}

/// What is in memory at an address, as words (little endian).
#[inline(always)]
pub const fn words([a, b, c, d]: [u32; 4]) -> [u64; 2] {
    [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_keys_tag_is_that_of_an_empty_place_in_a_table_of_any_size() {
        for word in 0..10_000 {
            let Spot { tag, .. } = spot([word, 0, 0, 0, 0], 7);
            for rows in [16_u32, 1 << 17, 1 << 24] {
                assert_ne!(tag & !(rows - 1), 0, "{word} among {rows} rows");
            }
        }
    }
}
