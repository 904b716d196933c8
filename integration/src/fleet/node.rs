//! A node: a host with a daemon, and the workloads that are attached to it.
use std::{path::PathBuf, process::ExitStatus};

use anyhow::{Context, Result, ensure};
use weft_proto::v1::{StatusRequest, StatusResponse, node_local_service_client::NodeLocalServiceClient};

use super::{Answer, Binaries, Cgroup, Controller, Home, Host, Place, Process, UPLINK};

/// Where the daemon answers, inside.
const SOCKET: &str = "/run/weft/noded.sock";

/// A host with a node daemon process.
#[derive(Debug)]
pub struct Node {
    place: Place,
    process: Option<Process>,
    binaries: Binaries,
    log: PathBuf,
    cgroup: Cgroup,
    labels: Vec<String>,
    // After its process: what it runs in ends last.
    host: Host,
}

impl Node {
    pub fn start(home: &Home, host: Host, place: Place, binaries: &Binaries) -> Result<Self> {
        let log = home.log(&format!("noded-{}", host.name()));
        let cgroup = Cgroup::create(home, host.name())?;
        let mut node =
            Self { place, labels: Vec::new(), process: None, binaries: binaries.clone(), log, cgroup, host };
        node.run()?;
        Ok(node)
    }

    /// Starts the daemon (again), with the state it had.
    pub fn run(&mut self) -> Result<()> {
        let mut command = self.host.command(self.binaries.noded());
        command.args(["--name", self.host.name(), "--controller", &Controller::server(), "--uplink", UPLINK]);
        command.args(["--address", &self.place.v4().to_string(), "--address", &self.place.v6().to_string()]);
        command.arg("--cgroup").arg(self.cgroup.path_inside());
        for label in &self.labels {
            command.args(["--label", label]);
        }
        self.process = Some(Process::spawn(command, &self.log)?);
        Ok(())
    }

    /// Labels for the daemon that is started next, each KEY=VALUE.
    pub fn set_labels(&mut self, labels: &[&str]) {
        self.labels = labels.iter().map(ToString::to_string).collect();
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the daemon is not running")?.kill()
    }

    /// SIGTERM, and gone when this returns; how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.take().context("the daemon is not running")?.terminate()
    }

    /// Takes everything out of the kernel that the daemon has left there, which is not running.
    pub fn cleanup(&self) -> Result<()> {
        let mut command = self.host.command(self.binaries.noded());
        command.args(["--name", self.host.name(), "--controller", &Controller::server(), "--cleanup"]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the daemon is not running")
    }

    /// For a daemon that is expected to end by itself.
    pub fn process_mut(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the daemon is not running")
    }

    pub fn name(&self) -> &str {
        self.host.name()
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// Whose processes reach services by the node's tables.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs `weft` on the node.
    pub fn weft(&self, arguments: &[&str]) -> Result<Answer> {
        let mut command = self.host.command(self.binaries.weft());
        Answer::of(command.args(arguments).env("WEFT_SERVER", Controller::server()))
    }

    /// Starts `weft` on the node; what it prints is in the process's output, the log is named after `log`.
    pub fn start_weft(&self, log: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.host.command(self.binaries.weft());
        command.args(arguments).env("WEFT_SERVER", Controller::server());
        Process::spawn(command, &self.log.with_file_name(format!("{log}-{}.log", self.name())))
    }

    /// What the daemon says of itself.
    pub fn status(&self) -> Result<StatusResponse> {
        let socket = format!("unix://{}", self.host.path(SOCKET).display());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = NodeLocalServiceClient::connect(socket.clone()).await.context(socket)?;
            Ok(client.status(StatusRequest {}).await?.into_inner())
        })
    }

    /// Packets dropped so far for a reason.
    pub fn dropped(&self, reason: &str) -> Result<u64> {
        Ok(self.status()?.drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum())
    }
}
