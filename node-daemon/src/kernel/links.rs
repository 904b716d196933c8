//! The netlink half of the kernel as the daemon needs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use async_trait::async_trait;
use ipnet::IpNet;

use super::KernelError;
use crate::desired::attachments::Mac;

/// A network interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu_bytes: u32,
    pub up: bool,
    /// A veth whose peer is in another network namespace.
    pub peer_elsewhere: bool,
}

/// What the kernel said has changed in the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Indices of interfaces that came or changed.
    pub links: BTreeSet<u32>,
    /// Addresses came or went, or the kernel does not say what changed.
    pub others: bool,
}

/// What came of making sure of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ensured {
    pub ifindex: u32,
    /// It was not as it should be.
    pub changed: bool,
}

/// An interface pair to make for an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEndpoint {
    /// The host's side.
    pub host_name: String,
    /// Path of the workload's namespace.
    pub netns: String,
    /// The workload's side, inside the namespace.
    pub workload_name: String,
    pub addresses: Vec<IpAddr>,
    pub mtu_bytes: u32,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeEndpoint {
    pub ifindex: u32,
    pub workload_mac: Mac,
    pub gateway_mac: Mac,
}

/// Devices, addresses and routes. Everything made is recognisable as ours by its name.
#[async_trait]
pub trait Links: Send + Sync + 'static {
    async fn find(&self, name: &str) -> Result<Option<Link>, KernelError>;

    async fn find_at(&self, ifindex: u32) -> Result<Option<Link>, KernelError>;

    /// The devices of the default routes.
    async fn default_uplinks(&self) -> Result<Vec<Link>, KernelError>;

    /// Global addresses of an interface.
    async fn addresses(&self, ifindex: u32) -> Result<Vec<IpAddr>, KernelError>;

    /// Addresses of all interfaces by which others reach this host, their links' broadcast addresses among them.
    async fn host_addresses(&self) -> Result<Vec<IpAddr>, KernelError>;

    /// Makes the VXLAN device where it is missing or of another kind, down, and under the index if one is given; one that
    /// is right is left as it is.
    async fn ensure_overlay(
        &self,
        name: &str,
        udp_port: u16,
        mtu_bytes: u32,
        ifindex: Option<u32>,
    ) -> Result<Ensured, KernelError>;

    /// Makes the routes of the node's own processes to the overlay's device these: prefix → source. No two have one prefix.
    /// Whether anything was not so.
    async fn route_to_overlay(
        &self,
        ifindex: u32,
        routes: &BTreeMap<IpNet, IpAddr>,
    ) -> Result<bool, KernelError>;

    /// Makes the neighbours that the kernel keeps resolved for us those by which these places are reached over the uplinks, and lets go
    /// of others. Those that somebody has set for good are left alone. Whether anything was not so.
    async fn keep_neighbours(
        &self,
        uplinks: &BTreeSet<u32>,
        places: &BTreeSet<IpAddr>,
    ) -> Result<bool, KernelError>;

    /// Whether the interface's queues let packets go at their times of departure (fq).
    async fn keeps_departures(&self, ifindex: u32) -> Result<bool, KernelError>;

    /// Whether it was down.
    async fn set_up(&self, ifindex: u32) -> Result<bool, KernelError>;

    /// Forwarding and what it needs on the uplinks; whether anything was not set.
    async fn prepare_node(&self, uplinks: &[Link]) -> Result<bool, KernelError>;

    /// Makes the pair and configures the workload's side; the host's side stays down, so that nothing passes before
    /// programs are attached.
    async fn make_endpoint(&self, new: &NewEndpoint) -> Result<MadeEndpoint, KernelError>;

    /// MAC of the other end of a veth, where it can be found.
    async fn peer_mac(&self, name: &str) -> Result<Option<Mac>, KernelError>;

    /// Host's side up, routes and neighbours of these addresses to it. Idempotent; whether something was missing.
    async fn connect_endpoint(
        &self,
        ifindex: u32,
        addresses: &[IpAddr],
        mac: Mac,
    ) -> Result<bool, KernelError>;

    /// MTU of both sides of an interface that is ours; of the host's alone where the namespace is gone.
    async fn set_endpoint_mtu(&self, ifindex: u32, netns: &str, mtu_bytes: u32) -> Result<(), KernelError>;

    /// Takes routes and neighbours of an interface that is not ours away and sets it down: up and without programs, what
    /// is behind it would reach all that the host reaches.
    async fn disconnect_endpoint(&self, ifindex: u32, addresses: &[IpAddr]) -> Result<(), KernelError>;

    /// No error where there is none.
    async fn remove(&self, name: &str) -> Result<(), KernelError>;

    /// Interfaces whose names are ours.
    async fn ours(&self) -> Result<Vec<Link>, KernelError>;
}
