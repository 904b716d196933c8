//! Promise: backends that are added, drained and taken away under load: once the change holds no new flow goes to one that may have none,
//! every call is answered, and no flow to another backend is broken. At sockets, at the packets of endpoints, and at an uplink.
use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use weft_integration::{
    fleet::{Fleet, Party, UPLINK, backends, frontends, scenario},
    limits::READY,
    traffic::{
        Answered, Excused, Load, NamedServer, Namespace,
        Transport::{self, Tcp, Udp},
        answering, ask_again, connect_and_ask, connected_and_ask, fresh, send_and_ask,
    },
    wait,
};

const PORT: u16 = 1000;
/// Flows of each kind that are kept: that all of them go to the same one of two backends has a chance of 2^-19.
const KEPT: usize = 20;

/// A service, and who may be its backends.
struct Case {
    /// Of a frontend, in each family.
    addresses: [IpAddr; 2],
    /// The manifest up to its backends.
    head: String,
    candidates: Vec<Party>,
    _servers: Vec<NamedServer>,
}

impl Case {
    fn new(addresses: [&str; 2], kind: &str, more: &str, candidates: Vec<Party>) -> Result<Self> {
        let head = frontends(&addresses, &[PORT], kind, &[Tcp, Udp]);
        let head = format!("kind: Service\nname: api\n{head}\n{more}");
        let server = |party: &Party| NamedServer::start(&party.namespace, PORT, &party.name);
        let servers = candidates.iter().map(server).collect::<Result<_>>()?;
        let [v4, v6] = addresses.map(str::parse);
        Ok(Self { addresses: [v4?, v6?], head, candidates, _servers: servers })
    }

    fn services(&self) -> Vec<(Transport, SocketAddr)> {
        let at = self.addresses.map(|address| SocketAddr::new(address, PORT));
        [Tcp, Udp].into_iter().flat_map(|transport| at.map(|at| (transport, at))).collect()
    }

    /// Returns when every node has the change.
    fn set(&self, fleet: &Fleet, states: &[(&str, &str)]) -> Result<()> {
        let mut all = Vec::new();
        for (name, state) in states {
            let party = self.candidates.iter().find(|party| party.name == *name).context("no candidate")?;
            all.extend(party.addresses.iter().map(|address| (*address, *state)));
        }
        fleet.apply(&format!("{}\n{}\n", self.head, backends(all, PORT))).map(drop)
    }
}

/// Flows that were there before.
struct Kept {
    connections: Vec<(TcpStream, Answered)>,
    connected: Vec<(UdpSocket, Answered)>,
    /// Sockets of datagrams that name the service each time.
    naming: Vec<(UdpSocket, Answered)>,
}

/// What becomes of flows to a backend that has gone: those of `endConnections` are another test's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Processes hear that datagrams go nowhere; connections go on by themselves.
    AtSockets,
    /// Connections are reset, and datagrams go to somebody else.
    AtPackets,
}

impl Kept {
    fn begin(from: &Namespace, case: &Case) -> Result<Self> {
        let services = case.addresses.map(|address| SocketAddr::new(address, PORT));
        from.within(move || {
            let mut kept = Self { connections: Vec::new(), connected: Vec::new(), naming: Vec::new() };
            for service in services {
                for _ in 0..KEPT {
                    kept.connections.push(connect_and_ask(service)?);
                    kept.connected.push(connected_and_ask(fresh(service)?, service)?);
                    let naming = UdpSocket::bind(fresh(service)?)?;
                    let answered = send_and_ask(&naming, service)?;
                    kept.naming.push((naming, answered));
                }
            }
            Ok(kept)
        })
    }

    /// All flows go on, with whom they were with.
    fn go_on(&mut self) -> Result<()> {
        self.go_on_without("", When::AtPackets)
    }

    fn go_on_without(&mut self, gone: &str, when: When) -> Result<()> {
        for (connection, Answered { by, .. }) in &mut self.connections {
            let spoken = connection.write_all(b"ping").and_then(|()| connection.read_exact(&mut [0; 4]));
            let is_reset = |error: &io::Error| {
                matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
            };
            match spoken {
                Ok(()) => ensure!(by != gone || when == When::AtSockets, "the connection to {by} goes on"),
                Err(error) if by == gone && is_reset(&error) => {}
                Err(error) => return Err(error).with_context(|| format!("the connection to {by}")),
            }
        }
        for (socket, was) in &self.connected {
            if was.by == gone && when == When::AtSockets {
                let heard = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
                ensure!(
                    heard == Err(ErrorKind::ConnectionAborted),
                    "{gone} has gone, and is heard: {heard:?}"
                );
            } else {
                goes_to(ask_again(socket), was, gone).context("connected")?;
            }
        }
        for (socket, was) in &self.naming {
            goes_to(send_and_ask(socket, was.from), was, gone).context("not connected")?;
        }
        Ok(())
    }
}

/// A flow of datagrams keeps its backend; only where that has gone it gets another one.
fn goes_to(answered: io::Result<Answered>, was: &Answered, gone: &str) -> Result<()> {
    let now = answered.with_context(|| format!("to {} by {}", was.from, was.by))?;
    ensure!(now.from == was.from, "the client is told {}", now.from);
    ensure!((now.by == was.by) != (was.by == gone), "what went to {} goes to {}", was.by, now.by);
    Ok(())
}

