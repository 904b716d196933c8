//! Which compiler builds the kernel programs: a nightly that can build `core` itself, or Debian's, which brings one.
use std::{path::Path, process::Command};

use anyhow::Result;

use crate::workspace::{Workspace, path_with};

/// The newest LLVM whose bitcode the pinned bpf-linker reads.
const LINKER_LLVM: u32 = 22;
/// The compiler of Debian's rustc-web. rustup's stays first in `PATH` for everything else.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's compiler finds its LLVM tools here.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const TARGET: &str = "bpfel-unknown-none";

/// A compiler for the BPF target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BpfCompiler {
    /// rustup's nightly with rust-src: `-Z build-std=core`.
    Nightly,
    Debian,
}

impl BpfCompiler {
    /// A nightly that works, else Debian's, whether it is installed yet or not.
    pub(crate) fn pick() -> Self {
        if nightly_can_build_core() { Self::Nightly } else { Self::Debian }
    }

    /// Whether Debian's compiler is there (on other systems: put there by hand).
    pub(crate) fn is_installed(self) -> bool {
        self == Self::Nightly || has_bpf_core(DEBIAN_RUSTC)
    }

    /// `cargo VERB … --target bpfel-unknown-none` in `bpf/`.
    pub(crate) fn cargo(self, workspace: &Workspace, verb: &str) -> Result<Command> {
        let mut cargo = workspace.cargo();
        match self {
            Self::Nightly => {
                cargo = Command::new("cargo");
                // `cargo` is rustup's proxy, unless the variable says which toolchain already runs.
                cargo
                    .env("RUSTUP_TOOLCHAIN", "nightly")
                    .env_remove("CARGO")
                    .arg(verb)
                    .args(["-Z", "build-std=core"]);
            }
            // The bootstrap variable lets a stable compiler accept what the BPF target needs.
            Self::Debian => {
                cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIAN_RUSTC).arg(verb);
            }
        }
        cargo
            .current_dir(workspace.bpf())
            .env("PATH", path_with(&[])?)
            .env("CARGO_TARGET_DIR", workspace.target.join("bpf-build"))
            .env_remove("RUSTFLAGS")
            .args(["--target", TARGET]);
        Ok(cargo)
    }
}

fn nightly_can_build_core() -> bool {
    let Some(version) = output("rustup", &["run", "nightly", "rustc", "-vV"]) else { return false };
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = llvm.and_then(|llvm| llvm.split('.').next()?.parse::<u32>().ok());
    let Some(root) = output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"]) else {
        return false;
    };
    let source = Path::new(root.trim()).join("lib/rustlib/src/rust/library/core");
    source.is_dir() && major.is_some_and(|major| major <= LINKER_LLVM)
}

fn has_bpf_core(rustc: &str) -> bool {
    output(rustc, &["--print", "target-libdir", "--target", TARGET])
        .is_some_and(|folder| Path::new(folder.trim()).is_dir())
}

/// Standard output of a program that succeeded.
pub(crate) fn output(name: &str, arguments: &[&str]) -> Option<String> {
    // `rustup run` and a plain `rustc` must not inherit the toolchain of the cargo that runs this xtask.
    let output = Command::new(name).args(arguments).env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
