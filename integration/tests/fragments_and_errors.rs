//! Promise: large datagrams pass in fragments by the verdict on their flow, and errors about a flow reach who sent the
//! packet, through a policy that lets nothing else in.
use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use weft_integration::{
    fleet::{Fleet, scenario},
    limits::READY,
    traffic::{Namespace, UdpServer},
    wait,
};

/// Several times the MTU.
const BYTES: usize = 5_000;
const AGAIN: Duration = Duration::from_millis(200);
const OPEN: u16 = 2000;
const CLOSED: u16 = 2001;
const DENIED: u16 = 2002;

/// The client may ask; nothing may come to it by itself.
const POLICIES: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - name: client
    action: allow
    peers: [{endpoints: {matchLabels: {app: client}}}]
    ports: [{protocol: UDP, port: 2000, endPort: 2001}]
egress: []
---
kind: Policy
name: client
subject: {endpoints: {matchLabels: {app: client}}}
ingress: []
";

fn any(to: IpAddr) -> IpAddr {
    if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() }
}

fn client(from: &Namespace, to: IpAddr, port: u16) -> Result<UdpSocket> {
    from.within(move || {
        let socket = UdpSocket::bind((any(to), 0))?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(AGAIN))?;
        Ok(socket)
    })
}

/// Whether a large datagram comes back whole.
fn comes_back(socket: &UdpSocket) -> Result<bool> {
    let datagram: Vec<u8> = (0..BYTES).map(|byte| u8::try_from(byte % 251).unwrap_or_default()).collect();
    let mut answer = vec![0; 2 * BYTES];
    socket.send(&datagram)?;
    match socket.recv(&mut answer) {
        Ok(length) => {
            ensure!(answer[..length] == datagram, "{length} bytes came back, changed");
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the socket learns that nobody listens.
fn is_refused(socket: &UdpSocket) -> Result<bool> {
    // The error may be there before the next datagram.
    let sent = socket.send(b"anybody?");
    let mut answer = [0; 16];
    match sent.and_then(|_| socket.recv(&mut answer)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        other => anyhow::bail!("{other:?}"),
    }
}

/// A client on the first node, a server on each, and the policies.
fn start(fleet: &mut Fleet) -> Result<(Namespace, Vec<UdpServer>)> {
    let client = fleet.attach(1, "client", &[("app", "client")])?.namespace;
    let mut servers = Vec::new();
    for (node, name) in [(1, "near"), (2, "far")] {
        let server = fleet.attach(node, name, &[("app", "server")])?.namespace;
        for port in [OPEN, DENIED] {
            servers.push(UdpServer::start(&server, port)?);
        }
    }
    fleet.apply(POLICIES)?;
    Ok((client, servers))
}

#[test]
fn datagrams_larger_than_the_mtu_pass_where_their_port_is_allowed_and_nowhere_else() -> Result<()> {
    scenario("fragments", 2, |fleet| {
        let (from, _servers) = start(fleet)?;
        for server in ["near", "far"] {
            for family in [4, 6] {
                let to = fleet.party(server)?.address(family)?;
                let what = format!("{BYTES} bytes come back from {server} over IPv{family}");
                let socket = client(&from, to, OPEN)?;
                wait::until_true(&what, READY, || comes_back(&socket))?;
                let socket = client(&from, to, DENIED)?;
                for _ in 0..3 {
                    ensure!(!comes_back(&socket)?, "{server} IPv{family}: a denied port answered");
                }
            }
        }
        let dropped = fleet.node(1).dropped("policy_denied")? + fleet.node(2).dropped("policy_denied")?;
        ensure!(dropped > 0, "the first fragments of what is denied are judged");
        let later = fleet.node(1).dropped("fragment_without_first")?
            + fleet.node(2).dropped("fragment_without_first")?;
        ensure!(later > 0, "the later ones have nothing to go by");
        Ok(())
    })
}

#[test]
fn a_client_that_nothing_may_reach_learns_that_nobody_listens() -> Result<()> {
    scenario("errors", 2, |fleet| {
        let (from, _servers) = start(fleet)?;
        for server in ["near", "far", "world"] {
            for family in [4, 6] {
                let to = fleet.party(server)?.address(family)?;
                let socket = client(&from, to, CLOSED)?;
                let what = format!("{server} refuses over IPv{family}");
                wait::until_true(&what, READY, || is_refused(&socket))?;
            }
        }
        // What the client never sent is nobody's to refuse: the policy itself lets no error through.
        ensure!(fleet.node(1).dropped("malformed")? == 0, "a quoted packet is read right");
        Ok(())
    })
}
