//! The cgroup of a node, whose processes reach services as those of a real host do. All nodes share the machine's hierarchy,
//! so each has a part of its own.
use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};
use weft_noded::kernel::cgroup::mounted;

use super::Home;
use crate::{limits::EXIT, wait};

const MEMBERS: &str = "cgroup.procs";

/// A cgroup below the hierarchy's root; the fleet's home removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(super) fn create(home: &Home, host: &str) -> Result<Self> {
        let path = root()?.join(home.netns(host));
        fs::create_dir(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where a host sees it.
    pub fn path_inside(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(self.path.file_name().unwrap_or_default())
    }

    /// This process becomes one of the node's: sockets that it makes from now on, in whatever namespace, are as those of the
    /// node's processes and workloads.
    pub fn enter(&self) -> Result<()> {
        join(&self.path, process::id())
    }

    /// This process is no node's any more: of sockets that it makes from now on no node's programs see anything.
    pub fn leave(&self) -> Result<()> {
        join(&root()?, process::id())
    }
}

pub(crate) fn join(cgroup: &Path, process: u32) -> Result<()> {
    let members = cgroup.join(MEMBERS);
    fs::write(&members, process.to_string()).with_context(|| format!("join {}", members.display()))
}

pub(crate) fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounted(&mounts).context("no cgroup2 hierarchy is mounted: mount -t cgroup2 none DIR")
}

/// Removes those of a fleet; who is in one goes back to the root.
pub(super) fn remove_all(fleet: &str) -> Result<()> {
    let root = root()?;
    let prefix = format!("{fleet}-");
    for entry in fs::read_dir(&root)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let path = entry.path();
        wait::until_true(&format!("{} is removed", path.display()), EXIT, || {
            for process in fs::read_to_string(path.join(MEMBERS))?.lines() {
                // Gone between the two is as good.
                let _ = join(&root, process.parse()?);
            }
            Ok(fs::remove_dir(&path).is_ok())
        })?;
    }
    Ok(())
}
