//! Real traffic: servers, connection attempts, streams and raw packets, on sockets that live in a namespace.
mod attempt;
mod call;
mod checksum;
mod conversation;
mod echo;
mod forged;
mod load;
mod named;
mod namespace;
mod probes;
mod server;
mod stream;
mod tagged;
mod vigil;

pub use attempt::{Flow, Outcome, Protocol, try_all};
pub use call::{
    Answered, CLIENTS, Transport, answering, ask_again, at, connect_and_ask, connected_and_ask, exchange,
    names, send_and_ask,
};
pub use conversation::{Conversation, Mark};
pub use forged::Forged;
pub use load::{Excused, Load, fresh};
pub use named::NamedServer;
pub use namespace::Namespace;
pub use probes::DeniedProbes;
pub use server::{TcpServer, UdpServer};
pub use stream::{EchoStream, Echoes};
pub use tagged::send_tagged;
pub use vigil::Vigil;
