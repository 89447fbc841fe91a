//! A shim's task service, and its sandbox service, over ttrpc.
//!
//! Versions 2 and 3 are the same messages under two names. A fault that our own shim answers passes on unchanged; of a
//! foreign shim only the words and the class of an error are known, and its layer is inferred from them.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto_shim::service;
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_trace::{Spans, collect};
use strata_ttrpc::{CallError, CallOptions, Client};

use super::Endpoint;
use crate::error::{Error, Result};
use crate::trace;

/// How long connecting may take: the socket listens before its address is known.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a shim, for one container or sandbox. Clones share it.
#[derive(Clone)]
pub(crate) struct Shim {
    client: Client,
    service: &'static str,
    id: Arc<str>,
}

impl Shim {
    pub(crate) async fn connect(endpoint: &Endpoint, id: &str) -> Result<Shim> {
        let failed = |source| Error::io(format!("connect to the shim of container {id:?}"), source);
        let path = endpoint.path().ok_or_else(|| failed(std::io::Error::from(std::io::ErrorKind::InvalidInput)))?;
        let client = match tokio::time::timeout(CONNECT_TIMEOUT, Client::connect(&path)).await {
            Ok(client) => client.map_err(failed)?,
            Err(_) => return Err(failed(std::io::Error::from(std::io::ErrorKind::TimedOut))),
        };
        let service = if endpoint.version == 2 { service::TASK_V2 } else { service::TASK_V3 };
        Ok(Shim { client, service, id: id.into() })
    }

    /// The sandbox service of the same shim.
    pub(crate) fn sandbox_service(&self) -> Shim {
        Shim { service: service::SANDBOX, ..self.clone() }
    }

    /// Calls a method, as part of `step` of a run; waits as long as it takes.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        step: &str,
        method: &str,
        request: &Q,
    ) -> Result<A> {
        self.call_within(None, step, method, request).await
    }

    /// The same, with a limit.
    pub(crate) async fn call_within<Q: Message, A: Message + Default>(
        &self,
        timeout: Option<Duration>,
        step: &str,
        method: &str,
        request: &Q,
    ) -> Result<A> {
        let collector = collect::current();
        let parent = if collector.is_some() { trace::parent() } else { None };
        let trace = parent.map(|parent| (strata_trace::TRACEPARENT.to_owned(), parent.to_string()));
        let details = (strata_fault::DETAILS.to_owned(), String::new());
        let options = CallOptions { metadata: trace.into_iter().chain([details]).collect(), timeout };
        let reply = self.client.call(self.service, method, request, &options).await;
        let reply = reply.map_err(|error| self.error(step, method, error))?;
        if let (Some(collector), Some(spans)) = (collector, &reply.spans) {
            // Spans are for people: ones that cannot be read are left out.
            collector.add(Spans::decode(spans.as_slice()).unwrap_or_default().spans);
        }
        Ok(reply.message)
    }

    /// Whether the connection ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Resolves when the connection ends.
    pub(crate) async fn closed(&self) {
        self.client.closed().await;
    }

    fn error(&self, step: &str, method: &str, error: CallError) -> Error {
        let fault = match &error {
            CallError::Status(status) => match Fault::from_status_bytes(status.as_bytes()) {
                Ok(Some(fault)) => fault,
                _ => foreign(step, status.message(), status.code()),
            },
            CallError::Closed(_) => return Error::ShimDied { id: self.id.to_string() },
            CallError::TimedOut => {
                Fault::new(Layer::Shim, step, code::UNKNOWN, format!("{method}: the shim did not answer in time"))
                    .grpc(GrpcCode::DeadlineExceeded)
            }
            _ => Fault::new(Layer::Shim, step, code::UNKNOWN, format!("call {method} of the shim")).caused_by(&error),
        };
        Error::Shim(Box::new(fault))
    }
}

/// A fault made of a foreign shim's words. runc's errors begin with the runtime's name for them.
fn foreign(step: &str, message: &str, number: i32) -> Fault {
    let layer = if message.starts_with("OCI runtime") { Layer::Runtime } else { Layer::Shim };
    let code = match () {
        () if message.contains("executable file not found") => code::COMMAND_NOT_FOUND,
        () if message.contains("exec: ") && message.contains("no such file or directory") => code::COMMAND_NOT_FOUND,
        () if message.contains("exec: ") && message.contains("permission denied") => code::COMMAND_NOT_EXECUTABLE,
        () => code::UNKNOWN,
    };
    Fault::new(layer, step, code, message).grpc(GrpcCode::from_number(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_of_a_foreign_error() {
        let text = "OCI runtime create failed: runc create failed: unable to start container process: exec: \"x\": executable file not found in $PATH: unknown";
        let fault = foreign("create", text, 2);
        assert_eq!((fault.layer, fault.code.as_str()), (Layer::Runtime, code::COMMAND_NOT_FOUND));
        let fault = foreign("kill", "process already finished: not found", 5);
        assert_eq!((fault.layer, fault.grpc), (Layer::Shim, GrpcCode::NotFound));
    }
}
