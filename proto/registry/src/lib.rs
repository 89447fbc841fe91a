//! What shimd and its registry helper say to each other, over the helper's standard input and output.
//!
//! ```text
//!   shimd --Order--> helper:   Open, then any of Resolve, Fetch, Check, Push …, each on a stream of its own
//!   shimd <-Answer-- helper:   Document, Data…, Done or Failed, on the stream of the order
//! ```
//! A frame is a length of four bytes, the highest first, and a message. One registry and one repository per helper;
//! it ends with its input.

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes of a frame: a document, and what is around it.
pub const FRAME_MAX: u32 = 9 << 20;
/// Bytes of a blob in one frame. Some are on their way at any moment, and are fetched again after a kill.
pub const PIECE: usize = 128 << 10;

/// Names a blob.
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(string, tag = "1")]
    pub media_type: String,
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(uint64, tag = "3")]
    pub size: u64,
}

/// Who asks.
#[derive(Clone, PartialEq, Message)]
pub struct Credentials {
    /// Empty with an identity token or a registry token.
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(string, tag = "2")]
    pub password: String,
    /// To be exchanged for a token.
    #[prost(string, tag = "3")]
    pub identity_token: String,
    /// Sent as it is.
    #[prost(string, tag = "4")]
    pub registry_token: String,
}

/// Which repository, and how.
#[derive(Clone, PartialEq, Message)]
pub struct Open {
    #[prost(string, tag = "1")]
    pub reference: String,
    /// None: nobody in particular.
    #[prost(message, optional, tag = "2")]
    pub credentials: Option<Credentials>,
    /// Plain HTTP may be spoken, loopback or not.
    #[prost(bool, tag = "3")]
    pub is_plain: bool,
    #[prost(bool, tag = "4")]
    pub to_push: bool,
    /// Sent with each request to the registry or to a host that is asked in its place.
    #[prost(btree_map = "string, string", tag = "5")]
    pub headers: std::collections::BTreeMap<String, String>,
}

/// A blob from an offset on.
#[derive(Clone, PartialEq, Message)]
pub struct Fetch {
    #[prost(message, optional, tag = "1")]
    pub descriptor: Option<Descriptor>,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// A document to write.
#[derive(Clone, PartialEq, Message)]
pub struct PushDocument {
    #[prost(message, optional, tag = "1")]
    pub descriptor: Option<Descriptor>,
    #[prost(bytes = "bytes", tag = "2")]
    pub bytes: Bytes,
    /// It is what the reference shall stand for.
    #[prost(bool, tag = "3")]
    pub is_root: bool,
}

/// What shimd wants.
#[derive(Clone, PartialEq, Message)]
pub struct Order {
    #[prost(uint32, tag = "1")]
    pub stream: u32,
    #[prost(oneof = "order::Kind", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub kind: Option<order::Kind>,
}

pub mod order {
    //! Kinds of orders.

    /// One order.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// The first one; it is answered by Done.
        #[prost(message, tag = "2")]
        Open(super::Open),
        /// What the reference stands for: Document.
        #[prost(bool, tag = "3")]
        Resolve(bool),
        /// A document by its descriptor: Document.
        #[prost(message, tag = "4")]
        Document(super::Descriptor),
        /// A blob: Data…, Done.
        #[prost(message, tag = "5")]
        Fetch(super::Fetch),
        /// Whether a blob is there: Has.
        #[prost(message, tag = "6")]
        Check(super::Descriptor),
        /// A blob, whose bytes follow as Data…, End: Done.
        #[prost(message, tag = "7")]
        Push(super::Descriptor),
        #[prost(bytes = "bytes", tag = "8")]
        Data(bytes::Bytes),
        #[prost(bool, tag = "9")]
        End(bool),
        /// Done.
        #[prost(message, tag = "10")]
        PushDocument(super::PushDocument),
    }
}

/// A document as it was found.
#[derive(Clone, PartialEq, Message)]
pub struct Document {
    #[prost(message, optional, tag = "1")]
    pub descriptor: Option<Descriptor>,
    #[prost(bytes = "bytes", tag = "2")]
    pub bytes: Bytes,
}

/// What the helper says.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    #[prost(uint32, tag = "1")]
    pub stream: u32,
    #[prost(oneof = "answer::Kind", tags = "2, 3, 4, 5, 6")]
    pub kind: Option<answer::Kind>,
}

pub mod answer {
    //! Kinds of answers.

    /// One answer.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(bool, tag = "2")]
        Done(bool),
        #[prost(message, tag = "3")]
        Document(super::Document),
        #[prost(bytes = "bytes", tag = "4")]
        Data(bytes::Bytes),
        #[prost(bool, tag = "5")]
        Has(bool),
        /// A `google.rpc.Status`, see `strata-fault`.
        #[prost(bytes = "bytes", tag = "6")]
        Failed(bytes::Bytes),
    }
}

/// Reads a frame; `None` at a proper end.
///
/// # Errors
/// The pipe fails, ends in the middle, or carries what is no message.
pub async fn receive<M: Message + Default>(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<M>> {
    let invalid = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    let length = match from.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > FRAME_MAX {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).await?;
    M::decode(Bytes::from(bytes)).map(Some).map_err(|error| invalid(error.to_string()))
}

/// Writes a frame.
///
/// # Errors
/// The pipe fails, or the message is too long for a frame.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> std::io::Result<()> {
    let length = u32::try_from(message.encoded_len()).ok().filter(|length| *length <= FRAME_MAX);
    let length = length.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let mut frame = Vec::with_capacity(4 + length as usize);
    frame.extend(length.to_be_bytes());
    message.encode(&mut frame).map_err(|error| std::io::Error::other(error.to_string()))?;
    to.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_as_they_go() {
        let order = Order { stream: 7, kind: Some(order::Kind::Data(Bytes::from_static(b"x"))) };
        let mut pipe = Vec::new();
        send(&mut pipe, &order).await.unwrap();
        send(&mut pipe, &Order::default()).await.unwrap();
        let mut from = pipe.as_slice();
        assert_eq!(receive(&mut from).await.unwrap(), Some(order));
        assert_eq!(receive(&mut from).await.unwrap(), Some(Order::default()));
        assert_eq!(receive::<Order>(&mut from).await.unwrap(), None);
        assert!(receive::<Order>(&mut [255u8; 8].as_slice()).await.is_err());
        assert!(receive::<Order>(&mut &pipe[..6]).await.is_err());
    }
}
