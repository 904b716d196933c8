use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    ops::Range,
};

use aya::{maps::MapInfo, programs::ProgramInfo};
use aya_obj::generated::bpf_insn;
use weft_noded::kernel::{
    cgroup::SOCKET_PROGRAMS,
    object::{Object, Options, PROGRAMS},
};
use weft_shared::layout::Config;

/// A seventh of what the kernel grants.
const INSTRUCTIONS_MAX: u32 = 1_000_000 / 7;
/// Bytes for a program and the functions that are called one inside of the other.
const STACK_MAX: u32 = 512;
/// Of which bytes kernel 6.1 takes each frame to be a multiple. Newer ones, as this machine's may be, are content with 16.
const FRAME: u32 = 32;

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
fn every_program_is_verified_in_a_seventh_of_what_the_kernel_grants() {
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

#[test]
fn every_program_has_room_on_the_stack_that_kernel_6_1_grants() {
    let bytes = fs::read(env!("WEFT_BPF_OBJECT")).unwrap();
    let mut object = aya_obj::Object::parse(&bytes).unwrap();
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).unwrap();
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        let starts = calls(code, 0..code.len()).collect();
        let stack = stack(code, &starts, 0);
        println!("{name}: {stack} bytes of stack");
        assert!(stack <= STACK_MAX, "{name}: {stack}");
    }
}

/// Of the function that begins there, and of what it calls.
fn stack(code: &[bpf_insn], starts: &BTreeSet<usize>, start: usize) -> u32 {
    let end = starts.range(start + 1..).next().copied().unwrap_or(code.len());
    let own = code[start..end].windows(2).filter_map(depth).max().unwrap_or(0);
    let called = calls(code, start..end).map(|called| stack(code, starts, called)).max();
    own.max(1).next_multiple_of(FRAME) + called.unwrap_or(0)
}

/// Where functions begin that are called from there.
fn calls(code: &[bpf_insn], range: Range<usize>) -> impl Iterator<Item = usize> {
    const CALL: u8 = 0x85;
    const FUNCTION: u8 = 1;
    range.filter(|at| code[*at].code == CALL && code[*at].src_reg() == FUNCTION).map(|at| {
        let away = isize::try_from(code[at].imm).unwrap();
        (at + 1).strict_add_signed(away)
    })
}

/// How far down the stack the second of two instructions reaches.
fn depth(instructions: &[bpf_insn]) -> Option<u32> {
    const STACK: u8 = 10;
    /// Adds a constant; copies a register.
    const ADD: u8 = 0x07;
    const MOVE: u8 = 0xbf;
    let [before, this] = instructions else { return None };
    let (loads, stores) = (this.code & 7 == 1, matches!(this.code & 7, 2 | 3));
    if loads && this.src_reg() == STACK || stores && this.dst_reg() == STACK {
        return Some(this.off.min(0).unsigned_abs().into());
    }
    let address = before.code == MOVE && before.src_reg() == STACK && before.dst_reg() == this.dst_reg();
    (address && this.code == ADD).then(|| this.imm.min(0).unsigned_abs())
}
