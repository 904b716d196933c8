//! etcd for tests: real members on free ports, with data of their own, and what can happen to them.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use weft_test_etcd::{Cluster, Options};
//!
//! let mut etcd = Cluster::start(3, &Options::default())?; // returns once all members serve
//! let urls = etcd.urls(); // for `weft-controller --etcd`
//! let leader = etcd.leader()?;
//! etcd.member(leader).kill()?; // SIGKILL
//! etcd.member(leader).start()?; // again, with its data, on its ports
//! etcd.member(0).freeze()?; // SIGSTOP: takes connections, answers nothing
//! etcd.member(0).thaw()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything happens on the calling thread: started by a thread inside a network namespace, the members are there, and are
//! asked for their health there. [`Options::address`] is then an address of that namespace, and [`Options::directory`] where
//! the data stays; without it, data is in a temporary directory and ends with the [`Cluster`]. Dropping it kills the members.
#![forbid(unsafe_code)]

mod cluster;
mod member;
mod ports;
mod probe;
mod wait;

pub use cluster::{Cluster, Options, Tls};
pub use member::Member;
