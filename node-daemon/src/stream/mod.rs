//! The stream to a controller: [`client`] moves messages, [`handler`] decides what they mean, [`backoff`] when to try
//! again.

pub mod backoff;
pub mod client;
pub mod handler;
