//! The daemon of this node.
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Socket {
    /// The socket of this node's daemon
    #[arg(
        id = "socket",
        long = "socket",
        env = "WEFT_SOCKET",
        value_name = "PATH",
        default_value = "/run/weft/noded.sock"
    )]
    pub(crate) path: PathBuf,
}
