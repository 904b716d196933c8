//! A fleet in one thread: real controllers (store semantics, compiler, streams, operator API) and real daemons (stream,
//! desired state, planner, disk) over a simulated network, store and kernel, with time that is not waited for. What
//! happens, and when, is drawn from a seed: a seed makes the same run again.
//!
//! While faults happen, tables are looked at: nothing that a node was not told of is ever allowed where a rule denies it,
//! what a node acknowledges is in its kernel, no identity is given twice. When they have ended, every node must come to
//! the tables that the store's contents make from scratch, by itself.
mod acknowledged;
mod chance;
mod events;
mod history;
mod inspect;
mod kernel;
mod network;
mod node;
mod operator;
mod rest;
mod run;
mod scratch;
mod store;
mod verdict;
mod ways;
mod world;

pub use run::{Failure, Report, Size, run};
