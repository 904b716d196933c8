//! Endpoints of this node, as far as no kernel is needed: names of interfaces and addresses.

pub mod addresses;
pub mod interface;
