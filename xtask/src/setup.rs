//! Everything a fresh machine lacks: Debian packages and bpf-linker.
use anyhow::{Result, bail};

use crate::{
    debian,
    packages::{BASE, BPF_COMPILER, BPF_LINKER, Package},
    progress::step,
    stopwatch::Stopwatch,
    toolchain::{BpfCompiler, LLVM_PREFIX, output},
    workspace::{Workspace, path_with, program},
};

const BPF_LINKER_VERSION: &str = "0.13.0";

/// Installs what is missing and answers with the compiler to build the kernel programs with.
pub(crate) fn run(workspace: &Workspace) -> Result<BpfCompiler> {
    let watch = Stopwatch::start();
    println!("setup");
    let compiler = BpfCompiler::pick();
    if debian::is_debian() {
        debian::install(workspace, &wanted(compiler))?;
    } else {
        check_by_hand(compiler)?;
    }
    if !has_bpf_linker() {
        install_bpf_linker(workspace)?;
    }
    println!("  all there ({:.1} s)", watch.seconds());
    Ok(compiler)
}

fn wanted(compiler: BpfCompiler) -> Vec<Package> {
    let mut packages = BASE.to_vec();
    if compiler == BpfCompiler::Debian {
        packages.extend(BPF_COMPILER);
    }
    if !has_bpf_linker() {
        packages.extend(BPF_LINKER);
    }
    packages
}

fn has_bpf_linker() -> bool {
    program("bpf-linker")
        .and_then(|path| output(&path.to_string_lossy(), &["--version"]))
        .is_some_and(|version| version.trim().ends_with(BPF_LINKER_VERSION))
}

fn install_bpf_linker(workspace: &Workspace) -> Result<()> {
    let mut install = workspace.cargo();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--force"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env("PATH", path_with(&["/usr/lib/llvm-22/bin"])?);
    step(workspace, "build and install bpf-linker", &mut install)?;
    Ok(())
}

/// Not Debian: nothing is installed; says exactly what to put there.
fn check_by_hand(compiler: BpfCompiler) -> Result<()> {
    let mut lacking = Vec::new();
    let tools = [
        ("cc", "a C compiler"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("etcd", "etcd 3.4 or later"),
        ("protoc", "protobuf"),
    ];
    for (tool, what) in tools {
        if program(tool).is_none() {
            lacking.push(format!("{what} (the program {tool})"));
        }
    }
    if !compiler.is_installed() {
        lacking.push(
            "a compiler for the kernel programs: rustup toolchain install nightly --component rust-src"
                .into(),
        );
    }
    if !has_bpf_linker() {
        let version = BPF_LINKER_VERSION;
        lacking.push(format!(
            "LLVM 22 with its headers and libPolly, zstd, libxml2 and zlib, then: LLVM_PREFIX=<where LLVM 22 is> \
             cargo install bpf-linker --version {version} --no-default-features --features llvm-22"
        ));
    }
    if lacking.is_empty() {
        return Ok(());
    }
    println!("This is not Debian, so nothing is installed for you. On Debian these would be:");
    for package in wanted(compiler) {
        println!("  {:<26} {}", package.name, package.purpose);
    }
    bail!("please install:\n  - {}", lacking.join("\n  - "));
}
