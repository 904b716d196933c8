//! Who takes part: the workloads with their labels and places, and the servers in them.
use anyhow::Result;
use weft_integration::{
    fleet::Fleet,
    traffic::{TcpServer, UdpServer},
};

use crate::say;

/// Name, node, labels. `api` and `db` share a node; `bare` has no labels.
type Workload = (&'static str, usize, &'static [(&'static str, &'static str)]);
const WORKLOADS: [Workload; 4] = [
    ("web", 1, &[("app", "web")]),
    ("api", 2, &[("app", "api")]),
    ("db", 2, &[("app", "db")]),
    ("bare", 3, &[]),
];

/// Port 8080 answers HTTP as well. One server more than policies open, so that a denied flow is denied by policy.
const TCP: [(&str, u16); 7] =
    [("web", 8080), ("api", 8080), ("api", 9090), ("db", 5432), ("db", 22), ("bare", 7000), ("world", 8080)];
const UDP: [(&str, u16); 3] = [("db", 8125), ("bare", 7001), ("world", 5353)];

/// The running servers.
#[derive(Debug)]
pub(crate) struct Cast {
    _tcp: Vec<TcpServer>,
    _udp: Vec<UdpServer>,
}

impl Cast {
    pub(crate) fn bring_up(fleet: &mut Fleet) -> Result<Self> {
        for (name, node, labels) in WORKLOADS {
            let party = fleet.attach(node, name, labels)?;
            let addresses: Vec<_> = party.addresses.iter().map(ToString::to_string).collect();
            say(&format!("endpoint {name} on n{node}: {}", addresses.join(", ")));
        }
        say("HTTP, TCP and UDP servers in the workloads and on world, a host outside the fleet");
        let namespace = |name| Ok::<_, anyhow::Error>(fleet.party(name)?.namespace.clone());
        let tcp = TCP.iter().map(|(name, port)| TcpServer::start(&namespace(name)?, *port, name));
        let udp = UDP.iter().map(|(name, port)| UdpServer::start(&namespace(name)?, *port));
        Ok(Self { _tcp: tcp.collect::<Result<_>>()?, _udp: udp.collect::<Result<_>>()? })
    }
}
