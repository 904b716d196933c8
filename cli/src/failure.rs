//! Why a command did not do what it was asked to, and the exit code that says so.
use std::io;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::manifest::{LoadError, Problem};

/// Exit codes, the same for every command.
pub(crate) mod exit {
    /// Done, or nothing to do.
    pub(crate) const DONE: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    /// There are differences, or a test failed.
    pub(crate) const DIFFERENCES: u8 = 2;
    /// Timed out waiting.
    pub(crate) const TIMED_OUT: u8 = 3;
    /// Bad usage (`EX_USAGE` of sysexits.h).
    pub(crate) const USAGE: u8 = 64;
    /// The server cannot be reached (`EX_UNAVAILABLE` of sysexits.h).
    pub(crate) const UNREACHABLE: u8 = 69;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// The manifests are wrong, or the server says so of a place in them.
    #[error("the manifests are wrong")]
    Manifest(Vec<Problem>),
    /// What other systems' policies say cannot be said here, or is wrong.
    #[error("the policies cannot be imported")]
    Import(Vec<Problem>),
    /// The server said no.
    #[error("{message}")]
    Refused {
        message: String,
        /// Path of a field in the request, and what is wrong with it.
        fields: Vec<(String, String)>,
        code: Code,
    },
    #[error("{message}")]
    Unreachable { message: String, help: String },
    /// No failure, but an answer that scripts ask for.
    #[error("there are differences")]
    Differences,
    #[error("{0}")]
    TimedOut(String),
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            // Who reads us has seen enough (`weft get … | head`).
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::DONE,
            Self::Failed(_)
            | Self::Manifest(_)
            | Self::Import(_)
            | Self::Refused { .. }
            | Self::Output(_) => exit::FAILED,
            Self::Differences => exit::DIFFERENCES,
            Self::TimedOut(_) => exit::TIMED_OUT,
            Self::Usage(_) => exit::USAGE,
            Self::Unreachable { .. } => exit::UNREACHABLE,
        }
    }

    /// What a server answered with; Unavailable and deadlines are for the caller to tell apart.
    pub(crate) fn refused(status: &Status) -> Self {
        let fields =
            status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default();
        let fields = fields.into_iter().map(|violation| (violation.field, violation.description)).collect();
        let message = match (status.code(), status.message()) {
            (code, "") => code.description().to_owned(),
            // The message says all there is to say to the operator.
            (
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::ResourceExhausted
                | Code::OutOfRange
                | Code::Aborted,
                message,
            ) => message.to_owned(),
            (code, message) => format!("{message} ({})", code.description()),
        };
        Self::Refused { message, fields, code: status.code() }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Wrong(problems) => Self::Manifest(problems),
            other => Self::Failed(other.to_string()),
        }
    }
}
