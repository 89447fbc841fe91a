//! Statuses of a peer that is not Strata's: what they mean is read from their words.
//!
//! A real containerd drops status details, and behind it a real runc speaks in one line of text. The layer is then that
//! of the operation, and the code comes from phrases that runc, crun and the kernel have long used. What no phrase
//! matches keeps the peer's words and the code `UNKNOWN`.

use strata_fault::{Fault, GrpcCode, Layer, code};
use tonic::Status;

/// Nobody answers at the supervisor's address, or the connection broke before the answer.
pub(crate) const SUPERVISOR_UNREACHABLE: &str = "SUPERVISOR_UNREACHABLE";

/// The fault that a status carries, unchanged, or what can be known of a stranger's.
pub(crate) fn fault(status: &Status, layer: Layer, step: &str) -> Fault {
    let told = Fault::from_grpc(status, layer, step);
    if told.code != code::UNKNOWN {
        return told;
    }
    if is_transport(status) {
        return unreachable(status, step);
    }
    match phrase(status.message()) {
        Some((layer, word)) => {
            let class = Fault::new(layer, step, word, "").grpc;
            Fault { layer, code: word.to_owned(), grpc: class, ..told }
        }
        None => told,
    }
}

/// Whether the status was made on this side, because there was no answer.
fn is_transport(status: &Status) -> bool {
    let is_broken = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled);
    is_broken && std::error::Error::source(status).is_some()
}

fn unreachable(status: &Status, step: &str) -> Fault {
    let fault = Fault::new(Layer::Supervisor, step, SUPERVISOR_UNREACHABLE, "ask the supervisor")
        .grpc(GrpcCode::Unavailable)
        .hint("see whether shimd is running, and whether engined's `containerd` setting names its socket");
    match std::error::Error::source(status) {
        Some(source) => fault.caused_by(source),
        None => fault,
    }
}

/// What well-known words say.
fn phrase(words: &str) -> Option<(Layer, &'static str)> {
    let has = |part: &str| words.contains(part);
    let is_exec = has("exec: ") || has("exec ") || has("executable");
    let is_not_found = has("executable file not found")
        || (has("executable file") && has("not found in $PATH"))
        || (is_exec && (has("no such file or directory") || has("No such file or directory")));
    let is_not_executable = has("exec format error")
        || has("not a directory: unknown")
        || (is_exec && (has("is a directory") || has("permission denied") || has("Permission denied")));
    if is_not_found && !is_not_executable {
        Some((Layer::Runtime, code::COMMAND_NOT_FOUND))
    } else if is_not_executable {
        Some((Layer::Runtime, code::COMMAND_NOT_EXECUTABLE))
    } else if has("no space left on device") || has("No space left on device") {
        Some((Layer::Kernel, code::NO_SPACE))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_runc_and_crun() {
        let not_found = [
            "OCI runtime create failed: runc create failed: unable to start container process: exec: \"nope\": executable \
             file not found in $PATH: unknown",
            "OCI runtime create failed: crun: executable file `nope` not found in $PATH: No such file or directory",
            "OCI runtime create failed: runc create failed: unable to start container process: exec: \"/nope\": stat \
             /nope: no such file or directory: unknown",
        ];
        for words in not_found {
            let fault = fault(&Status::unknown(words), Layer::Supervisor, "create");
            assert_eq!((fault.layer, fault.code.as_str()), (Layer::Runtime, code::COMMAND_NOT_FOUND), "{words}");
            assert_eq!(fault.message, words);
        }
        let words = "runc create failed: unable to start container process: exec: \"/etc/passwd\": permission denied";
        assert_eq!(fault(&Status::unknown(words), Layer::Supervisor, "create").code, code::COMMAND_NOT_EXECUTABLE);
    }

    #[test]
    fn other_words_stay_the_supervisors() {
        let fault = fault(&Status::not_found("snapshot x does not exist"), Layer::Supervisor, "assemble");
        assert_eq!((fault.layer, fault.code.as_str()), (Layer::Supervisor, code::UNKNOWN));
        assert_eq!(fault.grpc, GrpcCode::NotFound);
    }

    #[test]
    fn our_own_faults_pass_unchanged() {
        let ours = Fault::new(Layer::Runtime, "create:mounts", code::MOUNT_SOURCE_MISSING, "mount x").cause("ENOENT");
        assert_eq!(fault(&Status::from(ours.clone()), Layer::Supervisor, "create"), ours);
    }
}
