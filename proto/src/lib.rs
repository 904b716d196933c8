//! `weft.v1`: the messages and services of Weft. The `.proto` files beside this crate are the schema of the API, of what
//! is stored, and (field by field) of the YAML manifests.

pub mod codec;

/// So that who depends on this crate alone can encode.
pub use prost::Message;

/// The generated types.
#[expect(clippy::all, clippy::pedantic, unused_qualifications, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// The encoded `FileDescriptorSet` of `weft.v1`, for gRPC reflection and for the manifests.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft.v1.bin"));
