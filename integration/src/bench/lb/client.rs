//! Processes that connect when they are told to, and what they connect to. How long `connect()` takes is measured by the process
//! itself. Nobody is woken by a connection: those of a block wait until the block is over, so that what is compared is the
//! call and what it does in the kernel, the answers on the way included.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, ErrorKind, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener},
    path::{Path, PathBuf},
    process::{self, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::{Options, nanoseconds};
use crate::{
    bench::{Figure, report::Spread},
    fleet::{binaries_folder, cgroup_root, join_cgroup, tool},
    traffic::Namespace,
};

/// Connections that may wait for the end of a block: the kernel's own limit, `net.core.somaxconn`.
pub(super) const CONNECTS_MAX: u32 = 4000;
const BACKLOG: i32 = 4096;
/// Blocks of each figure in a round, each beside one of the reference.
const PAIRS: u32 = 5;
const TOOL: &str = "weft-bench";
pub(super) const SUBCOMMAND: &str = "connect-process";

/// What `lb` measures: connects as its standard input says, a line for each block, and answers with the median of the block.
pub fn process() -> Result<()> {
    for line in io::stdin().lines() {
        let line = line?;
        let (to, connects) = line.split_once(' ').context("expected ADDRESS:PORT CONNECTIONS")?;
        println!("{}", block(to.parse()?, connects.parse()?)?);
        io::stdout().flush()?;
    }
    Ok(())
}

fn block(to: SocketAddr, connects: u32) -> Result<f64> {
    let mut spent = Vec::new();
    for _ in 0..connects {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        // Closed by a reset: ports are free at once.
        socket.set_linger(Some(Duration::ZERO))?;
        let before = Instant::now();
        socket.connect(&to.into()).with_context(|| format!("connect to {to}"))?;
        spent.push(nanoseconds(before.elapsed()));
    }
    Ok(Spread::of(&spent).median)
}

/// That process, on the processor of who starts it.
#[derive(Debug)]
struct Client {
    process: process::Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(namespace: &Namespace, cgroup: &Path) -> Result<Self> {
        let program = binaries_folder()?.join(TOOL);
        let mut process = namespace.within(move || {
            let mut command = Command::new(&program);
            command.arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().with_context(|| format!("start {}", program.display()))
        })?;
        let orders = process.stdin.take().context("its input is a pipe")?;
        let answers = BufReader::new(process.stdout.take().context("its output is a pipe")?);
        let client = Self { process, orders, answers };
        join_cgroup(cgroup, client.process.id())?;
        Ok(client)
    }

    /// Nanoseconds of a `connect()`.
    fn block(&mut self, to: SocketAddr, connects: u32) -> Result<f64> {
        writeln!(self.orders, "{to} {connects}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the process that connects to {to} has ended"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A way to a server, and who goes it.
#[derive(Debug)]
pub(super) struct Route {
    name: String,
    client: Client,
    to: SocketAddr,
    server: TcpListener,
}

impl Route {
    /// From a process in the namespace and the cgroup to what leads to the server.
    pub(super) fn new(
        name: impl Into<String>,
        (namespace, cgroup): (&Namespace, &Path),
        to: SocketAddrV4,
        server: TcpListener,
    ) -> Result<Self> {
        Ok(Self { name: name.into(), client: Client::start(namespace, cgroup)?, to: to.into(), server })
    }

    /// Nanoseconds of a `connect()`; all of them came to the server.
    fn block(&mut self, connects: u32) -> Result<f64> {
        let of = || format!("the figure {}", self.name);
        let nanoseconds = self.client.block(self.to, connects).with_context(of)?;
        let came = accept_all(&self.server)?;
        ensure!(came == connects, "{}: {came} of {connects} connections came to the server", self.name);
        Ok(nanoseconds)
    }
}

fn accept_all(server: &TcpListener) -> Result<u32> {
    let mut came = 0;
    loop {
        match server.accept() {
            Ok(_) => came += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(came),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A server, which takes connections only when it is asked to.
pub(super) fn listen(namespace: &Namespace, at: SocketAddrV4) -> Result<TcpListener> {
    namespace.within(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(at).into()).with_context(|| format!("listen at {at}"))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    })
}

/// The figures of routes beside the reference, in pairs of blocks.
pub(super) fn compare(
    reference: &mut Route,
    routes: &mut [Route],
    options: &Options,
    say: impl Fn(&str),
) -> Result<Vec<Figure>> {
    let mut series = vec![(Vec::new(), Vec::new()); routes.len()];
    for round in 0..options.rounds {
        say(&format!("round {} of {} beside {}", round + 1, options.rounds, reference.name));
        for pair in 0..PAIRS {
            for (route, (own, base)) in routes.iter_mut().zip(&mut series) {
                // The first of a pair is not always the same.
                if pair % 2 == 0 {
                    base.push(reference.block(options.connects)?);
                    own.push(route.block(options.connects)?);
                } else {
                    own.push(route.block(options.connects)?);
                    base.push(reference.block(options.connects)?);
                }
            }
        }
    }
    let base: Vec<f64> = series.iter().flat_map(|(_, base)| base).copied().collect();
    let paired = routes
        .iter()
        .zip(&series)
        .map(|(route, (own, base))| Figure::paired(&route.name, "ns", own, &reference.name, base));
    Ok([Figure::plain(&reference.name, "ns", &base)].into_iter().chain(paired).collect())
}

/// A cgroup of the bench's own.
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    pub(super) fn create(name: &str) -> Result<Self> {
        let path = cgroup_root()?.join(format!("weft-bench-{}-{name}", process::id()));
        fs::create_dir(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have ended, or it stays.
        drop(fs::remove_dir(&self.0));
    }
}

/// Runs `ip` with each line in a namespace.
pub(super) fn ip(namespace: &Namespace, lines: &[String]) -> Result<()> {
    let lines = lines.to_vec();
    namespace.within(move || {
        for line in lines {
            let status = tool("ip").args(line.split(' ')).status().context("start ip (iproute2)")?;
            ensure!(status.success(), "ip {line} failed");
        }
        Ok(())
    })
}
