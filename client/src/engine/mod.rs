//! The connection to engined: one HTTP/2 connection on its unix socket, made when the first request needs it.
//!
//! address (where) → channel (the connection) → this (requests and answers) → stream (a container's events) → reconnect
//! (when it breaks). credentials reads Docker's configuration for what a registry may want.

pub(crate) mod address;
mod channel;
pub(crate) mod credentials;
pub(crate) mod reconnect;
pub(crate) mod stream;

use proto_engine::KillRequest;
use proto_engine::containers_client::ContainersClient;
use proto_engine::images_client::ImagesClient;
use proto_engine::system_client::SystemClient;
use strata_fault::Fault;
use tonic::{Code, Request, Response, Status};

use crate::error::Error;
use crate::trace::Recorder;
use address::Address;
pub(crate) use channel::Channel;

/// Largest answer that is accepted: a list of some ten thousand containers.
const ANSWER_MAX: usize = 64 << 20;

/// engined, as a client sees it.
pub(crate) struct Engine {
    address: Address,
    channel: Channel,
    /// Gathers spans when the person asked for a trace.
    pub(crate) recorder: Option<Recorder>,
}

impl Engine {
    /// Connects.
    pub(crate) async fn connect(address: Address) -> Result<Engine, Error> {
        let channel = Channel::connect(&address).await?;
        Ok(Engine { address, channel, recorder: None })
    }

    /// Connects anew, after the connection broke.
    async fn renew(&mut self) -> Result<(), Error> {
        self.channel = Channel::connect(&self.address).await?;
        Ok(())
    }

    /// What sends signals while the connection itself is busy with a stream.
    pub(crate) fn control(&self) -> Control {
        Control { address: self.address.clone(), channel: None }
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::with_origin(self.channel.clone(), Channel::origin()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::with_origin(self.channel.clone(), Channel::origin()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn system(&self) -> SystemClient<Channel> {
        SystemClient::with_origin(self.channel.clone(), Channel::origin())
    }

    /// `message` with the trace context, when there is one.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(recorder) = &self.recorder {
            recorder.mark(request.metadata_mut());
        }
        request
    }

    /// An answer, or the error that it is; `during` says what was asked.
    pub(crate) fn answer<T>(&mut self, during: &'static str, answer: Result<Response<T>, Status>) -> Result<T, Error> {
        match answer {
            Ok(response) => {
                self.take_spans(response.metadata());
                Ok(response.into_inner())
            }
            Err(status) => {
                self.take_spans(status.metadata());
                Err(failure(during, status))
            }
        }
    }

    fn take_spans(&mut self, metadata: &tonic::metadata::MetadataMap) {
        if let Some(recorder) = &mut self.recorder {
            recorder.take_trailer(metadata);
        }
    }
}

/// A second connection, made at the first use.
pub(crate) struct Control {
    address: Address,
    channel: Option<Channel>,
}

impl Control {
    /// Sends a signal. That the container does not run any more is no error; that engined is away is.
    pub(crate) async fn kill(&mut self, request: KillRequest) -> Result<(), Error> {
        for _ in 0..2 {
            let channel = match self.channel.take() {
                Some(channel) => channel,
                None => Channel::connect(&self.address).await?,
            };
            let mut client = ContainersClient::with_origin(channel.clone(), Channel::origin());
            match client.kill(request.clone()).await.map_err(|status| failure("kill", status)) {
                // An old connection to an engined that was restarted since: try a new one.
                Err(error) if reconnect::may_pass(&error) => {}
                _ => {
                    self.channel = Some(channel);
                    return Ok(());
                }
            }
        }
        Err(Error::refused("engined is away"))
    }
}

/// An answer that brings no spans, or the error that it is.
pub(crate) fn told<T>(during: &'static str, answer: Result<Response<T>, Status>) -> Result<T, Error> {
    answer.map(Response::into_inner).map_err(|status| failure(during, status))
}

/// What a status means: engined's fault, or a connection that is gone.
pub(crate) fn failure(during: &'static str, status: Status) -> Error {
    if let Ok(Some(fault)) = Fault::from_status_bytes(status.details()) {
        return Error::Engine(Box::new(fault));
    }
    match status.code() {
        // engined always sends details; without them these are this side's names for a transport that failed.
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded => {
            Error::Broken { during, source: status }
        }
        _ => Error::Engine(Box::new(Fault::from_grpc(&status, strata_fault::Layer::Engine, during))),
    }
}
