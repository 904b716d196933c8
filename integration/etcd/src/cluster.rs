//! Members that know each other.
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{member::Member, ports, wait::until};

const ELECTION: Duration = Duration::from_mins(1);
/// Somebody else may take a port between finding it free and listening on it.
const ATTEMPTS: usize = 5;

#[derive(Debug, Clone)]
pub struct Options {
    pub address: IpAddr,
    /// Where data and logs go and stay: an empty directory, since members come back on other ports. `None`: a temporary one.
    pub directory: Option<PathBuf>,
    /// Clients need a certificate of this authority.
    pub tls: Option<Tls>,
    /// More flags for every member.
    pub flags: Vec<String>,
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), directory: None, tls: None, flags: Vec::new() }
    }
}

#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    // After the members, so that nobody writes there any more.
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// Returns once all members serve.
    pub fn start(size: usize, options: &Options) -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::try_start(size, options) {
                Ok(cluster) => return Ok(cluster),
                Err(error) if format!("{error:#}").contains("address already in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn try_start(size: usize, options: &Options) -> Result<Self> {
        ensure!(size > 0, "a cluster has members");
        let temporary = if options.directory.is_none() { Some(tempfile::tempdir()?) } else { None };
        let directory = options.directory.as_deref().or(temporary.as_ref().map(TempDir::path));
        let directory = directory.context("a directory was just made")?;
        fs::create_dir_all(directory)?;
        let ports = ports::free(options.address, 3 * size)?;
        let places: Vec<Place> = ports
            .chunks_exact(3)
            .enumerate()
            .map(|(number, ports)| Place::new(number, options, ports))
            .collect();
        let mut members: Vec<Member> =
            places.iter().map(|place| place.member(&places, directory, options)).collect();
        // All of them first: none serves before a majority is there.
        for member in &mut members {
            member.spawn()?;
        }
        for member in &mut members {
            member.wait_healthy()?;
        }
        Ok(Self { members, _temporary: temporary })
    }

    /// Where clients reach its members.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The `number`th member, from 0.
    pub fn member(&mut self, number: usize) -> &mut Member {
        &mut self.members[number]
    }

    /// Which member leads; waits until one does.
    pub fn leader(&self) -> Result<usize> {
        until("etcd has a leader", ELECTION, || Ok(self.members.iter().position(Member::is_leader)))
    }
}

/// What a member is called and where it listens.
struct Place {
    name: String,
    client: String,
    peer: String,
    metrics: SocketAddr,
}

impl Place {
    fn new(number: usize, options: &Options, ports: &[u16]) -> Self {
        let at = |port| SocketAddr::new(options.address, port);
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        Self {
            name: format!("etcd-{number}"),
            client: format!("{scheme}://{}", at(ports[0])),
            peer: format!("http://{}", at(ports[1])),
            metrics: at(ports[2]),
        }
    }

    fn member(&self, all: &[Self], directory: &Path, options: &Options) -> Member {
        let cluster: Vec<_> = all.iter().map(|place| format!("{}={}", place.name, place.peer)).collect();
        let data = directory.join(&self.name);
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={}", self.client),
            format!("--advertise-client-urls={}", self.client),
            format!("--listen-peer-urls={}", self.peer),
            format!("--initial-advertise-peer-urls={}", self.peer),
            format!("--initial-cluster={}", cluster.join(",")),
            format!("--listen-metrics-urls=http://{}", self.metrics),
            "--logger=zap".to_owned(),
        ];
        if let Some(tls) = &options.tls {
            arguments.push("--client-cert-auth".to_owned());
            arguments.push(format!("--trusted-ca-file={}", tls.ca.display()));
            arguments.push(format!("--cert-file={}", tls.certificate.display()));
            arguments.push(format!("--key-file={}", tls.key.display()));
        }
        arguments.extend(options.flags.iter().cloned());
        Member {
            name: self.name.clone(),
            url: self.client.clone(),
            arguments,
            data,
            metrics: self.metrics,
            log: directory.join(format!("{}.log", self.name)),
            process: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_was_killed_comes_back_and_another_leads_meanwhile() {
        let mut etcd = Cluster::start(3, &Options::default()).unwrap();
        let leader = etcd.leader().unwrap();
        etcd.member(leader).kill().unwrap();
        assert_ne!(etcd.leader().unwrap(), leader);
        etcd.member(leader).start().unwrap();
        assert!(etcd.member(leader).is_running().unwrap());
    }

    #[test]
    fn a_member_that_cannot_start_says_why() {
        let options = Options { flags: vec!["--no-such-flag".to_owned()], ..Options::default() };
        let error = Cluster::start(1, &options).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-flag"), "{error:#}");
    }
}
