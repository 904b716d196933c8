//! The kernel programs, then everything that embeds them.
use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::{
    progress::{attempt, step},
    setup,
    toolchain::BpfCompiler,
    workspace::Workspace,
};

#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Optimised
    #[arg(long)]
    pub(crate) release: bool,
}

/// Sets up and builds everything.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let compiler = setup::run(workspace)?;
    println!("build");
    bpf(workspace, compiler)?;
    let mut build = cargo(workspace);
    build.args(["build", "--workspace", "--bins"]);
    if options.release {
        build.arg("--release");
    }
    step(workspace, "the workspace's binaries", &mut build)?;
    println!("  binaries are in {}", binaries(workspace, options.release).display());
    Ok(())
}

/// The folder that `run` leaves the binaries in.
pub(crate) fn binaries(workspace: &Workspace, release: bool) -> std::path::PathBuf {
    workspace.target.join(if release { "release" } else { "debug" })
}

/// Cargo for the workspace, told where the kernel programs are unless it would look there by itself: a plain
/// `cargo build` afterwards then finds everything built.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    if workspace.target != workspace.root.join("target") {
        cargo.env("WEFT_BPF_OBJECT", workspace.bpf_object());
    }
    cargo
}

/// Builds the kernel programs and puts the object where the daemon's build looks for it, and that of the benches beside.
pub(crate) fn bpf(workspace: &Workspace, compiler: BpfCompiler) -> Result<()> {
    let mut build = compiler.cargo(workspace, "build")?;
    build.args(["--release", "--message-format=json-render-diagnostics"]);
    let finished = attempt(workspace, "the kernel programs", &mut build)?;
    anyhow::ensure!(finished.status.success(), "the kernel programs do not build");
    for (name, object) in [("weft-bpf", workspace.bpf_object()), ("weft-bench", workspace.bench_object())] {
        let program = executable(&finished.log, name)
            .with_context(|| format!("cargo named no object of the kernel programs {name}"))?;
        install(Path::new(&program), &object)?;
    }
    Ok(())
}

/// The executable of a target that cargo's messages name.
fn executable(messages: &str, target: &str) -> Option<String> {
    let mut artifacts = messages.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    artifacts.find_map(|message| {
        let named = message.get("target")?.get("name")?.as_str()? == target;
        named.then_some(message.get("executable")?.as_str()?.to_owned())
    })
}

/// Copies unless it is the same already, so that an unchanged object rebuilds nothing.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, new).with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_object_is_the_executable_of_its_target_in_cargos_messages() {
        let log = concat!(
            "   Compiling weft-bpf v0.1.0\n",
            r#"{"reason":"compiler-artifact","target":{"name":"build-script-build"},"executable":"/t/script"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"weft-bpf"},"executable":"/t/weft-bpf"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"weft_shared"},"executable":null}"#,
            "\n",
        );
        assert_eq!(executable(log, "weft-bpf").as_deref(), Some("/t/weft-bpf"));
        assert_eq!(executable(log, "weft_shared"), None);
        assert_eq!(executable("nothing here\n", "weft-bpf"), None);
    }
}
