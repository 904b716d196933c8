//! Fleets of network namespaces with real controllers and daemons, and real traffic between their workloads: the
//! vocabulary of the tests in `tests/` (one file a promise) and of the demo.
//!
//! All traffic stays inside namespaces that a fleet made itself.

pub mod bench;
pub mod fleet;
pub mod limits;
pub mod traffic;
pub mod wait;
pub mod wire;
