//! What a failure of etcd means: whether the request was done, and whether it is worth asking again.
use std::{error::Error as _, fmt};

use etcd_client::Error;
use tonic::{Code, Status};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Certainly not done. Another member, or the same one later, may do it.
    NotDone(String),
    /// It was sent, and nobody said whether it was done.
    Unknown(String),
    /// Certainly not done: the connection's credentials are not valid any more.
    Credentials(String),
    Compacted,
    Future,
    /// The answer is larger than what we take.
    TooLarge,
    /// Certainly not done, and asking again would not help.
    Refused(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDone(text) | Self::Unknown(text) | Self::Credentials(text) | Self::Refused(text) => {
                formatter.write_str(text)
            }
            Self::Compacted => formatter.write_str("the revision was compacted"),
            Self::Future => formatter.write_str("the revision is in the future"),
            Self::TooLarge => formatter.write_str("the answer is too large"),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            // A name that does not parse, a certificate that is none: found before anything is sent.
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Self::Refused(error.to_string())
            }
            Error::TransportError(error) => Self::Refused(chain(&error)),
            other => Self::Unknown(other.to_string()),
        }
    }
}

/// etcd's own errors are told by their texts: codes are shared by several (etcdserver/api/v3rpc/rpctypes/error.go).
fn of_status(status: &Status) -> Fault {
    let text = status.message();
    if never_connected(status) {
        return Fault::NotDone(chain(status));
    }
    let says = |part: &str| text.contains(part);
    match status.code() {
        Code::OutOfRange if says("required revision has been compacted") => Fault::Compacted,
        Code::OutOfRange if says("required revision is a future revision") => Fault::Future,
        Code::OutOfRange if says("message length too large") => Fault::TooLarge,
        Code::Unauthenticated => Fault::Credentials(text.to_owned()),
        // The users changed since the token was given.
        Code::InvalidArgument if says("revision of auth store is old") => Fault::Credentials(text.to_owned()),
        // Said before the request is looked at.
        Code::Unavailable if says("no leader") => Fault::NotDone(text.to_owned()),
        Code::ResourceExhausted if says("too many requests") => Fault::NotDone(text.to_owned()),
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unimplemented => Fault::Refused(text.to_owned()),
        _ => Fault::Unknown(chain(status)),
    }
}

fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// A gRPC status says "transport error"; what happened is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
