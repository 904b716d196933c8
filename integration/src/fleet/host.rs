//! A machine of a fleet: a network namespace, and a mount namespace of its own with private bpffs, `/run` and
//! `/var/lib`, the machine's cgroups, so that the daemons run in it with the paths they have on a real host.
use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{
    home::Home,
    process::Process,
    system::{run, tool},
};
use crate::{limits::READY, traffic::Namespace, wait};

/// Runs in the new mount namespace. `/run` keeps the real one's named namespaces, as a slave mount: those made later
/// appear, those deleted go. `--no-mtab`: `/run` is where mount would keep its table.
const HOLD: &str = "
set -e
mount --no-mtab -t tmpfs -o mode=755 weft /mnt
mkdir /mnt/netns /mnt/weft
mount --no-mtab --rbind /run/netns /mnt/netns
mount --no-mtab --move /mnt /run
mount --no-mtab -t tmpfs -o mode=755 weft /var/lib
mount --no-mtab -t bpf bpf /sys/fs/bpf
mount --no-mtab -t cgroup2 weft /sys/fs/cgroup
ip link set lo up
echo holding
exec sleep infinity
";

/// A machine: a namespace with processes in it.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: String,
    /// Keeps the mount namespace, and with it what is pinned in bpffs, while daemons come and go.
    holder: Process,
}

impl Host {
    pub fn create(home: &Home, name: &str) -> Result<Self> {
        let netns = home.netns(name);
        run(tool("ip").args(["netns", "add", &netns]))?;
        let mut hold = tool("setpriv");
        hold.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &netns, "sh", "-c", HOLD]);
        let mut holder = Process::spawn(hold, &home.log(&format!("{name}-host")))?;
        wait::until_true(&format!("host {name} is made"), READY, || {
            if let Some(status) = holder.ended()? {
                anyhow::bail!("making host {name}: {status}\n{}", holder.log_tail());
            }
            Ok(holder.output().contains("holding"))
        })?;
        Ok(Self { name: name.to_owned(), netns, holder })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn netns(&self) -> &str {
        &self.netns
    }

    pub fn namespace(&self) -> Result<Namespace> {
        Namespace::open(&self.netns)
    }

    /// A command that runs inside; killed with the thread that starts it, so that nothing outlives a killed test.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = tool("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", "--net", "--mount", "--target"]);
        command.arg(self.holder.pid().to_string()).arg("--").arg(program.into()).env("NO_COLOR", "1");
        command
    }

    /// A command in this host's network alone, with the files of the machine: an operator, not a daemon.
    pub fn network_command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = tool("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg("--")
            .arg(program.into())
            .env("NO_COLOR", "1");
        command
    }

    /// Runs a system tool inside, to its end; its standard output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments)).with_context(|| format!("on {}", self.name))
    }

    /// A file inside, seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.holder.pid()))
    }

    /// What a person types to look around inside.
    pub fn enter(&self) -> String {
        format!("nsenter --net --mount --target {}", self.holder.pid())
    }
}
