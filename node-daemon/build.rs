//! Finds the object of the kernel programs, which is compiled by another toolchain, and hands its path to the crate.

use std::{env, path::PathBuf, process::ExitCode};

const OVERRIDE: &str = "WEFT_BPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let object =
        env::var_os(OVERRIDE).map_or_else(|| manifest.join("../target/bpf/weft-bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if let Ok(object) = object.canonicalize() {
        println!("cargo::rustc-env={OVERRIDE}={}", object.display());
        ExitCode::SUCCESS
    } else {
        println!(
            "cargo::error=the kernel programs are not built ({} is missing): run `cargo xtask build`, or name the object in {OVERRIDE}",
            object.display()
        );
        ExitCode::FAILURE
    }
}
