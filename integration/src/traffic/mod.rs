//! Real traffic: servers, connection attempts, streams and raw packets, on sockets that live in a namespace.
mod attempt;
mod checksum;
mod conversation;
mod echo;
mod forged;
mod named;
mod namespace;
mod probes;
mod server;
mod stream;
mod tagged;
mod vigil;

pub use attempt::{Flow, Outcome, Protocol, try_all};
pub use conversation::{Conversation, Mark};
pub use forged::Forged;
pub use named::{Answered, NamedServer, connect_and_ask, send_and_ask};
pub use namespace::Namespace;
pub use probes::DeniedProbes;
pub use server::{TcpServer, UdpServer};
pub use stream::{EchoStream, Echoes};
pub use tagged::send_tagged;
pub use vigil::Vigil;
