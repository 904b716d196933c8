//! A fleet on one machine: a fabric, a controller's host, a host of the outside world, and nodes, each a namespace.
mod binaries;
mod cgroup;
mod cli;
mod controller;
mod etcd;
mod home;
mod host;
mod manifest;
mod monitor;
mod node;
mod process;
mod system;
mod tap;
mod topology;
mod tunnel_end;
mod vm;
mod whole;
mod workload;
mod xdp;

pub use binaries::Binaries;
pub(crate) use binaries::folder as binaries_folder;
pub use cgroup::Cgroup;
pub(crate) use cgroup::{join as join_cgroup, root as cgroup_root};
pub use cli::Answer;
pub use controller::{Controller, Store};
pub use etcd::Etcd;
pub use home::{Home, namespaces, sweep};
pub use host::Host;
pub use manifest::{backends, frontends};
pub use monitor::Monitor;
pub use node::Node;
pub use process::Process;
pub(crate) use system::tool;
pub use topology::{Fabric, Place, UPLINK};
pub use tunnel_end::TunnelEnd;
pub use whole::{Fleet, scenario, scenario_on};
pub use workload::Party;

/// What tests of seeing why look at: one kind of endpoint is open at a port to another, and denies one port to everybody.
pub const API_POLICY: &str = "
kind: Policy
name: api
subject: {endpoints: {matchLabels: {app: api}}}
ingress:
  - name: web
    action: allow
    peers: [{endpoints: {matchLabels: {app: web}}}]
    ports: [{protocol: TCP, port: 8080}]
  - name: not-ssh
    action: deny
    ports: [{protocol: TCP, port: 22}]
";
