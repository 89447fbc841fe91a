//! A fault as bytes: a serialized `google.rpc.Status` with one `google.rpc.ErrorInfo` in its details.
//!
//! The same bytes stand in the `grpc-status-details-bin` trailer of gRPC and in the `Response.status` of ttrpc. Field
//! numbers: googleapis `google/rpc/status.proto`, `google/rpc/error_details.proto`, protobuf `google/protobuf/any.proto`.

use std::collections::HashMap;
use std::fmt;

use prost::Message;

use crate::{Fault, Layer, code};

const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const DOMAIN: &str = "strata";

/// Longest message or cause that is sent, in bytes: gRPC carries details in a header, and headers are bounded.
const TEXT_MAX: usize = 1024;
/// Most causes that are sent.
const CAUSES_MAX: usize = 8;

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

/// The bytes are not a `google.rpc.Status`.
#[derive(Debug)]
pub struct DecodeError(prost::DecodeError);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("decode a google.rpc.Status")
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The status codes of gRPC and ttrpc, by number (google/rpc/code.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the standard's own")]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl GrpcCode {
    /// The class with that number; what is unknown is [`GrpcCode::Unknown`].
    pub fn from_number(number: i32) -> GrpcCode {
        use GrpcCode::*;
        const ALL: [GrpcCode; 16] = [
            Cancelled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        ALL.into_iter().find(|class| *class as i32 == number).unwrap_or(Unknown)
    }

    /// The usual class of one of our codes.
    pub(crate) fn for_code(word: &str) -> GrpcCode {
        match word {
            code::INVALID_ARGUMENT | code::LIMIT_INVALID | code::USER_UNKNOWN | code::MOUNT_SOURCE_MISSING => {
                GrpcCode::InvalidArgument
            }
            code::PERMISSION_DENIED => GrpcCode::PermissionDenied,
            code::REGISTRY_UNAUTHORIZED => GrpcCode::Unauthenticated,
            code::DAEMON_UNREACHABLE | code::REGISTRY_UNREACHABLE | code::SHIM_DIED => GrpcCode::Unavailable,
            code::IMAGE_NOT_FOUND | code::IMAGE_NOT_LOCAL | code::CONTAINER_NOT_FOUND | code::COMMAND_NOT_FOUND => {
                GrpcCode::NotFound
            }
            code::DIGEST_MISMATCH | code::SIZE_MISMATCH | code::MANIFEST_INVALID => GrpcCode::DataLoss,
            code::NO_SPACE => GrpcCode::ResourceExhausted,
            code::NAME_IN_USE => GrpcCode::AlreadyExists,
            code::PORT_IN_USE
            | code::IMAGE_IN_USE
            | code::COMMAND_NOT_EXECUTABLE
            | code::CONTAINER_NOT_RUNNING
            | code::CONTAINER_RUNNING => GrpcCode::FailedPrecondition,
            _ => GrpcCode::Unknown,
        }
    }
}

impl Fault {
    /// The fault as a serialized `google.rpc.Status`.
    pub fn to_status_bytes(&self) -> Vec<u8> {
        let info = ErrorInfo { reason: self.code.clone(), domain: DOMAIN.to_owned(), metadata: self.metadata() };
        let any = Any { type_url: ERROR_INFO_URL.to_owned(), value: info.encode_to_vec() };
        Status { code: self.grpc as i32, message: self.status_message(), details: vec![any] }.encode_to_vec()
    }

    /// The same without details, for callers that do not ask for them by [`DETAILS`](crate::DETAILS).
    pub fn to_plain_status_bytes(&self) -> Vec<u8> {
        Status { code: self.grpc as i32, message: self.status_message(), details: Vec::new() }.encode_to_vec()
    }

    /// The fault in a serialized `google.rpc.Status`; `None` when the status is of somebody who is not Strata.
    ///
    /// # Errors
    /// The bytes are not a status.
    pub fn from_status_bytes(bytes: &[u8]) -> Result<Option<Fault>, DecodeError> {
        let status = Status::decode(bytes).map_err(DecodeError)?;
        for any in &status.details {
            if any.type_url != ERROR_INFO_URL {
                continue;
            }
            let info = ErrorInfo::decode(any.value.as_slice()).map_err(DecodeError)?;
            if info.domain == DOMAIN {
                return Ok(Some(from_info(status.code, status.message, info)));
            }
        }
        Ok(None)
    }

    /// The text of the transport's status, for peers that do not look at the details: message and causes.
    pub(crate) fn status_message(&self) -> String {
        shortened(&self.one_line())
    }

    fn metadata(&self) -> HashMap<String, String> {
        let mut metadata = HashMap::from([
            ("layer".to_owned(), self.layer.as_str().to_owned()),
            ("step".to_owned(), self.step.clone()),
            ("message".to_owned(), shortened(&self.message)),
        ]);
        if let Some(hint) = &self.hint {
            metadata.insert("hint".to_owned(), shortened(hint));
        }
        for (index, cause) in self.causes.iter().take(CAUSES_MAX).enumerate() {
            metadata.insert(format!("cause.{index}"), shortened(cause));
        }
        metadata
    }
}

fn from_info(number: i32, message: String, mut info: ErrorInfo) -> Fault {
    let causes = (0..CAUSES_MAX).map_while(|index| info.metadata.remove(&format!("cause.{index}"))).collect();
    Fault {
        layer: info.metadata.get("layer").and_then(|word| Layer::parse(word)).unwrap_or(Layer::Engine),
        step: info.metadata.remove("step").unwrap_or_default(),
        code: info.reason,
        grpc: GrpcCode::from_number(number),
        message: info.metadata.remove("message").unwrap_or(message),
        causes,
        hint: info.metadata.remove("hint"),
    }
}

/// `text`, cut at a character boundary near [`TEXT_MAX`].
fn shortened(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_comes_back_unchanged() {
        let fault = Fault::new(Layer::Kernel, "create:mounts", code::MOUNT_SOURCE_MISSING, "mount \"/x\" on \"/y\"")
            .cause("open_tree(\"/x\")")
            .cause("No such file or directory (os error 2)")
            .hint("create /x first");
        assert_eq!(Fault::from_status_bytes(&fault.to_status_bytes()).unwrap(), Some(fault));
    }

    #[test]
    fn who_reads_no_details_still_learns_the_causes() {
        let fault = Fault::new(Layer::Shim, "create", code::NO_SPACE, "open the log").cause("ENOSPC");
        assert_eq!(Status::decode(fault.to_status_bytes().as_slice()).unwrap().message, "open the log: ENOSPC");
    }

    #[test]
    fn a_strangers_status_is_none() {
        let bytes = Status { code: 5, message: "gone".to_owned(), details: Vec::new() }.encode_to_vec();
        assert_eq!(Fault::from_status_bytes(&bytes).unwrap(), None);
        assert!(Fault::from_status_bytes(&[0xff, 0xff]).is_err());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let fault = Fault::new(Layer::Engine, "parse", code::INVALID_ARGUMENT, "ü".repeat(2000));
        let back = Fault::from_status_bytes(&fault.to_status_bytes()).unwrap().unwrap();
        assert!(back.message.len() <= TEXT_MAX + '…'.len_utf8());
    }
}
