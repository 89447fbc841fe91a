//! `strata.engine.v1`, the API between clients and engined. The document is `engine.proto`; this crate is what is
//! generated from it, and no logic.

#![expect(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code is not ours to tidy")]

tonic::include_proto!("strata.engine.v1");

/// The serialized `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/engine.bin"));
