//! The programs under test.
use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

/// The folder that the workspace's binaries are in.
#[derive(Debug, Clone)]
pub struct Binaries(PathBuf);

impl Binaries {
    pub fn in_folder(folder: &Path) -> Result<Self> {
        for name in ["weft", "weft-controller", "weft-noded"] {
            let path = folder.join(name);
            ensure!(path.is_file(), "{} is not there: cargo xtask build", path.display());
        }
        Ok(Self(folder.to_path_buf()))
    }

    /// `WEFT_BINARIES`, or where the running test was built to.
    pub fn find() -> Result<Self> {
        Self::in_folder(&folder()?)
    }

    pub fn weft(&self) -> PathBuf {
        self.0.join("weft")
    }

    pub fn controller(&self) -> PathBuf {
        self.0.join("weft-controller")
    }

    pub fn noded(&self) -> PathBuf {
        self.0.join("weft-noded")
    }
}

/// `WEFT_BINARIES`, or where what runs was built to.
pub(crate) fn folder() -> Result<PathBuf> {
    let named = env::var_os("WEFT_BINARIES").map(PathBuf::from);
    let own = env::current_exe()?;
    // A test is in `deps`, a binary is beside the others.
    let beside = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    Ok(named.or(beside.map(Path::to_path_buf)).unwrap_or_default())
}
