//! Compiles the protocol files without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "proto/bootstrap.proto",
        "proto/cgroups_v1.proto",
        "proto/cgroups_v2.proto",
        "proto/events.proto",
        "proto/events_ttrpc.proto",
        "proto/introspection.proto",
        "proto/runc.proto",
        "proto/sandbox.proto",
        "proto/task.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new().enable_type_names().include_file("protocol.rs").compile_fds(descriptors)?;
    Ok(())
}
