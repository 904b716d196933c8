//! The controller: keeps the fleet's state in a store, allocates identities, scopes and streams to each node what it
//! needs, and serves operators. `main.rs` is flags; everything is here.
pub mod adoption;
pub mod api;
pub mod claims;
pub mod collector;
pub mod endpoints;
pub mod expiry;
pub mod fleet;
pub mod fleet_config;
pub mod guard;
pub mod health;
pub mod identity;
pub mod keys;
pub mod limits;
pub mod nodes;
pub mod opening;
pub mod overlaps;
pub mod plan;
pub mod prefixes;
pub mod progress;
pub mod relocation;
pub mod removal;
pub mod resource;
pub mod serve;
pub mod signal;
pub mod store;
pub mod stream;
pub mod verdicts;

pub use opening::StoreConfig;
pub use serve::{Config, Controller, ServeError, Services};
