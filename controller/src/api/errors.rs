//! How failures of every part look to a client: one gRPC code each, and the places of what is wrong.
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};
use weft_shared::policy::parse::FieldError;

use crate::{
    adoption::AdoptionError, claims::ClaimError, identity::IdentityError, nodes::NodeError, plan::Contended,
    store::StoreError,
};

/// How many places the message names; the details hold all.
const NAMED_IN_MESSAGE: usize = 3;

/// Everything that is wrong with a request. Paths are the request's.
pub fn bad_request(errors: &[FieldError]) -> Status {
    let named = errors.iter().take(NAMED_IN_MESSAGE).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let more = errors.len().saturating_sub(NAMED_IN_MESSAGE);
    let message = if more > 0 { format!("{named}; and {more} more") } else { named };
    let violations = errors.iter().map(|error| FieldViolation::new(&error.path, &error.message));
    let details = ErrorDetails::with_bad_request(violations.collect::<Vec<_>>());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

pub fn bad_field(path: impl Into<String>, message: impl Into<String>) -> Status {
    bad_request(&[FieldError::new(path, message)])
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
pub fn store(error: StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => Status::out_of_range(format!("{error}: list again")),
        StoreError::Future { .. } => Status::invalid_argument(error.to_string()),
        StoreError::Closed
        | StoreError::Backend(_)
        | StoreError::Unreachable { .. }
        | StoreError::Uncertain { .. }
        | StoreError::Replaced { .. } => {
            tracing::error!(%error, "the store failed");
            Status::unavailable(error.to_string())
        }
        StoreError::Refused { .. } => {
            tracing::error!(%error, "the store refuses");
            Status::failed_precondition(error.to_string())
        }
        StoreError::TooManyOperations { .. }
        | StoreError::DuplicateKey { .. }
        | StoreError::InUse { .. }
        | StoreError::Open { .. }
        | StoreError::Format { .. }
        | StoreError::Corrupt { .. } => {
            tracing::error!(%error, "the store cannot be used");
            Status::internal(error.to_string())
        }
    }
}

pub fn adoption(error: AdoptionError) -> Status {
    match error {
        AdoptionError::NotWaiting(_) => Status::not_found(error.to_string()),
        AdoptionError::Identity(IdentityError::Exhausted | IdentityError::TooFar { .. }) => {
            Status::resource_exhausted(error.to_string())
        }
        AdoptionError::Contended(contention) => contended(&contention),
        AdoptionError::Identity(IdentityError::Store(error)) | AdoptionError::Store(error) => store(error),
    }
}

pub fn contended(error: &Contended) -> Status {
    Status::aborted(format!("{error}: try again"))
}

pub fn node(error: NodeError) -> Status {
    match error {
        NodeError::Invalid(text) => Status::invalid_argument(text),
        NodeError::NotFound(_) => Status::not_found(error.to_string()),
        NodeError::PoolExhausted { .. }
        | NodeError::Identity(IdentityError::Exhausted | IdentityError::TooFar { .. }) => {
            Status::resource_exhausted(error.to_string())
        }
        NodeError::Claim(ClaimError::Taken { .. })
        | NodeError::SpokenFor { .. }
        | NodeError::SnatPorts { .. } => Status::already_exists(error.to_string()),
        NodeError::Stale(_) | NodeError::Connected { .. } | NodeError::Version(_) => {
            Status::failed_precondition(error.to_string())
        }
        NodeError::Contended(contention) => contended(&contention),
        NodeError::Endpoint(error) => Status::unavailable(error.to_string()),
        NodeError::Claim(ClaimError::Store(error))
        | NodeError::Identity(IdentityError::Store(error))
        | NodeError::Store(error) => store(error),
    }
}
