//! Short rulebooks, which are in the kernel twice: what packets find of them, and that the two stay one.

use std::{fs, sync::Arc};

use aya::maps::{Array, Map, MapData};
use weft_noded::{
    kernel::{Datapath as _, object::Object},
    plan::tables::{Step, SubjectRow},
};
use weft_shared::{
    layout::{
        Action, BOOK_ROWS_MAX, Book, CLASS_RULEBOOKS, PolicyRow, PortKey, Reason,
        maps::{self, BOOKS_BITS},
    },
    policy::compile::Rulebook,
};

use crate::{
    harness::{Datapath, from_endpoint},
    packets::{SYN, out_of},
    tables::Pins,
    world::{FAMILIES, WEB, WEB_PARTY, WEB_SLOT, WORLD_PARTY, tables},
};

/// Words of a [`Book`].
type Words = [u32; size_of::<Book>() / 4];

/// Of a number with the same place.
const OTHER: u32 = 1 << BOOKS_BITS;

/// Denies all TCP but these ports; rule numbers begin with the first.
fn only(ports: &[u16], rule: u32) -> Arc<Rulebook> {
    let allowed = ports.iter().map(|port| (PortKey::exact(6, *port), Action::Allow));
    let rows = [(PortKey::EVERYTHING, Action::Deny)].into_iter().chain(allowed);
    Arc::new(rows.zip(rule..).map(|((key, action), rule)| (key, PolicyRow::of(action, rule))).collect())
}

fn long(rule: u32) -> Arc<Rulebook> {
    let ports: Vec<u16> = (100..).take(BOOK_ROWS_MAX).collect();
    only(&ports, rule)
}

fn put(number: u32, rows: &Arc<Rulebook>) -> Step {
    Step::Rulebook { number, rows: Some(Arc::clone(rows)) }
}

fn places(pins: &Pins) -> Array<MapData, Words> {
    let pin = pins.path().join("maps").join(maps::BOOKS.pin);
    Array::try_from(Map::Array(MapData::from_pin(pin).unwrap())).unwrap()
}

/// Whose a place is, and how many rows are there.
fn whose(places: &Array<MapData, Words>, number: u32) -> (u32, u32) {
    let [number, rows, ..] = places.get(&Book::place(number), 0).unwrap();
    (number, rows)
}

fn rulebook(object: &mut Object, number: u32) -> Option<Arc<Rulebook>> {
    object.read_tables().unwrap().rulebooks.remove(&number)
}

#[test]
fn packets_find_rulebooks_that_are_short_long_or_without_a_place() {
    let mut datapath = Datapath::new();
    let books = [
        (2000, only(&[80], 10)),
        (2000 + OTHER, only(&[81, 443], 20)),
        (2001, long(30)),
        (2002, only(&[82], 50)),
    ];
    datapath.write(&books.each_ref().map(|(number, rows)| put(*number, rows)));
    for (round, (number, rows)) in (0..).zip(&books) {
        let row = tables().subjects[&WEB_SLOT];
        let row = SubjectRow { rulebooks: [*number; CLASS_RULEBOOKS], ..row };
        datapath.write(&[
            Step::Subject { slot: WEB_SLOT, subject: Some(row) },
            Step::Bump { subjects: vec![WEB_SLOT], nodes: vec![] },
        ]);
        for (family, port) in FAMILIES.into_iter().flat_map(|family| {
            [0, 79, 80, 81, 82, 99, 100, 105, 111, 112, 443, 65_535].map(|port| (family, port))
        }) {
            let allowed = rows.contains_key(&PortKey::exact(6, port));
            let expected = if allowed { Reason::DeliveredStack } else { Reason::PolicyDenied };
            let packet = out_of(WEB, WEB_PARTY, WORLD_PARTY, family).tcp(1000 + round, port, SYN);
            assert_eq!(datapath.fate(from_endpoint(WEB), &packet), expected, "{number}: port {port}");
        }
    }
}

