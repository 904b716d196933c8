//! The kernel's maps of services do what the twin's do.

use std::sync::Arc;

use weft_noded::{
    balance::tables::Step,
    kernel::{Datapath, cgroup::SOCKET_PROGRAMS, twin::Twin},
};
use weft_shared::{balance::table::Table, layout::service::Frontend};

use crate::world::{MANNER, TCP, UDP, World, backends, key, row, table};

/// With a table at times, never, and emptied.
const SLOTS: [u32; 6] = [0, 1, 2, 100, 899, 5000];

fn steps() -> Vec<Step> {
    let some = |table: Table| Some(Arc::new(table));
    let (one, two) = (table("10.1.0.", &[1, 2], 80), table("fd01::", &[1], 0));
    let many: Vec<_> = (100..900).map(|slot| (slot, some(table("10.1.0.", &[1, 2, 3], 80)))).collect();
    let last = u32::try_from(weft_shared::layout::maps::SERVICES_MAX).unwrap() - 1;
    vec![
        Step::Tables { tables: vec![(1, some(one.clone())), (2, some(two)), (last, some(one))] },
        Step::Frontend { key: key("10.96.0.1", 80, TCP), frontend: Some(row(1)) },
        Step::Frontend { key: key("fd96::1", 53, UDP), frontend: Some(row(2)) },
        Step::Tables { tables: vec![(1, some(Table::new(MANNER, backends("10.1.0.", &[2], 81))))] },
        Step::Frontend {
            key: key("10.96.0.1", 80, TCP),
            frontend: Some(Frontend { inside: 1, outside: 2, flags: 1 }),
        },
        Step::Tables { tables: many },
        Step::Frontend { key: key("fd96::1", 53, UDP), frontend: None },
        Step::Frontend { key: key("fd96::1", 53, UDP), frontend: None },
        Step::Tables { tables: (100..900).chain([2, 5000]).map(|slot| (slot, None)).collect() },
    ]
}

#[test]
fn every_step_leaves_in_the_kernel_what_it_leaves_in_the_twin() {
    let mut world = World::new();
    let mut twin = Twin::default();
    assert_eq!(world.services(), twin.read_services().unwrap());
    let empty = world.object.map_bytes().unwrap();
    for step in steps() {
        world.object.write_services(std::slice::from_ref(&step)).unwrap();
        twin.write_services(std::slice::from_ref(&step)).unwrap();
        assert_eq!(world.services(), twin.read_services().unwrap(), "{step:?}");
        for slot in SLOTS {
            let found = world.object.read_table(slot).unwrap();
            assert_eq!(found, twin.read_table(slot).unwrap(), "slot {slot} after {step:?}");
        }
    }
    world.restart();
    assert_eq!(world.services(), twin.read_services().unwrap());
    assert_eq!(world.object.read_table(1).unwrap(), twin.read_table(1).unwrap());
    let bytes = world.object.map_bytes().unwrap();
    // Two tables of a few elements: a page each, and the rows of their frontends.
    assert!((8192..65_536).contains(&(bytes - empty)), "{empty} {bytes}");
}

/// As of the other programs: kernel 6.1 would look at a search with branches for hours.
#[test]
fn every_socket_program_is_verified_in_a_tenth_of_what_the_kernel_grants() {
    let mut world = World::new();
    for name in SOCKET_PROGRAMS {
        let info = world.object.socket_program(name).unwrap().info().unwrap();
        let instructions = info.verified_instruction_count().unwrap();
        println!("{name}: {instructions} verified");
        assert!(instructions < 100_000, "{name}: {instructions}");
    }
}

#[test]
fn a_slot_beyond_the_last_is_an_error_that_names_a_map() {
    let mut world = World::new();
    let slot = u32::try_from(weft_shared::layout::maps::SERVICES_MAX).unwrap();
    let tables = vec![(slot, Some(Arc::new(table("10.1.0.", &[1], 80))))];
    let error = world.object.write_services(&[Step::Tables { tables }]).unwrap_err().to_string();
    assert!(error.contains("table_notes_v1"), "{error}");
}
