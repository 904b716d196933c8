//! Services (load balancing), prefilters and shapings: what operators mean by them, from the schema's messages to values that can only
//! be right, and from these to what nodes are told. Pure: no socket, clock, store or kernel.

pub mod model;
pub mod parse;
pub mod probers;
pub mod shares;
pub mod takers;
pub mod wire;
