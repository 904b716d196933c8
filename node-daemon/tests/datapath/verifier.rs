use weft_noded::kernel::object::{Object, Options, PROGRAMS};
use weft_shared::layout::Config;

/// An eighth of what the kernel grants.
const INSTRUCTIONS_MAX: u32 = 125_000;

#[test]
fn every_program_is_verified_in_an_eighth_of_what_the_kernel_grants() {
    let options = Options { directory: None, config: Config::DEFAULT, flows_max: Some(1024) };
    let mut object = Object::load(&options).expect("the object loads (tests need root)");
    for name in PROGRAMS {
        let info = object.program(name).unwrap().info().unwrap();
        let instructions = info.verified_instruction_count().unwrap();
        println!("{name}: {instructions} verified, {:?} bytes translated", info.size_translated());
        assert!(instructions < INSTRUCTIONS_MAX, "{name}: {instructions}");
    }
    let info = object.uplink_program().unwrap().info().unwrap();
    let instructions = info.verified_instruction_count().unwrap();
    println!("xdp_uplink: {instructions} verified, {:?} bytes translated", info.size_translated());
    assert!(instructions < INSTRUCTIONS_MAX, "xdp_uplink: {instructions}");
}
