//! Who calls, how it is balanced, who answers: what is to come of it.
use weft_integration::traffic::Transport;

use self::{
    As::{ItsNode, Itself},
    Backend::{Local, LocalNoClients, Outside, Remote, RemoteNoClients, RemoteNoNodes},
    Client::{Endpoint, Foreign, Machine, Process, World},
    Expected::{Denied, Never, Seen},
    Mode::{HostAllows, HostDenies, Packet, Socket, XdpDsr, XdpSnat},
};

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// An endpoint's process, in the node's cgroup.
    Endpoint,
    /// An endpoint's process in a cgroup that is none of the node's.
    Foreign,
    /// A machine behind a tap.
    Machine,
    /// A process of the node itself.
    Process,
    /// Somebody outside of the fleet.
    World,
}

/// By what the call is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Socket,
    /// At tc. The node's programs see the sockets of its processes, but ask nothing of a service that has source ranges.
    Packet,
    XdpSnat,
    XdpDsr,
    /// At tc, of a service with `snat` at a port that a host policy lets the client have.
    HostAllows,
    /// The same at a port that it denies.
    HostDenies,
}

/// Who is to answer, as seen from the node that balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Backend {
    Local,
    Remote,
    Outside,
    /// Whose policy denies all that are clients here.
    LocalNoClients,
    RemoteNoClients,
    /// Whose policy denies other nodes.
    RemoteNoNodes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Seen(As),
    /// Policy lets nothing through.
    Denied,
    /// There is no such case, and why.
    Never(&'static str),
}

/// As whom the backend sees the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Itself,
    /// The node that balances.
    ItsNode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) client: Client,
    pub(crate) mode: Mode,
    pub(crate) backend: Backend,
    pub(crate) expected: Expected,
}

/// What policies make of it: at the socket, at the endpoint's packet and with DSR they judge the real client; of SNAT the node that
/// balances judges the client, and the backend's sees a node.
const JUDGED: &[(Client, Mode, Backend, Expected)] = &[
    (Endpoint, Socket, LocalNoClients, Denied),
    (Endpoint, Socket, RemoteNoClients, Denied),
    (Endpoint, Socket, RemoteNoNodes, Seen(Itself)),
    (Foreign, Packet, LocalNoClients, Denied),
    (Foreign, Packet, RemoteNoClients, Denied),
    (Foreign, Packet, RemoteNoNodes, Seen(Itself)),
    (Machine, Packet, LocalNoClients, Denied),
    (Machine, Packet, RemoteNoClients, Denied),
    (Machine, Packet, RemoteNoNodes, Seen(Itself)),
    (Process, Socket, RemoteNoClients, Seen(Itself)),
    (Process, Socket, RemoteNoNodes, Denied),
    (World, Packet, LocalNoClients, Denied),
    (World, Packet, RemoteNoClients, Seen(ItsNode)),
    (World, Packet, RemoteNoNodes, Denied),
    (World, XdpDsr, RemoteNoClients, Denied),
    (World, XdpDsr, RemoteNoNodes, Seen(Itself)),
    (World, HostAllows, Local, Seen(Itself)),
    (World, HostAllows, Remote, Seen(ItsNode)),
    (World, HostAllows, Outside, Seen(ItsNode)),
    // To an endpoint of the node it is the endpoint's policy that judges.
    (World, HostDenies, Local, Seen(Itself)),
    (World, HostDenies, Remote, Denied),
    (World, HostDenies, Outside, Denied),
];

/// All there are.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for client in [Endpoint, Foreign, Machine, Process, World] {
        for mode in [Socket, Packet, XdpSnat, XdpDsr] {
            for backend in [Local, Remote, Outside] {
                rows.push(Row { client, mode, backend, expected: expected(client, mode, backend) });
            }
        }
    }
    let judged = |(client, mode, backend, expected): &_| Row {
        client: *client,
        mode: *mode,
        backend: *backend,
        expected: *expected,
    };
    rows.extend(JUDGED.iter().map(judged));
    rows
}

/// Where policies deny nothing.
fn expected(client: Client, mode: Mode, backend: Backend) -> Expected {
    match (client, mode, backend) {
        (Endpoint | Process, Socket, _)
        | (Endpoint | Foreign | Machine, Packet, _)
        | (World, Packet, Local)
        | (World, XdpDsr, Remote | Outside) => Seen(Itself),
        (Process, Packet, _) => Never("no packet of the node's own is translated"),
        (Foreign | Machine | World, Socket, _) => Never("no program of the node's sees its socket"),
        (Endpoint | Foreign | Machine | Process, _, _) => Never("it does not come by an uplink"),
        (World, Packet, Remote) | (World, XdpSnat, Outside) => Seen(ItsNode),
        (World, Packet, Outside) => Never("XDP sends it on, but where a host policy is to judge (below)"),
        (World, XdpSnat | XdpDsr, Local) => Never("XDP leaves what an endpoint of the node gets to tc"),
        (World, XdpSnat, Remote) => Never("XDP leaves what goes into the overlay to tc"),
        (World, HostAllows | HostDenies, _) | (_, _, LocalNoClients | RemoteNoClients | RemoteNoNodes) => {
            Never("it is among those that policies judge")
        }
    }
}

impl Client {
    /// Whether the node's programs see its sockets.
    pub(crate) fn is_seen(self) -> bool {
        matches!(self, Endpoint | Process)
    }
}

impl Row {
    /// Of a transport: no program hears of a socket of SCTP that connects (there is no such hook up to kernel 6.18), so that endpoints'
    /// packets are translated, and nobody's else.
    pub(crate) fn expected_of(&self, transport: Transport) -> Expected {
        match (self.client, transport) {
            (Process, Transport::Sctp) => Never("no program hears of its sockets of SCTP"),
            _ => self.expected,
        }
    }

    /// By what the called service differs from others of the backend.
    pub(crate) fn kind(&self) -> Kind {
        match (self.client, self.mode) {
            (Endpoint, Packet) => Kind::Ranged,
            (_, XdpDsr) => Kind::Dsr,
            _ => Kind::Snat,
        }
    }
}

/// What services differ by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Snat,
    Dsr,
    /// As `Snat`, and with source ranges, in which everybody is.
    Ranged,
}

impl Backend {
    pub(crate) const ALL: [Self; 6] =
        [Local, Remote, Outside, LocalNoClients, RemoteNoClients, RemoteNoNodes];

    /// Its server's, its service's and its endpoint's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Local => "local",
            Remote => "remote",
            Outside => "outside",
            LocalNoClients => "local-no-clients",
            RemoteNoClients => "remote-no-clients",
            RemoteNoNodes => "remote-no-nodes",
        }
    }

    /// The number of the endpoint's node.
    pub(crate) fn node(self) -> Option<usize> {
        match self {
            Local | LocalNoClients => Some(1),
            Remote | RemoteNoClients | RemoteNoNodes => Some(2),
            Outside => None,
        }
    }

    /// By what policies select it.
    pub(crate) fn door(self) -> &'static str {
        match self {
            Local | Remote | Outside => "open",
            LocalNoClients | RemoteNoClients => "no-clients",
            RemoteNoNodes => "no-nodes",
        }
    }
}
