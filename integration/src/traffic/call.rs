//! Calls to services: who answers, as whom the client is seen there, and who it is told that was.
use std::{
    collections::BTreeSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;
use crate::limits::READY;

/// Clients that are asked of a service with two backends: that all of them get the same one has a chance of 2^-39.
pub const CLIENTS: usize = 40;
/// More than a packet, and more than the kernel's segmentation leaves in one.
const BYTES: usize = 300_000;
/// Written at once: SCTP takes no message that is larger than a socket's buffer.
const CHUNK_BYTES: usize = 16_384;
/// So long that the packet is one that programs know at a glance: shorter than a header of TCP it would not be.
const QUESTION: &[u8] = b"Who is there, and who am I to you?";
/// Of an answer.
const ANSWER_BYTES_MAX: usize = 256;

/// By what a service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub by: String,
    /// Whom the server took for the client.
    pub seen: SocketAddr,
    /// Who the client was told it was.
    pub from: SocketAddr,
}

/// An address and a port of a test's own.
#[expect(clippy::expect_used, reason = "what tests write themselves")]
pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Names of backends.
pub fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// Every address of a family.
pub(super) fn any(family_of: SocketAddr) -> SocketAddr {
    let any: IpAddr = if family_of.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    (any, 0).into()
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Those that this machine's kernel has.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|transport| transport.socket(Domain::IPV6).is_ok())
    }

    /// As manifests say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    fn socket(self, domain: Domain) -> io::Result<Socket> {
        let (kind, protocol) = match self {
            Self::Tcp => (Type::STREAM, Protocol::TCP),
            Self::Udp => (Type::DGRAM, Protocol::UDP),
            Self::Sctp => (Type::STREAM, Protocol::SCTP),
        };
        Socket::new(domain, kind, Some(protocol))
    }

    pub(super) fn listen(self, at: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket(Domain::for_address(at))?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    }

    /// Of TCP or SCTP, whose sockets are used alike.
    fn connect(self, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        let socket = self.socket(Domain::for_address(to))?;
        socket.connect_timeout(&to.into(), patience)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        Ok(socket.into())
    }
}

impl Answered {
    fn parse(answer: &[u8], from: SocketAddr) -> io::Result<Self> {
        let text = String::from_utf8_lossy(answer);
        let read = || {
            let (by, seen) = text.trim_end().split_once(' ')?;
            Some(Self { by: by.to_owned(), seen: seen.parse().ok()?, from })
        };
        read().ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("the answer was {text:?}")))
    }
}

/// Connects from the calling thread's namespace.
pub fn connect_and_ask(to: SocketAddr) -> io::Result<(TcpStream, Answered)> {
    greeted(Transport::Tcp.connect(to, READY)?)
}

fn greeted(mut connection: TcpStream) -> io::Result<(TcpStream, Answered)> {
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while byte[0] != b'\n' && answer.len() < ANSWER_BYTES_MAX {
        connection.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    let answered = Answered::parse(&answer, connection.peer_addr()?)?;
    Ok((connection, answered))
}

/// Sends a datagram by a socket that is not connected, and receives the answer.
pub fn send_and_ask(socket: &UdpSocket, to: SocketAddr) -> io::Result<Answered> {
    socket.send_to(QUESTION, to)?;
    heard(socket)
}

/// A socket that is connected to a service, and who answers it.
pub fn connected_and_ask(from: SocketAddr, to: SocketAddr) -> io::Result<(UdpSocket, Answered)> {
    let socket = UdpSocket::bind(from)?;
    socket.set_read_timeout(Some(READY))?;
    socket.connect(to)?;
    let answered = ask_again(&socket)?;
    Ok((socket, answered))
}

/// By a socket that is connected.
pub fn ask_again(socket: &UdpSocket) -> io::Result<Answered> {
    socket.send(QUESTION)?;
    heard(socket)
}

fn heard(socket: &UdpSocket) -> io::Result<Answered> {
    if socket.read_timeout()?.is_none() {
        socket.set_read_timeout(Some(READY))?;
    }
    let mut answer = [0; ANSWER_BYTES_MAX];
    let (length, from) = socket.recv_from(&mut answer)?;
    Answered::parse(&answer[..length], from)
}

/// All that clients do with a service, from the calling thread's namespace: much goes there and back, a flow keeps its backend, and
/// nobody else is ever heard of. What takes longer than `patience` is an error.
pub fn exchange(transport: Transport, service: SocketAddr, patience: Duration) -> Result<Answered> {
    let answered = match transport {
        Transport::Udp => datagrams(service, patience)?,
        Transport::Tcp | Transport::Sctp => {
            let (connection, answered) = greeted(transport.connect(service, patience)?)?;
            echo(connection)?;
            answered
        }
    };
    ensure!(answered.from == service, "the client is told {}", answered.from);
    Ok(answered)
}

fn echo(mut connection: TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..BYTES).map(|place| place.to_le_bytes()[0]).collect();
    let mut writing = connection.try_clone()?;
    let writer = thread::spawn({
        let sent = sent.clone();
        move || sent.chunks(CHUNK_BYTES).try_for_each(|chunk| writing.write_all(chunk))
    });
    let mut back = vec![0; sent.len()];
    connection.read_exact(&mut back).context("the echo")?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(back == sent, "what comes back is what was sent");
    Ok(())
}

fn datagrams(service: SocketAddr, patience: Duration) -> Result<Answered> {
    let socket = UdpSocket::bind(any(service))?;
    socket.set_read_timeout(Some(patience))?;
    let first = send_and_ask(&socket, service)?;
    ensure!(send_and_ask(&socket, service)? == first, "a flow keeps its backend");
    let connected = UdpSocket::bind(any(service))?;
    connected.set_read_timeout(Some(patience))?;
    connected.connect(service)?;
    let told = (ask_again(&connected)?.from, connected.peer_addr()?);
    ensure!(told == (service, service), "connected, the client is told {told:?}");
    Ok(first)
}

/// Who answers new clients, one after the other.
pub fn answering(
    transport: Transport,
    from: &Namespace,
    service: SocketAddr,
    clients: usize,
) -> Result<BTreeSet<String>> {
    let asked =
        from.within(move || (0..clients).map(|_| Ok(exchange(transport, service, READY)?.by)).collect());
    asked.with_context(|| format!("{} to {service}", transport.name()))
}
