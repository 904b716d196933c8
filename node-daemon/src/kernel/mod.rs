//! Where the daemon meets the kernel: two traits, each with the real implementation and an in-memory twin.
//!
//! [`Datapath`] is the BPF half (maps, programs, links); [`Links`] the netlink half (devices, addresses, routes).
//! Nothing here decides anything: what to write is the planner's word.

mod attach;
mod books;
pub mod cgroup;
mod connections;
pub mod events;
pub mod features;
mod grace;
pub mod links;
mod maps;
pub mod netlink;
pub mod netns;
pub mod object;
mod pins;
mod prefilters;
pub mod probe;
mod runs;
mod services;
mod shaping;
mod sockets;
pub mod sysctl;
mod trusted;
pub mod twin;
mod uplinks;

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use weft_shared::layout::{
    Point, Reason,
    maps::Counter,
    service::{Element, SocketPeer},
    shaping::{Pair, RoundTrips},
};

use crate::{
    balance::tables::{Services, Step as ServiceStep},
    plan::tables::{Step, Tables},
    prefilter::lists::{Lists, Step as PrefilterStep},
};

/// What failed in the kernel, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct KernelError {
    /// What was attempted, with the object's name.
    pub what: String,
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl KernelError {
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: source.into() }
    }
}

/// Which programs an interface gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Host's side of an endpoint: `tc_from_endpoint` on ingress, `tc_to_endpoint` on egress.
    Endpoint,
    /// `tc_from_overlay` on ingress, `tc_to_overlay` on egress.
    Overlay,
    /// `tc_from_uplink` on ingress, `tc_to_uplink` on egress.
    Uplink,
}

/// How an interface was found by [`Datapath::attach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Programs of ours were there, and were replaced in place.
    InPlace,
    /// At least one was not.
    Anew,
}

/// Where the XDP program of an uplink runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the packet gets a buffer of the stack's.
    Native,
    /// In the stack, for drivers that have no place for it.
    Generic,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    pub name: &'static str,
    pub entries: u64,
    pub capacity: u64,
}

/// What a slice of a count of the flow table has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// That are not over.
    pub entries: u64,
    /// The table's end was reached; the next slice begins anew.
    pub finished: bool,
}

/// Maps and programs. One owner writes; every call returns when the kernel has it.
pub trait Datapath: Send + 'static {
    /// What is in the maps now.
    fn read_tables(&mut self) -> Result<Tables, KernelError>;

    /// Writes the steps in order and stops at the first that fails.
    fn write(&mut self, steps: &[Step]) -> Result<(), KernelError>;

    /// What is in the maps of services now.
    fn read_services(&mut self) -> Result<Services, KernelError>;

    /// Elements of the table that is in a slot of services now.
    fn read_table(&mut self, slot: u32) -> Result<Vec<Element>, KernelError>;

    /// Writes the steps in order and stops at the first that fails.
    fn write_services(&mut self, steps: &[ServiceStep]) -> Result<(), KernelError>;

    /// Whether some daemon has attached the socket programs.
    fn sockets_attached(&mut self) -> Result<bool, KernelError>;

    /// Attaches the socket programs to a cgroup, or replaces in place those that an earlier daemon attached there.
    fn attach_sockets(&mut self, cgroup: &Path) -> Result<Attached, KernelError>;

    /// Ends the connected sockets of these protocols (UDP, TCP), of this namespace and of those at the paths, whose service does not serve
    /// them any more. How many there were; a namespace that has gone has none.
    fn end_sockets(
        &mut self,
        namespaces: &[String],
        protocols: &[u8],
        serves: &(dyn Fn(u8, &SocketPeer) -> bool + Sync),
    ) -> Result<u64, KernelError>;

    /// Whether some daemon has attached the programs that pace connections.
    fn pacing_attached(&mut self) -> Result<bool, KernelError>;

    /// Attaches them to a cgroup, or replaces in place those that an earlier daemon attached there.
    fn attach_pacing(&mut self, cgroup: &Path) -> Result<Attached, KernelError>;

    /// Brings the rates of connections of cgroups to these, by the cgroups' paths below a root, in bytes a second. A cgroup
    /// that is not there is passed over.
    fn pace_cgroups(&mut self, root: &Path, rates: &BTreeMap<PathBuf, u32>) -> Result<(), KernelError>;

    /// Round trips of connections since the programs that pace were attached, as far as there is room.
    fn round_trips(&mut self) -> Result<BTreeMap<Pair, RoundTrips>, KernelError>;

    /// Attaches the hook's programs, or moves programs attached by an earlier daemon to ours in place.
    fn attach(&mut self, ifindex: u32, hook: Hook) -> Result<Attached, KernelError>;

    /// What is in the maps of prefilters now.
    fn read_prefilters(&mut self) -> Result<Lists, KernelError>;

    /// Writes the steps in order and stops at the first that fails.
    fn write_prefilters(&mut self, steps: &[PrefilterStep]) -> Result<(), KernelError>;

    /// What was dropped for lists, by their slots.
    fn prefiltered(&mut self, slots: &[u32]) -> Result<BTreeMap<u32, Counter>, KernelError>;

    /// Attaches the XDP program to an uplink, native where its driver can, or replaces in place one that an earlier daemon
    /// attached.
    fn attach_xdp(&mut self, ifindex: u32) -> Result<(Attached, Mode), KernelError>;

    /// Takes the XDP program off the interface; no error where there is none or the interface is gone.
    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), KernelError>;

    /// Interfaces that carry the XDP program, gone ones among them.
    fn xdp_attached(&mut self) -> Result<Vec<u32>, KernelError>;

    /// Takes our programs off the interface; no error where there are none or the interface is gone.
    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError>;

    /// All programs that are attached are ours now: what only earlier ones used goes.
    fn settle(&mut self) -> Result<(), KernelError>;

    /// Interfaces that carry programs of ours, and which.
    fn attached(&mut self) -> Result<Vec<(u32, Hook)>, KernelError>;

    /// Counters that are not zero.
    fn counters(&mut self) -> Result<Vec<(Point, Reason, Counter)>, KernelError>;

    /// Events that found the ring buffer full.
    fn events_lost(&mut self) -> Result<u64, KernelError>;

    /// Counts the entries of the flow table, a slice of it at a time.
    fn count_flows(&mut self) -> Result<Counted, KernelError>;

    /// Entries that the flow table can hold.
    fn flows_capacity(&mut self) -> Result<u64, KernelError>;

    /// Memory that our maps take in the kernel.
    fn map_bytes(&mut self) -> Result<u64, KernelError>;
}
