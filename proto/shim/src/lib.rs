//! containerd's shim protocol as messages: what shimd (or containerd) and a shim say to each other over ttrpc.
//!
//! Names and numbers are containerd's, re-stated in `proto/`; there is no logic here. The task service exists as
//! version 2 and 3 with the same messages under two names: [`task`] holds the messages, [`service`] the names. An `Any`
//! of this protocol has the bare message name as its type URL, see [`any`].

#![expect(clippy::all, reason = "generated code")]

use prost::{Message, Name};

mod protocol {
    #![allow(missing_docs, unreachable_pub, rustdoc::all, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

pub use protocol::containerd::events;
pub use protocol::containerd::runc::v1 as runc;
pub use protocol::containerd::runtime::bootstrap::v1 as bootstrap;
pub use protocol::containerd::runtime::sandbox::v1 as sandbox;
pub use protocol::containerd::services::events::ttrpc::v1 as events_ttrpc;
pub use protocol::containerd::task::v2 as task;
pub use protocol::containerd::types;
pub use protocol::containerd::v1::types as process;
pub use protocol::io::containerd::cgroups::v1 as cgroups_v1;
pub use protocol::io::containerd::cgroups::v2 as cgroups_v2;

/// Full names of the ttrpc services.
pub mod service {
    /// The task service of containerd 1.x.
    pub const TASK_V2: &str = "containerd.task.v2.Task";
    /// The task service that containerd 2.x prefers; the messages are those of version 2.
    pub const TASK_V3: &str = "containerd.task.v3.Task";
    /// What the containers of a pod share, of shims that are told of it.
    pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
    /// Where a shim publishes its events, at containerd's `ADDRESS.ttrpc`.
    pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
}

/// Topics of the events that a shim publishes.
pub mod topic {
    pub const TASK_CREATE: &str = "/tasks/create";
    pub const TASK_START: &str = "/tasks/start";
    pub const TASK_OOM: &str = "/tasks/oom";
    pub const TASK_EXIT: &str = "/tasks/exit";
    pub const TASK_DELETE: &str = "/tasks/delete";
    pub const TASK_EXEC_ADDED: &str = "/tasks/exec-added";
    pub const TASK_EXEC_STARTED: &str = "/tasks/exec-started";
    pub const TASK_PAUSED: &str = "/tasks/paused";
    pub const TASK_RESUMED: &str = "/tasks/resumed";
    pub const TASK_CHECKPOINTED: &str = "/tasks/checkpointed";
}

/// Type URLs of what is not a protobuf message but JSON in an `Any`.
pub mod json_type {
    /// An OCI process, as the spec of an exec.
    pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
    /// OCI Linux resources, as of an update.
    pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
}

/// `message` as containerd packs it: the type URL is the bare full name, without a domain.
pub fn any<M: Message + Name>(message: &M) -> prost_types::Any {
    prost_types::Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The message in `any` if it is an `M`, with or without a domain before its name; `None` if it is something else.
///
/// # Errors
/// The name is right and the bytes are not.
pub fn from_any<M: Message + Name + Default>(any: &prost_types::Any) -> Result<Option<M>, prost::DecodeError> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name == M::full_name() { M::decode(any.value.as_slice()).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_any_bears_the_bare_name() {
        let exit = events::TaskExit { container_id: "a".to_owned(), pid: 7, ..Default::default() };
        let packed = any(&exit);
        assert_eq!(packed.type_url, "containerd.events.TaskExit");
        assert_eq!(from_any::<events::TaskExit>(&packed).unwrap(), Some(exit));
        assert_eq!(from_any::<events::TaskOom>(&packed).unwrap(), None);
    }

    #[test]
    fn runc_options_have_containerds_numbers() {
        let options = runc::Options { binary_name: "x".to_owned(), root: "y".to_owned(), ..Default::default() };
        assert_eq!(options.encode_to_vec(), [0x32, 1, b'x', 0x3a, 1, b'y']);
        assert_eq!(runc::Options::full_name(), "containerd.runc.v1.Options");
        assert_eq!(cgroups_v1::Metrics::full_name(), "io.containerd.cgroups.v1.Metrics");
    }
}
