//! Compiles the protocol files without `protoc`, and keeps their descriptors for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 24] = [
    "containers.proto",
    "content.proto",
    "diff.proto",
    "event_container.proto",
    "event_content.proto",
    "event_image.proto",
    "event_namespace.proto",
    "event_sandbox.proto",
    "event_snapshot.proto",
    "event_task.proto",
    "events.proto",
    "images.proto",
    "introspection.proto",
    "leases.proto",
    "namespaces.proto",
    "platform.proto",
    "sandbox.proto",
    "sandbox_types.proto",
    "snapshots.proto",
    "streaming.proto",
    "tasks.proto",
    "transfer.proto",
    "transfer_types.proto",
    "version.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("containerd.bin"), descriptors.encode_to_vec())?;
    let mut messages = prost_build::Config::new();
    messages.enable_type_names();
    // Blobs pass through without being copied.
    messages.bytes([
        ".containerd.services.content.v1.ReadContentResponse",
        ".containerd.services.content.v1.WriteContentRequest",
    ]);
    tonic_prost_build::configure()
        // The tasks and streaming services have methods whose names clash with the generated `connect`.
        .build_transport(false)
        .include_file("protocol.rs")
        .compile_fds_with_config(descriptors, messages)?;
    Ok(())
}
