//! Installing Debian packages, as root or through sudo, never asking.
use std::{
    collections::BTreeSet,
    fs,
    io::{IsTerminal, stdin},
    path::Path,
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    packages::{Package, SERVICES},
    progress::step,
    workspace::{Workspace, program},
};

/// Whether this is Debian or built on it.
pub(crate) fn is_debian() -> bool {
    program("apt-get").is_some() && program("dpkg-query").is_some()
}

/// Those of the packages that are not installed.
pub(crate) fn missing(packages: &[Package]) -> Result<Vec<Package>> {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(packages.iter().map(|package| package.name))
        .output()?;
    // Its exit status is 1 as soon as one name is unknown; what it knows is printed all the same.
    let text = String::from_utf8_lossy(&query.stdout).into_owned();
    let installed: BTreeSet<_> = text.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(packages.iter().filter(|package| !installed.contains(package.name)).copied().collect())
}

/// Installs the packages that are missing. Does nothing, and is quick, when all are there.
pub(crate) fn install(workspace: &Workspace, packages: &[Package]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    println!("  missing: {}", names.join(" "));
    step(workspace, "apt-get update", as_root("apt-get")?.args(["update", "--quiet"]))?;
    let services = services_of(&missing);
    for service in &services {
        // Until the next boot at most, so that an installation that breaks off leaves nothing behind.
        let mut mask = as_root("systemctl")?;
        step(workspace, &format!("keep {service} from starting"), mask.args(["mask", "--runtime", service]))?;
    }
    let mut install = as_root("apt-get")?;
    install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&names);
    step(workspace, "apt-get install", &mut install)?;
    for service in &services {
        step(workspace, &format!("disable {service}"), as_root("systemctl")?.args(["disable", service]))?;
        let mut unmask = as_root("systemctl")?;
        step(workspace, &format!("unmask {service}"), unmask.args(["unmask", "--runtime", service]))?;
    }
    Ok(())
}

/// The services that installing these would start: Debian starts what it installs. None where systemd does not run.
fn services_of(packages: &[Package]) -> Vec<&'static str> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Vec::new();
    }
    let brought = SERVICES.iter().filter(|(name, _)| packages.iter().any(|package| package.name == *name));
    brought.map(|(_, service)| *service).collect()
}

/// The command, through sudo unless this is root already.
pub(crate) fn as_root(name: &str) -> Result<Command> {
    let mut command = if is_root() {
        Command::new("env")
    } else if program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        if !stdin().is_terminal() {
            sudo.arg("--non-interactive");
        }
        sudo.arg("env");
        sudo
    } else {
        bail!("{name} needs root: there is no sudo, so run this as root");
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", name]);
    Ok(command)
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    // The second number of the line is the effective user id.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    uids.split_whitespace().nth(1) == Some("0")
}
