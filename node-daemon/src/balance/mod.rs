//! Services on this node: what the controller says of one becomes tables and frontends, and those become steps. Pure.

pub mod tables;
