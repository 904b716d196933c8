//! The table of connections to services whose packets are translated one by one: `weft_shared::layout::Connection`.

use core::ptr::NonNull;

use weft_shared::layout::{
    Connection, ConnectionKey, ConnectionRow, connection_nanoseconds,
    maps::CONNECTIONS_MAX,
    table::{Line, spot},
};

use crate::{
    maps::{CONNECTION_INDEX, CONNECTIONS, config},
    table::{self, Asked, Table},
};

/// What is remembered of a packet's connection. Shared with other CPUs, and if it goes to another connection meanwhile, what is read
/// from it may be that one's: one that has been used within minutes does not go while there are others.
#[inline(always)]
pub fn find(key: &ConnectionKey) -> Option<NonNull<Connection>> {
    ask_for_connection(key);
    let number = search_connections();
    let row = Connections::row(number)?;
    if number == 0 {
        return None;
    }
    // SAFETY: an element of an array, which never moves.
    NonNull::new(unsafe { &raw mut (*row.as_ptr()).value })
}

/// Asks for a row that most likely is not there, and will be: while its line of the index comes, other things may be done. Nothing else
/// may be asked for until it is written.
#[inline(always)]
pub fn expect(key: &ConnectionKey) {
    if let Some(asked) = ask(key) {
        asked.touch::<Connections>();
    }
}

/// The row that is expected, if it is there: see [`find`].
#[inline(always)]
pub fn find_expected() -> Option<NonNull<Connection>> {
    table::seek::<Connections>(table::asked()?);
    found()
}

/// The row that was found last.
#[inline(always)]
pub fn found() -> Option<NonNull<Connection>> {
    let held = table::known::<Connections>(table::asked()?)?;
    // SAFETY: an element of an array, which never moves.
    NonNull::new(unsafe { &raw mut (*held.row.as_ptr()).value })
}

/// The same, at once where the row is the first that may be the key's, as most are.
#[inline(always)]
pub fn find_near(key: &ConnectionKey) -> Option<NonNull<Connection>> {
    let mut words = [0; 5];
    for (index, word) in words.iter_mut().enumerate() {
        *word = word_of(key, index);
    }
    let spot = spot(words, config().seed);
    let number = table::first::<Connections>(spot.line & (Connections::mask() >> 3), spot.tag);
    if number == 0 {
        return None;
    }
    match table::hold::<Connections>(number & Connections::mask(), &words) {
        // SAFETY: an element of an array, which never moves.
        Some(held) => NonNull::new(unsafe { &raw mut (*held.row.as_ptr()).value }),
        None => find(key),
    }
}

#[inline(always)]
fn word_of(key: &ConnectionKey, index: usize) -> u64 {
    const { assert!(size_of::<ConnectionKey>() == 40 && align_of::<ConnectionKey>() == align_of::<u64>()) };
    // SAFETY: of as many words, as asserted.
    unsafe { core::ptr::from_ref(key).cast::<u64>().add(index).read_volatile() }
}

/// Whether the row is there now, where there was none. Of several CPUs that add rows of one key, at most one is told so.
#[inline(always)]
pub fn add(key: &ConnectionKey, row: &Connection) -> bool {
    write(key, row, true)
}

/// Whether the row is there now.
#[inline(always)]
pub fn put(key: &ConnectionKey, row: &Connection) -> bool {
    write(key, row, false)
}

/// One step after the other, and not one in the other, for the stack's sake.
#[inline(always)]
fn write(key: &ConnectionKey, row: &Connection, only_new: bool) -> bool {
    ask_for_connection(key);
    write_asked(row, only_new)
}

/// Chooses where the row is written that is expected, for [`put_next`].
#[inline(always)]
pub fn choose_next(now: u64) {
    table::choose_next::<Connections>(now);
}