#[test]
fn nobody_has_the_rulebook_of_an_empty_place() {
    let mut datapath = Datapath::new();
    let row = tables().subjects[&WEB_SLOT];
    let row = SubjectRow { rulebooks: [0; CLASS_RULEBOOKS], ..row };
    datapath.write(&[Step::Subject { slot: WEB_SLOT, subject: Some(row) }]);
    let packet = out_of(WEB, WEB_PARTY, WORLD_PARTY, FAMILIES[0]).tcp(1000, 0, SYN);
    assert_eq!(datapath.fate(from_endpoint(WEB), &packet), Reason::PolicyMissing);
}

#[test]
fn a_place_is_ones_until_it_goes_and_then_the_next_ones() {
    let pins = Pins::new();
    let mut object = pins.load();
    let (short, other) = (only(&[80], 1), only(&[81, 82], 4));
    object.write(&[put(7, &short), put(7 + OTHER, &other), put(8, &long(1))]).unwrap();
    let places = places(&pins);
    assert_eq!((whose(&places, 7), whose(&places, 8)), ((7, 2), (0, 0)));

    // One without a place leaves the place alone.
    object.write(&[Step::Rulebook { number: 7 + OTHER, rows: None }]).unwrap();
    assert_eq!(whose(&places, 7), (7, 2));
    object
        .write(&[Step::Rulebook { number: 7, rows: None }, Step::Rulebook { number: 8, rows: None }])
        .unwrap();
    assert_eq!(whose(&places, 7).0, 0);
    object.write(&[put(7 + OTHER, &other), put(8, &short)]).unwrap();
    assert_eq!((whose(&places, 7), whose(&places, 8)), ((7 + OTHER, 3), (8, 2)));

    // Another rulebook under the number, which has become too long.
    object.write(&[put(8, &long(1))]).unwrap();
    assert_eq!(whose(&places, 8).0, 0);
    assert_eq!(rulebook(&mut object, 8), Some(long(1)));
}

#[test]
fn a_daemon_that_finds_rulebooks_of_one_without_places_gives_them_places() {
    let pins = Pins::new();
    let short = only(&[80], 1);
    pins.load().write(&[put(7, &short), put(7 + OTHER, &short), put(8, &long(1))]).unwrap();
    fs::remove_file(pins.path().join("maps").join(maps::BOOKS.pin)).unwrap();
    let mut object = pins.load();
    let places = places(&pins);
    assert_eq!((whose(&places, 7), whose(&places, 8)), ((7, 2), (0, 0)));
    assert_eq!(rulebook(&mut object, 7), Some(short));

    // It keeps those of one that had them, whatever the order.
    object.write(&[Step::Rulebook { number: 7, rows: None }, put(7 + OTHER, &only(&[1], 9))]).unwrap();
    object.write(&[put(7, &only(&[2], 9))]).unwrap();
    drop(object);
    drop(pins.load());
    assert_eq!(whose(&places, 7), (7 + OTHER, 2));
}

#[test]
fn a_place_that_says_something_else_is_not_found_by_the_next_daemon() {
    let pins = Pins::new();
    pins.load().write(&[put(7, &only(&[80], 1))]).unwrap();
    let mut places = places(&pins);
    let mut words = places.get(&7, 0).unwrap();
    words[2] += 1;
    places.set(7, words, 0).unwrap();
    let mut object = pins.load();
    assert_eq!(whose(&places, 7).0, 0);
    assert_eq!(rulebook(&mut object, 7), Some(only(&[80], 1)));
}

#[test]
fn what_packets_find_in_a_place_is_what_is_read() {
    let pins = Pins::new();
    let mut object = pins.load();
    object.write(&[put(7, &only(&[80], 1))]).unwrap();
    let mut places = places(&pins);
    let mut words = places.get(&7, 0).unwrap();
    // Port 81.
    words[2] += 1;
    places.set(7, words, 0).unwrap();
    assert_eq!(rulebook(&mut object, 7), Some(only(&[81], 1)));
    // It goes with all that was ever written of it.
    object.write(&[Step::Rulebook { number: 7, rows: None }]).unwrap();
    assert_eq!((rulebook(&mut object, 7), whose(&places, 7).0), (None, 0));
}
