//! Tables of connections: see `weft_shared::layout::table` for what is in them, and why.

use core::{arch::asm, ptr::NonNull};

use weft_shared::layout::table::{Line, Mark, PLACES, Row, Spot, spot};

use crate::{
    atomic,
    conntrack::forgotten,
    maps::{ASKED, CURSORS, HEADS, config},
};

/// A key as it is hashed and compared.
pub type Words = [u64; 5];

/// The key that is asked for, where its row may be, and which is its, where one is to be written.
#[derive(Clone, Copy)]
pub struct Asked {
    pub words: Words,
    spot: Spot,
    /// [`UNSOUGHT`], [`NOWHERE`], or the number of the key's row.
    row: u32,
    /// A place in its line that was empty; [`PLACES`]: none was.
    empty: u32,
    /// A row that comes next and is over, for a key that has none; 0: none was.
    next: u32,
}

/// The row was not looked for since its key was put here.
const UNSOUGHT: u32 = u32::MAX;
/// There is none.
const NOWHERE: u32 = 0;

impl Asked {
    /// Puts a word of a key here: the stack has no room for it.
    #[inline(always)]
    pub fn put(&mut self, index: usize, word: u64) {
        // Word by word, and not from one hand into the other.
        // SAFETY: a field of its own.
        unsafe { (&raw mut self.words[index]).write_volatile(word) };
    }

    /// For when the key is here.
    #[inline(always)]
    pub fn find_spot(&mut self) {
        self.spot = spot(self.words, config().seed);
        self.row = UNSOUGHT;
    }

    /// Lets the line come while other things are done. For a key that most likely gets a row: of others, reading is cheaper.
    #[inline(always)]
    pub fn touch<T: Table>(&self) {
        if let Some(line) = T::line(self.line::<T>(T::mask())) {
            // SAFETY: an aligned word of the kernel's element.
            unsafe { (&raw mut (*line.as_ptr()).touched).write_volatile(0) };
        }
    }

    /// The line of the table in which the row is.
    #[inline(always)]
    const fn line<T: Table>(&self, mask: u32) -> u32 {
        // A line for each eight rows.
        self.spot.line & (mask >> 3)
    }
}

/// What is asked for.
#[inline(always)]
pub fn asked() -> Option<&'static mut Asked> {
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    ASKED.get_ptr_mut(0).map(|asked| unsafe { &mut *asked })
}

/// Rows that a CPU takes at once from those that come next, and has the memory fetch at once: one after the other would each be
/// waited for.
const CHUNK: u64 = 32;
/// Rows that are looked at for one that is over: those that come next, then some anywhere, where it goes on. If none is, that one goes
/// which would be over first.
const NEXT: u32 = 4;
const LOOKED_AT: u32 = 12;
/// With less than this left to it (nanoseconds), a row that comes next goes, and no other is looked for: a flood of connections
/// that nobody answers takes rows from itself.
const SHORT: u64 = 60_000_000_000;
/// Tries to get what other CPUs want as well.
const TRIES: u32 = 2;

/// One of the tables.
pub trait Table {
    type Key;
    type Value;
    /// Of its cursors.
    const NUMBER: u32;
    fn line(number: u32) -> Option<NonNull<Line>>;
    fn row(number: u32) -> Option<NonNull<Row<Self::Key, Self::Value>>>;
    /// Rows less one.
    fn mask() -> u32;
    /// When the row was used last, 0: it is nobody's; and how long it lasts from then on.
    fn nanoseconds(key: &Self::Key, value: &Self::Value) -> (u64, u64);
    /// [`left`], as a function that the verifier looks at once.
    fn left(number: u32, now: u64) -> u64;
    /// [`fetch`], as a function that the verifier looks at once.
    fn fetch(first: u32) -> u32;
    /// Makes a row one that is nobody's.
    fn end(value: &mut Self::Value);
}

