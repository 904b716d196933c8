use std::{collections::BTreeMap, fs::File};

use aya::{maps::MapInfo, programs::ProgramInfo};
use weft_noded::kernel::{
    cgroup::SOCKET_PROGRAMS,
    object::{Object, Options, PROGRAMS},
};
use weft_shared::layout::Config;

/// An eighth of what the kernel grants.
const INSTRUCTIONS_MAX: u32 = 125_000;

fn load() -> Object {
    let options = Options { directory: None, config: Config::DEFAULT, flows_max: Some(1024) };
    Object::load(&options).expect("the object loads (tests need root)")
}

/// Those that are loaded when something needs them.
fn late(object: &mut Object) -> Vec<(&'static str, ProgramInfo)> {
    let mut programs = vec![("xdp_uplink", object.uplink_program().unwrap().info().unwrap())];
    for name in SOCKET_PROGRAMS {
        programs.push((name, object.socket_program(name).unwrap().info().unwrap()));
    }
    let (noting, pacing) = object.pacing_programs().unwrap();
    programs.extend([("sock_made", noting.info().unwrap()), ("sock_paced", pacing.info().unwrap())]);
    programs
}

/// The numbers of the maps that a program uses, by their names.
fn maps(program: &ProgramInfo) -> BTreeMap<String, u32> {
    let ids = program.map_ids().unwrap().expect("this kernel tells them");
    let name = |id| MapInfo::from_id(id).unwrap().name_as_str().unwrap().to_owned();
    ids.into_iter().map(|id| (name(id), id)).collect()
}

#[test]
fn every_program_is_verified_in_an_eighth_of_what_the_kernel_grants() {
    let mut object = load();
    let mut programs = late(&mut object);
    programs.extend(PROGRAMS.map(|name| (name, object.program(name).unwrap().info().unwrap())));
    for (name, info) in programs {
        let instructions = info.verified_instruction_count().unwrap();
        println!("{name}: {instructions} verified, {:?} bytes translated", info.size_translated());
        assert!(instructions < INSTRUCTIONS_MAX, "{name}: {instructions}");
    }
}

#[test]
fn programs_that_are_loaded_late_use_the_maps_of_those_that_were_loaded_first() {
    let mut object = load();
    drop((object.events().unwrap(), object.switch().unwrap()));
    // They would take the numbers of descriptors that somebody had closed.
    let _open: Vec<File> = (0..64).map(|_| File::open("/dev/null").unwrap()).collect();
    let mut known = BTreeMap::new();
    for name in PROGRAMS {
        known.extend(maps(&object.program(name).unwrap().info().unwrap()));
    }
    let first = known.clone();
    for (name, info) in late(&mut object) {
        for (map, id) in maps(&info) {
            let expected = *known.entry(map.clone()).or_insert(id);
            assert_eq!(id, expected, "{name} uses another {map}");
        }
    }
    assert!(first.contains_key("SERVICES") && known.len() > first.len(), "{first:?}; {known:?}");
}
