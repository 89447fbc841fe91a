//! The envelopes of a call.

use prost::Message;

/// Status code of gRPC and ttrpc: the call succeeded.
pub const OK: i32 = 0;
/// The peer does not know the service or the method.
pub const UNIMPLEMENTED: i32 = 12;
/// The message is not one of the method, or the stream id is wrong.
pub const INVALID_ARGUMENT: i32 = 3;
/// A bound was passed.
pub const RESOURCE_EXHAUSTED: i32 = 8;

/// Opens a call.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Full name, `containerd.task.v2.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// `Create`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded message of the method.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits, in nanoseconds; zero: for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// `traceparent`, `containerd-namespace-ttrpc`, …
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

impl Request {
    /// The first value of the metadata `key`, compared without regard to case.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|pair| pair.key.eq_ignore_ascii_case(key)).map(|pair| pair.value.as_str())
    }
}

/// One piece of metadata.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Ends a call.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// An encoded `google.rpc.Status`, kept as bytes so that it can be passed on unchanged; absent on success.
    #[prost(bytes = "vec", optional, tag = "1")]
    pub status: Option<Vec<u8>>,
    /// The encoded answer of the method.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
    /// Our extension: an encoded `strata_trace::Spans`.
    #[prost(bytes = "vec", optional, tag = "1000")]
    pub spans: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct WireStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// How a call failed, in the peer's words.
#[derive(Clone, PartialEq, Eq)]
pub struct Status {
    code: i32,
    message: String,
    bytes: Vec<u8>,
}

impl Status {
    /// A status without details.
    pub fn new(code: i32, message: impl Into<String>) -> Status {
        let message = message.into();
        let bytes = WireStatus { code, message: message.clone() }.encode_to_vec();
        Status { code, message, bytes }
    }

    /// The status in an encoded `google.rpc.Status`, details and all.
    ///
    /// # Errors
    /// The bytes are not a status.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Status, prost::DecodeError> {
        let WireStatus { code, message } = WireStatus::decode(bytes.as_slice())?;
        Ok(Status { code, message, bytes })
    }

    /// Number as in google/rpc/code.proto.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// The peer's words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The whole encoded `google.rpc.Status`, for `strata_fault::Fault::from_status_bytes`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The encoded `google.rpc.Status`.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Status({}, {:?})", self.code, self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_its_details() {
        // code 5, message "x", details [Any { type_url: "t" }]
        let bytes = vec![0x08, 5, 0x12, 1, b'x', 0x1a, 3, 0x0a, 1, b't'];
        let status = Status::from_bytes(bytes.clone()).unwrap();
        assert_eq!((status.code(), status.message()), (5, "x"));
        assert_eq!(status.into_bytes(), bytes);
    }

    #[test]
    fn spans_are_an_unknown_field_to_others() {
        #[derive(Clone, PartialEq, Message)]
        struct Theirs {
            #[prost(bytes = "vec", tag = "2")]
            payload: Vec<u8>,
        }
        let ours = Response { status: None, payload: b"p".to_vec(), spans: Some(b"s".to_vec()) };
        assert_eq!(Theirs::decode(ours.encode_to_vec().as_slice()).unwrap().payload, b"p");
    }
}