/// Whether the row is there now that was looked for last, and not found, where that is simple. If not, [`put_sought`] does it.
#[inline(always)]
pub fn put_next(row: &Connection) -> bool {
    table::put_next::<Connections>(|value| copy(value, row))
}

/// Whether the row is there now that was looked for last.
#[inline(always)]
pub fn put_sought(row: &Connection) -> bool {
    write_asked(row, false)
}

#[inline(always)]
fn write_asked(row: &Connection, only_new: bool) -> bool {
    match reserve_connection(row.seen_at) {
        table::KNOWN => !only_new && write_connection(row, table::KNOWN) != 0,
        table::NEW => {
            write_connection(row, table::NEW) != 0
                && table::enter_in_steps(
                    || room_for_connection(row.seen_at),
                    |place, last| enter_connection(place, last, only_new.into()),
                )
        }
        _ => false,
    }
}

enum Connections {}

impl Table for Connections {
    type Key = ConnectionKey;
    type Value = Connection;
    const NUMBER: u32 = 1;

    #[inline(always)]
    fn line(number: u32) -> Option<NonNull<Line>> {
        NonNull::new(CONNECTION_INDEX.get_ptr_mut(number)?)
    }

    #[inline(always)]
    fn row(number: u32) -> Option<NonNull<ConnectionRow>> {
        NonNull::new(CONNECTIONS.get_ptr_mut(number)?)
    }

    #[inline(always)]
    fn mask() -> u32 {
        const { assert!(CONNECTIONS_MAX.is_power_of_two()) };
        CONNECTIONS_MAX as u32 - 1
    }

    #[inline(always)]
    fn nanoseconds(key: &ConnectionKey, connection: &Connection) -> (u64, u64) {
        (connection.seen_at, connection_nanoseconds(key.protocol, connection.flags))
    }

    #[inline(always)]
    fn left(number: u32, now: u64) -> u64 {
        connection_left(number, now)
    }

    #[inline(always)]
    fn fetch(first: u32) -> u32 {
        fetch_connections(first)
    }

    #[inline(always)]
    fn end(connection: &mut Connection) {
        connection.seen_at = 0;
    }
}

table::functions!(Connections:
    search_connections, connection_left, fetch_connections, reserve_connection, room_for_connection,
    enter_connection
);

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ask_for_connection(key: *const ConnectionKey) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    unsafe { key.as_ref() }.and_then(ask).is_some().into()
}

#[inline(always)]
fn ask(key: &ConnectionKey) -> Option<&'static Asked> {
    let asked = table::asked()?;
    for index in 0..5 {
        asked.put(index, word_of(key, index));
    }
    asked.find_spot();
    Some(asked)
}

/// Word by word: of a copy of memory the compiler makes a call, which goes byte by byte.
#[inline(always)]
fn copy(to: &mut Connection, from: &Connection) {
    const WORDS: usize = size_of::<Connection>() / 8;
    const { assert!(size_of::<Connection>() == WORDS * 8 && align_of::<Connection>() == align_of::<u64>()) };
    for index in 0..WORDS {
        // SAFETY: as many words, as asserted.
        unsafe {
            let word = core::ptr::from_ref(from).cast::<u64>().add(index).read_volatile();
            core::ptr::from_mut(to).cast::<u64>().add(index).write_volatile(word);
        }
    }
}

/// Writes the row that was reserved.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_connection(row: *const Connection, how: u32) -> u32 {
    // SAFETY: as above.
    let (Some(row), Some(asked)) = (unsafe { (row.as_ref(), table::asked()) }) else { return 0 };
    if how == table::NEW {
        let Some(mut taken) = table::reserved::<Connections>(asked) else { return 0 };
        copy(taken.value(), row);
        return 1;
    }
    // Where that fails, another CPU writes what becomes of the same packets.
    if let Some(held) = table::known::<Connections>(asked)
        && let Some(mut taken) = table::take_held::<Connections>(held)
    {
        copy(taken.value(), row);
        taken.publish();
    }
    1
}
