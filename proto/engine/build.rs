//! Compiles `engine.proto` without `protoc`, and keeps its descriptor for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let file = "engine.proto";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["."])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("engine.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).bytes(".strata.engine.v1.Output").compile_fds(descriptors)?;
    Ok(())
}
