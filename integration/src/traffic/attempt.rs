//! One try of a flow: does a real exchange get through?
use std::{
    fmt,
    io::{self, BufRead as _, BufReader, ErrorKind, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::time::Instant;

use super::{Namespace, echo::Pinger, namespace::join};
use crate::limits::DENIED;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A connection, a line there and back.
    Tcp(u16),
    /// A connection, a request and its answer.
    Http(u16),
    /// A datagram there and back.
    Udp(u16),
    /// An echo request and its reply, of the destination's family.
    Echo,
}

/// A flow to try: from a namespace to an address.
#[derive(Debug, Clone)]
pub struct Flow {
    pub from: Namespace,
    pub to: IpAddr,
    pub protocol: Protocol,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The exchange succeeded.
    Allow,
    /// Nothing came back until the deadline.
    Deny,
    /// Neither: the test's own set-up is wrong, or packets were answered where they should have been dropped.
    Broken(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny => f.write_str("deny"),
            Self::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

impl Flow {
    /// Tries once; a flow that is dropped takes until the deadline [`DENIED`].
    pub fn attempt(&self) -> Result<Outcome> {
        join(self.start())
    }

    fn start(&self) -> std::thread::JoinHandle<Result<Outcome>> {
        let Self { to, protocol, .. } = *self;
        self.from.spawn(move || {
            let tried = match protocol {
                Protocol::Tcp(port) => tcp(SocketAddr::new(to, port), "hello\n", "hello"),
                Protocol::Http(port) => {
                    tcp(SocketAddr::new(to, port), "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200")
                }
                Protocol::Udp(port) => udp(SocketAddr::new(to, port)),
                Protocol::Echo => echo(to),
            };
            Ok(match tried {
                Ok(()) => Outcome::Allow,
                Err(error) => outcome(&error),
            })
        })
    }
}

/// Tries all flows at once, so that the dropped ones share their deadline.
pub fn try_all(flows: &[Flow]) -> Result<Vec<Outcome>> {
    let threads: Vec<_> = flows.iter().map(Flow::start).collect();
    threads.into_iter().map(join).collect()
}

fn outcome(error: &anyhow::Error) -> Outcome {
    let error_of_io = error.downcast_ref::<io::Error>();
    // So says the kernel to some senders, raw ones of IPv6 among them, of what a program dropped on its way out.
    if error_of_io.and_then(io::Error::raw_os_error) == Some(nix::libc::ENOBUFS) {
        return Outcome::Deny;
    }
    match error_of_io.map(io::Error::kind) {
        Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Outcome::Deny,
        _ => Outcome::Broken(format!("{error:#}")),
    }
}

fn tcp(to: SocketAddr, say: &str, expect: &str) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&to, DENIED)?;
    connection.set_read_timeout(Some(DENIED))?;
    connection.write_all(say.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    if !answer.starts_with(expect) {
        bail!("the answer was {answer:?}");
    }
    Ok(())
}

/// A lost datagram is sent again, as any client over UDP does.
fn udp(to: SocketAddr) -> Result<()> {
    const AGAIN: Duration = Duration::from_millis(500);
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(AGAIN))?;
    let end = Instant::now() + DENIED;
    let mut answer = [0; 16];
    while Instant::now() < end {
        socket.send(b"hello")?;
        match socket.recv(&mut answer) {
            Ok(length) if &answer[..length] == b"hello" => return Ok(()),
            Ok(length) => bail!("the answer was {:?}", &answer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::from(ErrorKind::TimedOut).into())
}

fn echo(to: IpAddr) -> Result<()> {
    const AGAIN: Duration = Duration::from_millis(500);
    let pinger = Pinger::open(to, AGAIN)?;
    let end = Instant::now() + DENIED;
    let mut sequence = 0;
    while Instant::now() < end {
        pinger.send(sequence)?;
        if pinger.receive()?.is_some() {
            return Ok(());
        }
        sequence += 1;
    }
    Err(io::Error::from(ErrorKind::TimedOut).into())
}
