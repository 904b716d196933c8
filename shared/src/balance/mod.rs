//! Which backend of a service a new flow gets, the same on every node: [`maglev`] gives backends their slots, [`table`] makes
//! the table that the kernel programs read, which [`image`] reads back. Pure.

pub mod image;
pub mod maglev;
pub mod table;
