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
    /// Certainly not done: the member is of another cluster than the others.
    Foreign,
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
            Self::Foreign => formatter.write_str("it is of another etcd cluster than the members before it"),
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
            Error::TransportError(error) => Self::Refused(chain(&error, &error.to_string())),
            other => Self::Unknown(other.to_string()),
        }
    }
}

/// etcd's own errors are told by their texts: codes are shared by several (etcdserver/api/v3rpc/rpctypes/error.go).
fn of_status(status: &Status) -> Fault {
    let text = status.message();
    if never_connected(status) {
        return Fault::NotDone(chain(status, text));
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
        _ => Fault::Unknown(chain(status, text)),
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

/// What it says, and what is at the bottom of it: in between there are only layers that it passed.
fn chain(error: &dyn std::error::Error, says: &str) -> String {
    let mut bottom = error.source();
    while let Some(deeper) = bottom.and_then(std::error::Error::source) {
        bottom = Some(deeper);
    }
    match bottom.map(ToString::to_string) {
        Some(bottom) if !says.contains(&bottom) => format!("{says}: {bottom}"),
        _ => says.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcd_says_before_it_does_anything_was_not_done() {
        for (code, text) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
        ] {
            let fault = of_status(&Status::new(code, text));
            assert_eq!(fault, Fault::NotDone(text.to_owned()));
        }
    }

    #[test]
    fn what_may_have_been_done_is_never_called_not_done() {
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "transport error"),
            (Code::Unknown, "h2 protocol error"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Internal, "stream terminated"),
            (Code::Cancelled, "operation was cancelled"),
        ] {
            let fault = of_status(&Status::new(code, text));
            assert_eq!(fault, Fault::Unknown(text.to_owned()), "{code}");
        }
    }

    #[test]
    fn a_connection_that_was_refused_did_nothing_and_says_why() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(tonic::ConnectError(Box::new(refused))));
        let Fault::NotDone(text) = of_status(&status) else { panic!("it was called done") };
        assert!(text.contains("connection refused") && !text.contains("ConnectError"), "{text}");
    }
}
