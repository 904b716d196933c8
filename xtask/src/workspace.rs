//! Where things are: the source tree and the build outputs.
use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result};

/// The source tree this xtask was built from, and where it builds to.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// `CARGO_TARGET_DIR`, or `target` in the root.
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        // Said by the `cargo run` that started this; what was compiled in goes stale when the tree is moved.
        let here = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = here.parent().context("xtask lies in the workspace's root")?.to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(path) => env::current_dir()?.join(path),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The kernel programs: a package of their own, with another compiler.
    pub(crate) fn bpf(&self) -> PathBuf {
        self.root.join("bpf")
    }

    /// Where the daemon's build finds the kernel programs.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf/weft-bpf.o")
    }

    /// What the benches load beside it.
    pub(crate) fn bench_object(&self) -> PathBuf {
        self.target.join("bpf/weft-bench.o")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.target.join("xtask-logs")
    }

    /// Cargo with this workspace's toolchain, in its root, building to its target directory.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // Set by the `cargo run` that started this xtask; it would make a build script rebuild.
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
            cargo.env_remove(name);
        }
        cargo
    }
}

/// Where a program is, in `PATH` or among cargo's installed ones.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_bin())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Cargo's folder of installed programs, which need not be in `PATH`.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    Some(home?.join("bin"))
}

/// `PATH` with folders put before it and cargo's own after it.
pub(crate) fn path_with(first: &[&str]) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = first.iter().map(PathBuf::from).chain(env::split_paths(&path)).chain(cargo_bin());
    env::join_paths(folders).context("a folder in PATH has a colon in its name")
}
