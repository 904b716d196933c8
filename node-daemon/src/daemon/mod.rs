//! The daemon's core: the one owner of the desired state, the attachments and the kernel. Everything that changes them is
//! a command in one queue, so writes of the kernel are serial. [`Core`] is the handle that the stream, the local API and
//! the watchers hold.

mod attach;
mod balance;
mod command;
mod count;
mod drift;
mod health;
mod neighbours;
mod network;
mod prefilter;
mod realise;
mod repairs;
mod report;
mod run;
mod shaping;
mod start;
mod status;
mod sweep;
mod tables;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use weft_proto::v1;
use weft_shared::{digest::Digest, policy::compile::IdentitySets};

pub use attach::{AttachError, AttachSpec, Target};
pub use command::{Core, CoreGone, EndpointState, Refusal, Welcomed};
pub use network::Ground;
pub use start::{Loaded, StartError};
pub use tables::{TablesError, backend_in_words};

use crate::{
    balance::ports::{Ports, SocketPorts},
    desired::{Desired, EndpointWord, attachments::Attachments, disk::Disk, journal::Journal},
    kernel::links::Link,
    observe::names::Names,
    plan::{narrow::Standing, tables::Tables},
};

/// What the flags say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    pub labels: BTreeMap<String, String>,
    /// Underlay addresses; empty: those of the uplinks.
    pub addresses: Vec<IpAddr>,
    /// Names of the uplinks; empty: the devices of the default routes.
    pub uplinks: Vec<String>,
    /// The cgroup whose processes reach services by their sockets, and are paced; `None`: those of no one.
    pub cgroup: Option<PathBuf>,
    pub vxlan_device: String,
    pub vxlan_port: u16,
    /// That connections to backends come from which answer through this node.
    pub snat_ports: Ports,
    pub socket_ports: SocketPorts,
    pub boot_id: String,
    pub kernel_release: String,
    pub tcx: bool,
    pub btf: bool,
}

/// The name of the overlay's device.
pub const VXLAN_DEVICE: &str = "weft-vxlan";

/// The stream that is up.
struct Connection {
    controller: String,
    reports: mpsc::Sender<v1::NodeReport>,
}

/// What the next stream is to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Differences,
    /// A resume would have led elsewhere than the controller said.
    Everything,
}

/// Whether the desired state's file, with its journal, has it. Nothing goes into the kernel before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    Yes,
    NotYet,
}

/// The state behind the queue.
struct State<D, L> {
    settings: Settings,
    disk: Disk,
    /// Where changes of the desired state are kept; `None`: the next one writes all of it.
    journal: Option<Journal>,
    datapath: D,
    links: Arc<L>,
    desired: Desired,
    attachments: Attachments,
    /// What the kernel holds, as far as this daemon knows.
    actual: Tables,
    services: balance::Balance,
    prefilters: Box<prefilter::Prefilters>,
    health: health::Health,
    shaping: shaping::Shaping,
    xdp: Box<xdp::Uplinks>,
    /// See [`Input::former_sets`](crate::plan::compile::Input).
    former_sets: IdentitySets,
    /// While `actual` is all that is desired: for changes that touch few rows.
    standing: Option<Standing>,
    uplinks: Vec<Link>,
    overlay_ifindex: u32,
    own_addresses: Vec<IpAddr>,
    host_addresses: Vec<IpAddr>,
    endpoint_mtu_bytes: u32,
    /// The routes to the overlay's device, prefix → source.
    routed: BTreeMap<IpNet, IpAddr>,
    /// Places that XDP sends to, whose next hops the kernel keeps resolved; `None`: those that an earlier daemon left.
    neighbours: Option<BTreeSet<IpAddr>>,
    /// A controller has said to this daemon that all was sent.
    synced: bool,
    flows: count::Flows,
    repairs: repairs::Repairs,
    saved: Saved,
    /// The last revision of the desired state that is in the kernel.
    realised: u64,
    /// From the start of the process until the last known state was enforced.
    enforced_after: Option<Duration>,
    /// What of the node's network is not as it should be.
    network_problems: Vec<String>,
    wants: Wants,
    /// The store that adopts this node, until all of it has come.
    adopting: Option<String>,
    /// The first such word of this daemon's life: devices are swept next.
    sweep_due: bool,
    connection: Option<Connection>,
    /// What the compiler could not do; for people.
    problems: Vec<String>,
    /// Policies that were not realised because their subject is closed.
    unrealised: Vec<v1::RejectedResource>,
    /// Identities whose policy may not be used, and why: their endpoints have failed.
    closed: BTreeMap<u32, String>,
    /// The last write of kernel or disk failed; tried again.
    failure: Option<String>,
    /// Why there is no stream.
    unconnected: Option<String>,
    /// … because the store is not the one this node knows.
    guarded: bool,
    /// Of the reports that the last Hello told of.
    told: Digest,
    /// What the controller of this stream was told of each endpoint, or said that it knows.
    reported: BTreeMap<String, v1::Endpoint>,
    /// The controller's words that are not about what this node has, of which it was told on this stream. `None`: there
    /// was no word where one should be.
    set_right: BTreeMap<String, Option<EndpointWord>>,
    /// Endpoints that the controller refused, until their caller has asked.
    refused: BTreeMap<String, Refusal>,
    /// Goes up whenever something that a caller may wait for has changed.
    changed: watch::Sender<u64>,
    names: Arc<ArcSwap<Names>>,
}
