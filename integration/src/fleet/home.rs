//! The folder of a fleet, its names, and sweeping what a killed run left behind.
//!
//! A fleet holds a lock on a file in its folder as long as its process lives: a folder whose lock is free belongs to a
//! run that ended without cleaning up.
use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use super::{
    cgroup,
    system::{run, tool},
};
use crate::{limits::EXIT, wait};

const FOLDER: &str = "/run/weft-fleets";
const LOCK: &str = "lock";

static FLEETS: AtomicU32 = AtomicU32::new(0);

/// The folder of one fleet; removed with all its namespaces when dropped.
#[derive(Debug)]
pub struct Home {
    name: String,
    path: PathBuf,
    _lock: File,
}

impl Home {
    /// Sweeps leftovers of killed runs and makes a folder with a name that no other fleet has.
    pub fn create(test: &str) -> Result<Self> {
        ensure!(geteuid().is_root(), "fleets need root: cargo xtask test asks for it through sudo");
        sweep()?;
        let name = format!("weft-{test}-{}-{}", process::id(), FLEETS.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(FOLDER).join(&name);
        // Under another name until it is locked: who sweeps would take it for a leftover.
        let unlocked = Path::new(FOLDER).join(format!("new-{name}"));
        create_folder(&unlocked)?;
        let lock = File::create(unlocked.join(LOCK))?;
        lock.lock()?;
        fs::rename(&unlocked, &path)?;
        Ok(Self { name, path, _lock: lock })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of a namespace of this fleet.
    pub fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    pub fn log(&self, what: &str) -> PathBuf {
        self.path.join(format!("{what}.log"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name, &self.path) {
            eprintln!("cleaning up {}: {error:#}", self.name);
        }
    }
}

/// The last fleet of another process may remove the folder of all between the two steps of this.
fn create_folder(path: &Path) -> Result<()> {
    wait::until(&format!("{} is made", path.display()), EXIT, || match fs::create_dir_all(path) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("create {}", path.display())),
    })
}

/// Removes what runs left behind whose process is gone.
pub fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(FOLDER) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // No lock file yet, or gone already: another process is at it.
        let Ok(lock) = File::options().write(true).open(path.join(LOCK)) else { continue };
        if name.starts_with("weft-") && lock.try_lock().is_ok() {
            remove(&name, &path).with_context(|| format!("sweep {name}"))?;
        }
    }
    Ok(())
}

fn remove(fleet: &str, path: &Path) -> Result<()> {
    let prefix = format!("{fleet}-");
    for netns in namespaces()?.iter().filter(|netns| netns.starts_with(&prefix)) {
        end_processes(netns)?;
        run(tool("ip").args(["netns", "delete", netns]))?;
    }
    cgroup::remove_all(fleet)?;
    fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
    // Only the last fleet can remove the folder of all.
    let _ = fs::remove_dir(FOLDER);
    Ok(())
}

/// Names of all namespaces of this machine.
pub fn namespaces() -> Result<Vec<String>> {
    let list = run(tool("ip").args(["netns", "list"]))?;
    Ok(list.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect())
}

/// Ends every process in a namespace of ours. Threads of this process that serve in it don't count: `ip` looks at
/// main threads.
fn end_processes(netns: &str) -> Result<()> {
    wait::until_true(&format!("the processes in {netns} have ended"), EXIT, || {
        let pids = run(tool("ip").args(["netns", "pids", netns]))?;
        for pid in pids.split_whitespace() {
            // Gone between the two calls is as good.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        Ok(pids.trim().is_empty())
    })
}
