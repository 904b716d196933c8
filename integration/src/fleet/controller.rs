//! The controller of a fleet, on a host of its own.
use std::process::ExitStatus;

use anyhow::{Context, Result};

use super::{Answer, Binaries, Etcd, Home, Host, Place, Process};

const PORT: u16 = 7443;

/// Where the controller keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Embedded,
    Etcd { members: usize },
}

/// A host with a controller process.
#[derive(Debug)]
pub struct Controller {
    process: Option<Process>,
    etcd: Option<Etcd>,
    binaries: Binaries,
    log: std::path::PathBuf,
    // After its process: what it runs in ends last.
    host: Host,
}

impl Controller {
    pub fn start(home: &Home, host: Host, binaries: &Binaries, store: Store) -> Result<Self> {
        let log = home.log("controller");
        let etcd = match store {
            Store::Embedded => None,
            Store::Etcd { members } => Some(Etcd::start(home, &host, members)?),
        };
        let mut controller = Self { process: None, etcd, binaries: binaries.clone(), log, host };
        controller.run()?;
        Ok(controller)
    }

    /// Starts it (again), with the store it had.
    pub fn run(&mut self) -> Result<()> {
        let mut command = self.host.command(self.binaries.controller());
        command.args(["--listen", &format!("{}:{PORT}", Place::CONTROLLER.v4()), "--insecure"]);
        if let Some(etcd) = &self.etcd {
            command.args(["--etcd", &etcd.urls()?]);
        }
        self.process = Some(Process::spawn(command, &self.log)?);
        Ok(())
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the controller is not running")?.kill()
    }

    /// SIGTERM, and gone when this returns; how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.take().context("the controller is not running")?.terminate()
    }

    /// Where its state is, if it is not embedded.
    pub fn etcd(&mut self) -> Result<&mut Etcd> {
        self.etcd.as_mut().context("this fleet has no etcd")
    }

    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the controller is not running")
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where operators and nodes reach it.
    pub fn server() -> String {
        format!("http://{}:{PORT}", Place::CONTROLLER.v4())
    }

    /// Runs `weft` as an operator.
    pub fn weft(&self, arguments: &[&str]) -> Result<Answer> {
        let mut command = self.host.network_command(self.binaries.weft());
        Answer::of(command.args(arguments).env("WEFT_SERVER", Self::server()))
    }
}
