//! The front doors. Each translates its wire types into the core's and back, and decides nothing.

pub(crate) mod grpc;
