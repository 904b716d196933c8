//! Keys, values and constants of every map that the daemon writes and the kernel programs read, and of the events that
//! come back. Integers are in the host's byte order unless a field says *network order*.
//!
//! A map that changes its layout gets a new pin name (see [`maps`]): the old one may still be in the kernel, pinned by
//! the daemon of an earlier version.

mod address;
mod book;
mod connection;
mod endpoint;
mod event;
mod failsafe;
mod flow;
mod fragment;
pub mod maps;
mod peer;
mod policy;
pub mod prefilter;
mod reason;
pub mod service;
pub mod shaping;
pub mod table;

pub use address::{Address, PrefixKey};
pub use book::{BOOK_ROWS_MAX, Book};
pub use connection::{
    Connection, ConnectionKey, ConnectionRow, Leg, connection_flags, connection_nanoseconds,
};
pub use endpoint::{Endpoint, endpoint_flags};
pub use event::{Event, Told, ToldKey, monitor_flags};
pub use failsafe::FailsafeKey;
pub use flow::{Flow, FlowKey, FlowRow, flow_flags, timeout_nanoseconds};
pub use fragment::{FRAGMENT_NANOSECONDS, Fragment, FragmentKey};
pub use peer::{Node, Peer, RuntimeState, Subject, host};
pub use policy::{Action, CLASS_RULEBOOKS, Direction, PeerKey, PolicyRow, PortKey, RuleKey, class_rulebook};
pub use reason::{Point, Reason};

/// Identities below this number are classes, the same on every node.
pub const FIRST_GLOBAL_IDENTITY: u32 = 256;
/// Global identities fit a VXLAN VNI (24 bits, RFC 7348); those from here on stand for prefixes and are local to a node.
pub const FIRST_LOCAL_IDENTITY: u32 = 1 << 24;

/// The class every party is in, exactly one; the number is its reserved identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Class {
    /// The subject's own node.
    Host = 1,
    /// Another node of the fleet.
    RemoteNode = 2,
    /// Any endpoint.
    Fleet = 3,
    /// An address inside the pools that no endpoint has.
    Unmanaged = 4,
    /// The rest.
    World = 5,
}

impl Class {
    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Host, Self::RemoteNode, Self::Fleet, Self::Unmanaged, Self::World];

    /// By its number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Host),
            2 => Some(Self::RemoteNode),
            3 => Some(Self::Fleet),
            4 => Some(Self::Unmanaged),
            5 => Some(Self::World),
            _ => None,
        }
    }
}

/// Constants of the datapath that a load fixes (`.rodata` of the object, symbol `CONFIG`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Config {
    /// The overlay's device; 0: there is none, and what should go there is dropped.
    pub overlay_ifindex: u32,
    /// UDP port of VXLAN, host order.
    pub vxlan_port: u32,
    /// Nanoseconds after which an entry of the flow table is as good as absent, by state: see [`timeout_nanoseconds`].
    pub timeout_syn: u64,
    pub timeout_established: u64,
    pub timeout_closing: u64,
    pub timeout_other: u64,
    /// Nanoseconds for which drops that look alike (see [`ToldKey`]) are only counted after one was told of; 0: each is told.
    pub tell_again_after: u64,
    /// Cookie of the node's own network namespace; 0: none is.
    pub namespace_cookie: u64,
    /// Ports (host order, both ends included) that connections to backends come from that answer through this node.
    pub snat_first_port: u16,
    pub snat_last_port: u16,
    /// 1: others see this CPU's stores in the order in which it made them, and it sees theirs so (x86-64's memory model).
    pub in_order: u32,
    /// Connections that each CPU may add to `CONNECTIONS` in a second; what comes beyond is balanced and not remembered.
    pub connections_a_second: u64,
    /// Of the hashes of [`table`]s: made with them, and kept in their rows 0.
    pub seed: u64,
    /// Rows of `FLOWS` less one: a power of two less one.
    pub flow_rows_mask: u32,
    pub zero: u32,
}

impl Config {
    /// What the daemon starts from.
    #[expect(clippy::cast_possible_truncation, reason = "a number of rows")]
    pub const DEFAULT: Self = Self {
        overlay_ifindex: 0,
        vxlan_port: 8472,
        timeout_syn: 60 * SECOND,
        timeout_established: 8000 * SECOND,
        timeout_closing: 10 * SECOND,
        timeout_other: 60 * SECOND,
        tell_again_after: SECOND,
        namespace_cookie: 0,
        snat_first_port: 61_000,
        snat_last_port: 65_535,
        in_order: cfg!(target_arch = "x86_64") as u32,
        connections_a_second: 20_000,
        seed: 0,
        flow_rows_mask: (maps::FLOWS_MAX - 1) as u32,
        zero: 0,
    };
}

const SECOND: u64 = 1_000_000_000;
