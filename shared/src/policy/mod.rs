//! The pure policy model: what operators write ([`parse`]) becomes values ([`model`]); the evaluator of the rules
//! ([`oracle`]) and the table compiler ([`compile`]) must agree on every flow. [`wire`] is the form nodes are sent.
//!
//! Nothing here knows a clock, a socket, the store or the kernel.

#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
#[cfg(any(test, feature = "arbitrary"))]
pub mod case;
pub mod compile;
pub mod model;
pub mod oracle;
pub mod parse;
mod ports;
pub mod prefix;
pub mod selector;
pub mod wire;