/// The functions of a table that the verifier looks at once, by these names.
macro_rules! functions {
    ($table:ty: $search:ident, $left:ident, $fetch:ident, $reserve:ident, $room:ident, $enter:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $search() -> u32 {
            $crate::table::asked().map_or(0, |asked| $crate::table::seek::<$table>(asked))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $left(number: u32, now: u64) -> u64 {
            $crate::table::left::<$table>(number, now)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $fetch(first: u32) -> u32 {
            $crate::table::fetch::<$table>(first)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reserve(now: u64) -> u32 {
            $crate::table::reserve::<$table>(now)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $room(now: u64) -> u32 {
            $crate::table::room::<$table>(now)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $enter(place: u32, last: u32, alone: u32) -> u32 {
            $crate::table::enter::<$table>(place, last != 0, alone != 0)
        }
    };
}
pub(crate) use functions;

/// More than is left to any row.
const NEVER: u64 = i64::MAX as u64;

/// Nanoseconds until the row is over; [`NEVER`] of one that nobody may take.
#[inline(always)]
pub fn left<T: Table>(number: u32, now: u64) -> u64 {
    let Some(row) = T::row(number) else { return NEVER };
    if number == 0 || read_mark(row).is_taken() {
        return NEVER;
    }
    // SAFETY: an element of an array, which never moves; what other CPUs write are whole numbers.
    let (seen_at, lasts) = unsafe { T::nanoseconds(&(*row.as_ptr()).key, &(*row.as_ptr()).value) };
    if seen_at == 0 {
        return 0;
    }
    // No sum or difference of such times is as large as a sign.
    let left = seen_at.wrapping_add(lasts).wrapping_sub(now);
    left & !is_negative(left)
}

/// All bits, or none, and no branch: what the verifier learns by one keeps ways apart to the end of the program.
#[inline(always)]
fn is_negative(mut number: u64) -> u64 {
    // SAFETY: changes the one register.
    unsafe {
        asm!("{number} s>>= 63", number = inout(reg) number, options(nomem, nostack, preserves_flags, pure));
    }
    number
}

/// The number with less left to it.
#[derive(Clone, Copy)]
struct Least {
    number: u32,
    left: u64,
}

impl Least {
    #[inline(always)]
    const fn new() -> Self {
        Self { number: 0, left: NEVER }
    }

    #[inline(always)]
    fn or(self, number: u32, left: u64) -> Self {
        let less = is_negative(left.wrapping_sub(self.left));
        Self {
            number: number & less as u32 | self.number & !less as u32,
            left: left & less | self.left & !less,
        }
    }
}

/// A row as it was found. It may be another one by the time it is read: see [`Held::is_still`].
pub struct Held<K, V> {
    pub row: NonNull<Row<K, V>>,
    mark: Mark,
}

impl<K, V> Clone for Held<K, V> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Held<K, V> {}

impl<K, V> Held<K, V> {
    /// Whether what was read since the row was found is this row's.
    #[inline(always)]
    pub fn is_still(&self) -> bool {
        in_order();
        read_mark(self.row).turn() == self.mark.turn()
    }
}

/// The number of a row that may be that of a key, which is not kept: the first one by the index. 0: there is none.
#[inline(always)]
pub fn first<T: Table>(line: u32, tag: u32) -> u32 {
    let Some(line) = T::line(line) else { return 0 };
    let mask = T::mask();
    let mut found = 0;
    for place in 0..PLACES as u32 {
        let there = read_place(line, place);
        if (there ^ tag) & !mask == 0 {
            found = there & mask;
            break;
        }
    }
    found
}

/// The row of a number, if it is the key's.
#[inline(always)]
pub fn hold<T: Table>(number: u32, words: &Words) -> Option<Held<T::Key, T::Value>> {
    if number == 0 {
        return None;
    }
    let row = T::row(number)?;
    let mark = read_mark(row);
    in_order();
    (!mark.is_taken() && is(row, words)).then_some(Held { row, mark })
}

/// The number of the row of the key that is asked for, over or not; 0: there is none. `but`: of another than this one.
#[inline(always)]
pub fn search<T: Table>(asked: &Asked, but: u32) -> u32 {
    let mask = T::mask();
    let Some(line) = T::line(asked.line::<T>(mask)) else { return 0 };
    let mut found = 0;
    for place in 0..PLACES as u32 {
        let there = read_place(line, place);
        if (there ^ asked.spot.tag) & !mask == 0
            && there & mask != but
            && hold::<T>(there & mask, &asked.words).is_some()
        {
            found = there & mask;
            break;
        }
    }
    found
}

/// The number of the row of the key that is asked for, over or not, which is noted; 0: there is none, and an empty place is noted.
#[inline(always)]
pub fn seek<T: Table>(asked: &mut Asked) -> u32 {
    asked.row = search::<T>(asked, NOWHERE);
    if asked.row == NOWHERE {
        asked.empty = empty::<T>(asked);
    }
    asked.row
}

/// What [`reserve`] has found: no row, the key's own, or one that is this CPU's alone until it is entered.
pub const NONE: u32 = 0;
pub const KNOWN: u32 = 1;
pub const NEW: u32 = 2;

/// Finds a row for the key that is asked for.
#[inline(always)]
pub fn reserve<T: Table>(now: u64) -> u32 {
    let Some(asked) = asked() else { return NONE };
    if asked.row == UNSOUGHT {
        seek::<T>(asked);
    }
    if asked.row != NOWHERE {
        return KNOWN;
    }
    for attempt in 0..TRIES {
        let number = forgotten(choose::<T>(asked.spot.line.wrapping_add(attempt), now).into()) as u32;
        if take::<T>(number).is_some() {
            asked.row = number;
            return NEW;
        }
    }
    NONE
}

/// A row that may be taken: one that is over, or that which would be over first.
#[inline(always)]
fn choose<T: Table>(mut random: u32, now: u64) -> u32 {
    let mut least = Least::new();
    for looked_at in 0..LOOKED_AT {
        if looked_at == NEXT {
            go_elsewhere::<T>(random);
        }
        let number = if looked_at < NEXT { next::<T>() } else { random >> 8 } & T::mask();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        least = least.or(number, T::left(number, now));
        if least.left == 0 || looked_at + 1 >= NEXT && least.left <= SHORT {
            break;
        }
    }
    least.number
}

/// The number of the row that comes next. Two CPUs may come by the same one: the row's mark says whose it is.
#[inline(always)]
fn next<T: Table>() -> u32 {
    let (Some(cursor), Some(head)) = (CURSORS.get_ptr_mut(T::NUMBER), HEADS.get_ptr_mut(T::NUMBER)) else {
        return 0;
    };
    // SAFETY: elements of arrays, which never move; the cursor is this CPU's.
    unsafe {
        let mut number = *cursor;
        if number % CHUNK == 0 {
            number = atomic::add(head, CHUNK);
            T::fetch(number as u32);
        }
        *cursor = number + 1;
        number as u32
    }
}

/// Rows that last may be many one after the other: those that come next are others.
#[inline(always)]
fn go_elsewhere<T: Table>(random: u32) {
    if let (Some(cursor), Some(head)) = (CURSORS.get_ptr_mut(T::NUMBER), HEADS.get_ptr_mut(T::NUMBER)) {
        // SAFETY: as above. A chunk that another CPU takes at the same moment is taken twice, or by nobody.
        unsafe {
            head.write_volatile(u64::from(random >> 8) & !(CHUNK - 1));
            *cursor = 0;
        }
    }
}

/// Reads of a chunk's rows what whoever takes one will read, and their places in the index: none waits for another.
#[inline(always)]
pub fn fetch<T: Table>(first: u32) -> u32 {
    for number in 0..CHUNK as u32 {
        let Some(row) = T::row((first + number) & T::mask()) else { continue };
        // SAFETY: an element of an array, which never moves. Its last word is in another line than its mark.
        unsafe { (&raw const (*row.as_ptr()).value).cast::<u64>().add(4).read_volatile() };
        let mark = read_mark(row);
        if is_nobodys::<T>(row) {
            continue;
        }
        if let Some(line) = T::line(mark.line() & (T::mask() >> 3)) {
            read_place(line, mark.place());
        }
    }
    0
}

/// Whether the row is in no place of the index.
#[inline(always)]
fn is_nobodys<T: Table>(row: NonNull<Row<T::Key, T::Value>>) -> bool {
    // SAFETY: an element of an array, which never moves; what other CPUs write are whole numbers.
    unsafe { T::nanoseconds(&(*row.as_ptr()).key, &(*row.as_ptr()).value).0 == 0 }
}

/// A row that is this CPU's alone until it is published, or let go.
pub struct Taken<T: Table> {
    row: NonNull<Row<T::Key, T::Value>>,
    mark: Mark,
}

/// Takes a row, out of the index, too.
#[inline(always)]
fn take<T: Table>(number: u32) -> Option<Taken<T>> {
    if number == 0 {
        return None;
    }
    let row = T::row(number)?;
    let had = read_mark(row);
    if had.is_taken() || !exchange_mark(row, had, had.next()) {
        return None;
    }
    if is_nobodys::<T>(row) {
        return Some(Taken { row, mark: had.next() });
    }
    if let Some(line) = T::line(had.line() & (T::mask() >> 3)) {
        let there = read_place(line, had.place());
        // Only who has the row changes the place.
        if there & T::mask() == number {
            write_place(line, had.place(), 0);
        }
    }
    Some(Taken { row, mark: had.next() })
}

/// Takes the row that is held, which stays in the index. `None`: somebody else writes it, or it is another one.
#[inline(always)]
pub fn take_held<T: Table>(held: Held<T::Key, T::Value>) -> Option<Taken<T>> {
    let Held { row, mark } = held;
    exchange_mark(row, mark, mark.next()).then_some(Taken { row, mark: mark.next() })
}

/// The row that was reserved and is new, with its key.
#[inline(always)]
pub fn reserved<T: Table>(asked: &Asked) -> Option<Taken<T>> {
    let row = T::row(asked.row)?;
    write_key(row, &asked.words);
    Some(Taken { row, mark: read_mark(row) })
}

/// The row that was reserved and is the key's own.
#[inline(always)]
pub fn known<T: Table>(asked: &Asked) -> Option<Held<T::Key, T::Value>> {
    hold::<T>(asked.row, &asked.words)
}

/// What [`enter`] has done.
pub const LOST: u32 = 0;
pub const DONE: u32 = 1;
pub const AGAIN: u32 = 2;

/// Lets everybody find the row that was reserved and written, in a place of its line. [`AGAIN`]: another CPU was quicker to have the
/// place, and it was not the `last` try. [`LOST`]: the row is nobody's; so it is with `alone` where another CPU has entered the same key.
#[inline(always)]
pub fn enter<T: Table>(place: u32, last: bool, alone: bool) -> u32 {
    let Some(asked) = asked() else { return LOST };
    let mask = T::mask();
    let number = asked.line::<T>(mask);
    let (Some(line), Some(row)) = (T::line(number), T::row(asked.row)) else { return LOST };
    let mark = read_mark(row).next().at(number, place);
    write_mark(row, mark);
    if !exchange_place(line, place, 0, asked.spot.tag & !mask | asked.row) {
        if !exchange_mark(row, mark, mark.next()) {
            return LOST;
        }
        if !last {
            return AGAIN;
        }
        Taken::<T> { row, mark: mark.next() }.let_go();
        return LOST;
    }
    // Of two CPUs that have entered the same key, each sees the other's, or one does.
    if !alone || search::<T>(asked, asked.row) == 0 {
        return DONE;
    }
    if let Some(taken) = take::<T>(asked.row) {
        taken.let_go();
    }
    LOST
}

/// Whether the row that was reserved and written was entered, in steps: `room` finds a place where there was none, and `enter` does
/// what [`enter`] does.
#[inline(always)]
pub fn enter_in_steps(room: impl Fn() -> u32, enter: impl Fn(u32, u32) -> u32) -> bool {
    let Some(mut place) = asked().map(|asked| asked.empty) else { return false };
    for attempt in 1..=TRIES {
        if place >= PLACES as u32 {
            place = room();
        }
        let done = enter(place, (attempt == TRIES).into());
        if done != AGAIN {
            return done == DONE;
        }
        place = PLACES as u32;
    }
    false
}

/// Notes the row that comes next, for [`put_next`].
#[inline(always)]
pub fn choose_next<T: Table>(now: u64) {
    let Some(asked) = asked() else { return };
    let number = next::<T>() & T::mask();
    asked.next = if left::<T>(number, now) == 0 { number } else { 0 };
}

/// Gives the key that is asked for the row that was noted, where it is over, the key's own was looked for and not found, and its line has
/// room: as it is most often. Whether it was; if not, nothing has changed.
#[inline(always)]
pub fn put_next<T: Table>(write: impl FnOnce(&mut T::Value)) -> bool {
    let Some(asked) = asked().filter(|asked| asked.row == NOWHERE && asked.empty < PLACES as u32) else {
        return false;
    };
    let Some(mut taken) = take::<T>(asked.next & T::mask()) else { return false };
    write_key(taken.row, &asked.words);
    write(taken.value());
    asked.row = asked.next & T::mask();
    if enter::<T>(asked.empty, true, false) == DONE {
        return true;
    }
    asked.row = UNSOUGHT;
    false
}

/// An empty place in the line of the key that is asked for; [`PLACES`]: there is none.
#[inline(always)]
fn empty<T: Table>(asked: &Asked) -> u32 {
    let Some(line) = T::line(asked.line::<T>(T::mask())) else { return PLACES as u32 };
    let mut found = PLACES as u32;
    for place in 0..PLACES as u32 {
        if read_place(line, place) == 0 {
            found = place;
            break;
        }
    }
    forgotten(found.into()) as u32
}

/// A place in the line of the key that is asked for: an empty one, unless another CPU is quicker. In a full line, that row goes which
/// would be over first.
#[inline(always)]
pub fn room<T: Table>(now: u64) -> u32 {
    let Some(asked) = asked() else { return 0 };
    let place = empty::<T>(asked);
    let Some(line) = T::line(asked.line::<T>(T::mask())) else { return 0 };
    if place < PLACES as u32 {
        return place;
    }
    let mut least = Least::new();
    for place in 0..PLACES as u32 {
        least = least.or(place, T::left(read_place(line, place) & T::mask(), now));
    }
    let chosen = forgotten(least.number.into()) as u32;
    if let Some(taken) = take::<T>(read_place(line, chosen) & T::mask()) {
        taken.let_go();
    }
    chosen
}

impl<T: Table> Taken<T> {
    #[inline(always)]
    pub fn value(&mut self) -> &mut T::Value {
        // SAFETY: this CPU's alone; what others read of it they throw away.
        unsafe { &mut (*self.row.as_ptr()).value }
    }

    /// Lets those see what was written who find the row.
    #[inline(always)]
    pub fn publish(self) {
        write_mark(self.row, self.mark.next());
    }

    /// Makes the row one that anybody may take.
    #[inline(always)]
    fn let_go(mut self) {
        T::end(self.value());
        self.publish();
    }
}

#[inline(always)]
fn write_key<K, V>(row: NonNull<Row<K, V>>, words: &Words) {
    const { assert!(size_of::<K>() == size_of::<Words>()) };
    let key = row.as_ptr().cast::<u64>();
    for (index, word) in words.iter().enumerate() {
        // SAFETY: the key comes first in a row, and is of as many words, as asserted.
        unsafe { key.add(index).write_volatile(*word) };
    }
}

/// What is read after this is not older than what was read before.
#[inline(always)]
fn in_order() {
    if config().in_order == 0 {
        let mut word = 0;
        // SAFETY: a number of our own. The kernel's operations that fetch are ordered with everything.
        unsafe { atomic::add(&raw mut word, 0) };
    }
}

#[inline(always)]
fn is<K, V>(row: NonNull<Row<K, V>>, words: &Words) -> bool {
    const { assert!(size_of::<K>() == size_of::<Words>()) };
    // SAFETY: the key comes first in a row, and is of as many words, as asserted.
    let known = unsafe { row.as_ptr().cast::<Words>().read_volatile() };
    let mut different = known[0] ^ words[0];
    for index in 1..words.len() {
        let other = known[index] ^ words[index];
        // The compiler would make a branch of each word.
        // SAFETY: changes the one register.
        unsafe {
            asm!("{one} |= {other}", one = inout(reg) different, other = in(reg) other, options(nomem, nostack, preserves_flags, pure));
        }
    }
    different == 0
}

#[inline(always)]
fn mark_of<K, V>(row: NonNull<Row<K, V>>) -> *mut u64 {
    // SAFETY: an element of an array, which never moves.
    unsafe { (&raw mut (*row.as_ptr()).mark).cast() }
}

#[inline(always)]
fn read_mark<K, V>(row: NonNull<Row<K, V>>) -> Mark {
    // SAFETY: as above; an aligned word.
    Mark(unsafe { mark_of(row).read_volatile() })
}

#[inline(always)]
fn exchange_mark<K, V>(row: NonNull<Row<K, V>>, had: Mark, new: Mark) -> bool {
    // SAFETY: as above.
    unsafe { atomic::exchange(mark_of(row), had.0, new.0) }
}

/// Not before what was written until now is there.
#[inline(always)]
fn write_mark<K, V>(row: NonNull<Row<K, V>>, mark: Mark) {
    if config().in_order != 0 {
        // SAFETY: as above. Nothing is moved over this by the compiler.
        unsafe {
            asm!("", options(nostack, preserves_flags));
            mark_of(row).write_volatile(mark.0);
        }
        return;
    }
    // SAFETY: as above. The kernel's exchange is ordered with everything, as that of C is not on every machine.
    unsafe {
        asm!("{new} = xchg_64({word} + 0, {new})", word = in(reg) mark_of(row), new = inout(reg) mark.0 => _);
    }
}

#[inline(always)]
fn place_in(line: NonNull<Line>, place: u32) -> *mut u32 {
    // SAFETY: fewer than there are.
    unsafe { (&raw mut (*line.as_ptr()).places).cast::<u32>().add((place & 15) as usize) }
}

#[inline(always)]
fn read_place(line: NonNull<Line>, place: u32) -> u32 {
    // SAFETY: an aligned word of the kernel's element.
    unsafe { place_in(line, place).read_volatile() }
}

#[inline(always)]
fn write_place(line: NonNull<Line>, place: u32, number: u32) {
    // SAFETY: an aligned word of the kernel's element.
    unsafe { place_in(line, place).write_volatile(number) };
}

/// Puts another number in a place if the expected one is there; whether it was.
#[inline(always)]
fn exchange_place(line: NonNull<Line>, place: u32, had: u32, new: u32) -> bool {
    let mut found = u64::from(had);
    // SAFETY: as above.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32({place} + 0, w0, w2)",
            place = in(reg) place_in(line, place),
            in("r2") u64::from(new),
            inout("r0") found,
        );
    }
    found as u32 == had
}
