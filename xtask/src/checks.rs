//! Checks that need no test runner: formatting, lints, licences.
use std::process::Command;

use anyhow::Result;

use crate::{
    build,
    progress::{attempt, step},
    summary::Counts,
    toolchain::BpfCompiler,
    workspace::{Workspace, program},
};

const CHECK: [&str; 4] = ["--check", "--", "--color", "never"];

/// rustfmt and clippy, which rustup's minimal profile lacks.
pub(crate) fn install_tools(workspace: &Workspace) -> Result<()> {
    let works = |tool: &str| {
        workspace.cargo().args([tool, "--version"]).output().is_ok_and(|ran| ran.status.success())
    };
    if works("fmt") && works("clippy") {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    step(
        workspace,
        "rustup component add rustfmt clippy",
        add.args(["component", "add", "rustfmt", "clippy"]),
    )?;
    Ok(())
}

/// Both lock files' packages are formatted.
pub(crate) fn format(workspace: &Workspace) -> Result<Counts> {
    let mut counts = check(workspace, "formatting", workspace.cargo().args(["fmt", "--all"]).args(CHECK))?;
    let mut bpf = workspace.cargo();
    // Without --all, which takes in what it depends on by path: the workspace.
    bpf.current_dir(workspace.bpf()).arg("fmt").args(CHECK);
    counts += check(workspace, "formatting of the kernel programs", &mut bpf)?;
    Ok(counts)
}

/// clippy finds nothing in the workspace; nor in the kernel programs, where a clippy for their compiler exists.
pub(crate) fn lints(workspace: &Workspace, compiler: BpfCompiler) -> Result<Counts> {
    let mut clippy = build::cargo(workspace);
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    let mut counts = check(workspace, "clippy", &mut clippy)?;
    if compiler == BpfCompiler::Nightly {
        let mut clippy = compiler.cargo(workspace, "clippy")?;
        clippy.args(["--release", "--", "-D", "warnings"]);
        counts += check(workspace, "clippy on the kernel programs", &mut clippy)?;
    } else {
        println!("  clippy on the kernel programs: not run, Debian's compiler for them has none");
    }
    Ok(counts)
}

/// Licences, bans and sources of dependencies. Building cargo-deny takes longer than all else here, so it is used
/// where it is installed.
pub(crate) fn dependencies(workspace: &Workspace) -> Result<Counts> {
    if program("cargo-deny").is_none() {
        println!(
            "  licences and duplicates: not run, cargo-deny is not installed (cargo install cargo-deny --locked)"
        );
        return Ok(Counts::default());
    }
    let mut deny = workspace.cargo();
    deny.args(["deny", "--workspace", "check", "bans", "licenses", "sources"]);
    check(workspace, "licences and duplicates", &mut deny)
}

fn check(workspace: &Workspace, label: &str, command: &mut Command) -> Result<Counts> {
    Ok(Counts::one(attempt(workspace, label, command)?.status.success()))
}
