//! Faults as tonic's status, and back.

use crate::{Fault, GrpcCode, Layer, code};

impl From<Fault> for tonic::Status {
    fn from(fault: Fault) -> tonic::Status {
        let details = fault.to_status_bytes();
        let message = fault.status_message();
        tonic::Status::with_details(tonic::Code::from_i32(fault.grpc as i32), message, details.into())
    }
}

impl Fault {
    /// The fault that a peer's status carries, unchanged; a status without one (a foreign peer, or a connection that
    /// broke) becomes a fault of `layer` at `step` with the code [`code::UNKNOWN`] and the peer's words.
    pub fn from_grpc(status: &tonic::Status, layer: Layer, step: &str) -> Fault {
        if let Ok(Some(fault)) = Fault::from_status_bytes(status.details()) {
            return fault;
        }
        Fault::new(layer, step, code::UNKNOWN, status.message()).grpc(GrpcCode::from_number(status.code() as i32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn through_a_status_and_back() {
        let fault =
            Fault::new(Layer::Network, "connect", code::PORT_IN_USE, "publish 127.0.0.1:80").cause("EADDRINUSE");
        let status = tonic::Status::from(fault.clone());
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert_eq!(Fault::from_grpc(&status, Layer::Engine, "x"), fault);
    }

    #[test]
    fn a_foreign_status_gets_the_layer_of_the_operation() {
        let fault = Fault::from_grpc(&tonic::Status::not_found("no task"), Layer::Supervisor, "start");
        assert_eq!(
            (fault.layer, fault.grpc, fault.code.as_str()),
            (Layer::Supervisor, GrpcCode::NotFound, code::UNKNOWN)
        );
    }
}
