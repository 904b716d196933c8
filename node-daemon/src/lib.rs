//! The daemon of each node: takes the desired state from a controller, keeps it on disk, and writes it into the kernel
//! (docs/architecture.md). `stream → desired → plan → kernel`, each a module; [`daemon`] is the shell that joins them.

pub mod balance;
pub mod daemon;
pub mod desired;
pub mod endpoint;
pub mod health;
pub mod kernel;
pub mod limits;
pub mod local;
pub mod memory;
pub mod observe;
pub mod plan;
pub mod prefilter;
pub mod shaping;
pub mod stream;
