//! The pure half of the daemon: what the kernel's tables should hold ([`compile`]), and the steps that bring them there
//! ([`diff`]), which for most changes are found without looking at all that
//! stays ([`narrow`]). Nothing here knows a clock, a socket or the kernel.

pub mod compile;
pub mod diff;
pub mod narrow;
pub mod tables;
pub mod who;

#[cfg(test)]
mod tests;
