//! `weft`, the operator's command.
pub mod limits;
pub mod manifest;
