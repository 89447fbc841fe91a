//! containerd's API over gRPC: messages, clients and servers of its services, generated from our re-statement of the
//! names and numbers in `proto/`. There is no logic here but [`any`] and [`from_any`].
//!
//! An `Any` of this API bears the bare message name as its type URL (`containerd.events.TaskExit`), which is what
//! containerd's Go programs look up; JSON documents bear the URLs of [`json_type`].

use prost::{Message, Name};

mod protocol {
    // Not `expect`: which of them the generators give reason for changes with their versions.
    #![allow(clippy::all, reason = "generated code")]
    #![allow(clippy::allow_attributes_without_reason, reason = "generated code")]
    #![allow(missing_docs, reason = "generated code")]
    #![allow(unreachable_pub, reason = "generated code")]
    #![allow(rustdoc::all, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

pub use protocol::containerd::events;
pub use protocol::containerd::types;
/// Status of processes (`containerd.v1.types`).
pub use protocol::containerd::v1::types as process;
/// Google's error form, as plug-ins' `init_err` carries it.
pub use protocol::google::rpc;

/// The services, each with its messages, `…_client` and `…_server`.
pub mod services {
    pub use super::protocol::containerd::services::{
        containers::v1 as containers, content::v1 as content, diff::v1 as diff, events::v1 as events,
        images::v1 as images, introspection::v1 as introspection, leases::v1 as leases, namespaces::v1 as namespaces,
        sandbox::v1 as sandbox, snapshots::v1 as snapshots, streaming::v1 as streaming, tasks::v1 as tasks,
        transfer::v1 as transfer, version::v1 as version,
    };
}

/// The serialized `FileDescriptorSet` of all of it, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/containerd.bin"));

/// gRPC metadata key of the namespace that a request is about.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
/// gRPC metadata key of the lease that holds what a request creates.
pub const LEASE_HEADER: &str = "containerd-lease";
/// Most bytes of one message: containerd's servers and clients have this bound instead of gRPC's 4 MiB.
pub const MESSAGE_MAX: usize = 16 << 20;

/// Type URLs of what is not a protobuf message but JSON in an `Any`.
pub mod json_type {
    /// An OCI runtime spec, in a container record.
    pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
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
        let delete = events::ContainerDelete { id: "a".to_owned() };
        let packed = any(&delete);
        assert_eq!(packed.type_url, "containerd.events.ContainerDelete");
        assert_eq!(from_any::<events::ContainerDelete>(&packed).unwrap(), Some(delete));
        assert_eq!(from_any::<events::TaskOom>(&packed).unwrap(), None);
    }

    #[test]
    fn image_events_live_in_the_package_of_the_service() {
        assert_eq!(services::images::ImageCreate::full_name(), "containerd.services.images.v1.ImageCreate");
    }

    #[test]
    fn containerds_numbers() {
        let request = services::tasks::CreateTaskRequest {
            container_id: "c".to_owned(),
            runtime_path: "p".to_owned(),
            ..Default::default()
        };
        assert_eq!(request.encode_to_vec(), [0x0a, 1, b'c', 0x52, 1, b'p']);
        let create = services::leases::CreateRequest { id: "l".to_owned(), ..Default::default() };
        assert_eq!(create.encode_to_vec(), [0x0a, 1, b'l']);
    }
}
