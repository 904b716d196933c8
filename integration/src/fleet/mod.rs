//! A fleet on one machine: a fabric, a controller's host, a host of the outside world, and nodes, each a namespace.
mod home;
mod host;
mod process;
mod system;
mod topology;

pub use home::{Home, namespaces, sweep};
pub use host::Host;
pub use process::Process;
pub use topology::{Fabric, Place, UPLINK};
