//! A fleet on one machine: a fabric, a controller's host, a host of the outside world, and nodes, each a namespace.
mod binaries;
mod cgroup;
mod cli;
mod controller;
mod etcd;
mod home;
mod host;
mod node;
mod process;
mod system;
mod topology;
mod whole;
mod workload;

pub use binaries::Binaries;
pub use cgroup::Cgroup;
pub use cli::Answer;
pub use controller::{Controller, Store};
pub use etcd::Etcd;
pub use home::{Home, namespaces, sweep};
pub use host::Host;
pub use node::Node;
pub use process::Process;
pub use topology::{Fabric, Place, UPLINK};
pub use whole::{Fleet, scenario, scenario_on};
pub use workload::Party;
