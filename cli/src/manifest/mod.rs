//! YAML manifests: files → objects of `weft.v1`, and back. What is wrong is said with file, line and column.
mod json_schema;
mod load;
mod problem;
mod read;
mod scalar;
pub(crate) mod schema;
mod source;
pub(crate) mod tree;
mod write;
mod yaml;

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod round_trip;

pub use json_schema::json_schema;
pub use load::{LoadError, Manifests, load, parse, sources};
pub use problem::Problem;
pub(crate) use problem::quoted;
pub(crate) use read::Reader;
pub(crate) use schema::{metadata_of, nearest};
pub use source::{Place, Source, Span};
pub use write::{answer, object};
pub use yaml::{document, documents};