/// Backends `one`, `two` and `three`, of which the third comes, the second is drained, goes, and comes back. How many datagrams were lost
/// meanwhile, where they may be.
fn come_and_go(fleet: &Fleet, from: &Namespace, case: &Case, when: When, losses: bool) -> Result<u64> {
    let set = |states: &[(&str, &str)]| case.set(fleet, states);
    let [one, two, three] = ["one", "two", "three"].map(|name| (name, "active"));
    case.set(fleet, &[one, two])?;
    for (transport, service) in case.services() {
        wait::until_true("both backends answer", READY, || {
            Ok(answering(transport, from, service, KEPT).is_ok_and(|found| found.len() == 2))
        })?;
    }
    let mut kept = Kept::begin(from, case)?;
    let load = Load::start(from, &case.services(), &["one", "two"]);
    load.only(&["one", "two"])?;
    let excused = Excused { losses, resets: false };
    load.change(&["one", "two", "three"], excused, || set(&[one, two, three]))?;
    kept.go_on().context("another one has come")?;
    load.change(&["one", "three"], excused, || set(&[one, ("two", "terminating"), three]))?;
    kept.go_on().context("one is drained")?;
    load.change(&["one", "three"], excused, || set(&[one, three]))?;
    kept.go_on_without("two", when).context("one has gone")?;
    load.change(&["one", "two", "three"], excused, || set(&[one, two, three]))?;
    let excused = Excused { losses, resets: when == When::AtPackets };
    load.change(&["one", "three"], excused, || set(&[one, three])).context("gone at once")?;
    load.end()
}

fn attach(fleet: &mut Fleet) -> Result<(Vec<Party>, Namespace)> {
    let places = [(1, "one"), (2, "two"), (2, "three")];
    let candidates =
        places.into_iter().map(|(node, name)| fleet.attach(node, name, &[])).collect::<Result<_>>()?;
    Ok((candidates, fleet.attach(1, "client", &[])?.namespace))
}

#[test]
fn backends_come_and_go_under_processes_of_a_node() -> Result<()> {
    scenario("load-sockets", 2, |fleet| {
        fleet.node(1).cgroup().enter()?;
        let (candidates, client) = attach(fleet)?;
        let case = Case::new(["10.96.0.10", "fd96::10"], "cluster", "", candidates)?;
        come_and_go(fleet, &client, &case, When::AtSockets, false).map(drop)
    })
}

#[test]
fn backends_come_and_go_under_endpoints_whose_packets_are_translated() -> Result<()> {
    scenario("load-packets", 2, |fleet| {
        let (candidates, client) = attach(fleet)?;
        let case = Case::new(["10.96.0.10", "fd96::10"], "cluster", "", candidates)?;
        come_and_go(fleet, &client, &case, When::AtPackets, false).map(drop)
    })
}

/// Of `snat`, one is of the node, one is outside and gets packets by XDP, one is of another node and gets them by the overlay.
#[test]
fn backends_come_and_go_under_clients_outside_that_the_node_stands_for() -> Result<()> {
    scenario("load-snat", 2, |fleet| {
        let (mut candidates, _) = attach(fleet)?;
        candidates[1] = Party { name: "two".to_owned(), ..fleet.plug_outside("far")? };
        candidates[1].send_whole_checksums()?;
        at_uplink(fleet, candidates, "snat", false).map(drop)
    })
}

/// Of `dsr`, one is of the node, and XDP sends to the other two. Their node drops what comes for a backend that it does not know of yet, or
/// no more.
#[test]
fn backends_come_and_go_under_clients_outside_whom_they_answer_themselves() -> Result<()> {
    scenario("load-dsr", 2, |fleet| {
        let (candidates, _) = attach(fleet)?;
        let lost = at_uplink(fleet, candidates, "dsr", true)?;
        let dropped = fleet.node(2).dropped("no_endpoint")?;
        ensure!(lost <= dropped, "{lost} datagrams were lost, of which the other node has told {dropped}");
        Ok(())
    })
}

fn at_uplink(fleet: &Fleet, candidates: Vec<Party>, mode: &str, losses: bool) -> Result<u64> {
    fleet.let_nodes_send_back()?;
    let (client, node) = (fleet.party("world")?, fleet.node(1).place());
    client.send_whole_checksums()?;
    fleet
        .ip(&client.namespace, &format!("route add 10.97.0.0/24 via {} dev {UPLINK} mtu 1400", node.v4()))?;
    fleet.ip(&client.namespace, &format!("route add fd97::/64 via {} dev {UPLINK} mtu 1400", node.v6()))?;
    let case =
        Case::new(["10.97.0.10", "fd97::10"], "external", &format!("forwardingMode: {mode}"), candidates)?;
    let lost = come_and_go(fleet, &client.namespace, &case, When::AtPackets, losses);
    let drops =
        |node: usize| Ok::<_, anyhow::Error>(format!("n{node}: {:?}", fleet.node(node).status()?.drops));
    lost.or_else(|error| Err(error.context(drops(1)?).context(drops(2)?)))
}
