//! ttrpc, the protocol between containerd and its shims, as the containerd project's `ttrpc` defines it: protobuf
//! envelopes in frames with a header of ten bytes, many calls at once on one connection.
//!
//! [`frame`] cuts bytes into frames and [`message`] holds the envelopes; both do no I/O, so the shim uses them from an
//! epoll loop. With the feature `tokio` there are a [`client`], used by shimd to call shims, and a [`server`], used by
//! shimd to take the events that shims publish. Streaming calls are not spoken: no shim service uses them.
//!
//! One extension is ours: the response envelope may carry `spans` (field 1000), the encoded `strata_trace::Spans` of the
//! call. It is sent only to a caller whose metadata holds a sampled `traceparent`; others skip an unknown field.

pub mod frame;
pub mod message;

#[cfg(feature = "tokio")]
pub mod client;
#[cfg(feature = "tokio")]
pub mod server;
#[cfg(feature = "tokio")]
mod socket;

pub use message::{Request, Response, Status};

#[cfg(feature = "tokio")]
pub use client::{CallError, CallOptions, Client, Reply};
