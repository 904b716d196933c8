//! Ends connected sockets: over netlink (`sock_diag(7)`; TCP since kernel 4.5, commit c1e64e298b8c, UDP since 4.9, commit 5d77dca82839). What programs keep with a
//! socket it tells of TCP alone, so who a socket was connected by is found by its cookie.

use std::{fs::File, io, thread};

use bytemuck::{Pod, Zeroable};
use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use weft_shared::layout::{
    Address,
    service::{Party, TCP},
};

use super::trusted::from_bytes;

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Of the states that sockets are in (`net/tcp_states.h`), those of connected ones, for UDP and for TCP: established, and SYN sent, and closed by the
/// other end alone. What the process itself has closed it does not wait for.
const CONNECTED: u32 = 1 << 1;
const CONNECTED_TCP: u32 = CONNECTED | 1 << 2 | 1 << 8;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    bytes: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_req_v2`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Question {
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    socket: SocketId,
}

/// `struct inet_diag_sockid`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SocketId {
    source_port: u16,
    destination_port: u16,
    source: [u32; 4],
    destination: [u32; 4],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Answer {
    family: u8,
    state: u8,
    timer: u8,
    retransmissions: u8,
    socket: SocketId,
    rest: [u32; 5],
}

/// Does the work in a namespace, on a thread of its own.
pub(super) fn within<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| io::Error::other("a thread in a namespace panicked"))?
    })
}

/// Ends the connected sockets of the protocols in the thread's namespace for which `is_to_end` says so, by their protocols, cookies and
/// peers. How many there were.
pub(super) fn end(protocols: &[u8], is_to_end: &dyn Fn(u8, u64, Party) -> bool) -> io::Result<u64> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    let mut ended = 0;
    for protocol in protocols.iter().copied() {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).map_err(|_| io::ErrorKind::InvalidInput)?;
            let of = Kind { family, protocol };
            for id in connected(&socket, of)? {
                if is_to_end(protocol, id.cookie(), id.peer(family)) && end_one(&socket, of, id)? {
                    ended += 1;
                }
            }
        }
    }
    Ok(ended)
}

/// What kind of sockets is meant.
#[derive(Clone, Copy)]
struct Kind {
    family: u8,
    protocol: u8,
}

impl SocketId {
    /// As programs are told of it, too.
    fn cookie(&self) -> u64 {
        u64::from(self.cookie[1]) << 32 | u64::from(self.cookie[0])
    }

    fn peer(&self, family: u8) -> Party {
        let address = if i32::from(family) == libc::AF_INET {
            Address::from_v4(self.destination[0])
        } else {
            Address { words: self.destination }
        };
        Party { address, port: self.destination_port, zero: 0 }
    }
}

fn question(Kind { family, protocol }: Kind, socket: SocketId) -> Question {
    let states = if protocol == TCP { CONNECTED_TCP } else { CONNECTED };
    Question { family, protocol, extensions: 0, padding: 0, states, socket }
}

fn connected(socket: &Socket, of: Kind) -> io::Result<Vec<SocketId>> {
    let question = question(of, SocketId::zeroed());
    send(socket, BY_FAMILY, REQUEST | DUMP, bytemuck::bytes_of(&question))?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, after)) = message(rest) {
            rest = after;
            match kind {
                DONE => return Ok(found),
                ERROR => return Err(error(body).unwrap_or_else(|| io::ErrorKind::InvalidData.into())),
                _ => {}
            }
            let answer = body.get(..size_of::<Answer>()).and_then(from_bytes::<Answer>);
            found.extend(answer.map(|answer| answer.socket));
        }
    }
}

/// `false`: it has gone already.
fn end_one(socket: &Socket, of: Kind, id: SocketId) -> io::Result<bool> {
    send(socket, DESTROY, REQUEST | ACKNOWLEDGE, bytemuck::bytes_of(&question(of, id)))?;
    let (bytes, _) = socket.recv_from_full()?;
    match message(&bytes).and_then(|(_, body, _)| error(body)) {
        None => Ok(true),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Some(error) => Err(error),
    }
}

fn send(socket: &Socket, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let bytes = u32::try_from(size_of::<Header>() + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = Header { bytes, kind, flags, sequence: 1, port: 0 };
    let message = [bytemuck::bytes_of(&header), body].concat();
    socket.send_to(&message, &SocketAddr::new(0, 0), 0).map(drop)
}

/// The first message: its type, its body, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header: Header = from_bytes(bytes.get(..size_of::<Header>())?)?;
    let length = header.bytes as usize;
    let body = bytes.get(size_of::<Header>()..length)?;
    Some((header.kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error that an acknowledgement tells of.
fn error(body: &[u8]) -> Option<io::Error> {
    let code: i32 = from_bytes(body.get(..size_of::<i32>())?)?;
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}
