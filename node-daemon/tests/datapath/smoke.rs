use weft_noded::kernel::{Datapath as _, object::{Object, Options, PROGRAMS}};
use weft_shared::layout::Config;

#[test]
fn every_program_passes_the_verifier() {
    let mut object = Object::load(&Options { directory: None, config: Config::DEFAULT, flows_max: Some(1024) }).unwrap();
    for name in PROGRAMS {
        let info = object.program(name).unwrap().info().unwrap();
        println!("{name}: {:?} verified, {:?} bytes translated, jited {:?}", info.verified_instruction_count(), info.size_translated(), info.size_jitted());
    }
    println!("{} bytes of maps", object.map_bytes().unwrap());
}
