//! `strata info`: the daemon and the machine it runs on.

use clap::{ArgMatches, Command};
use proto_engine::{InfoRequest, InfoResponse};

use super::Call;
use super::arguments::{Arity, rest, said, text, with_help, words};
use crate::engine::told;
use crate::error::Error;
use crate::output::value::Value;
use crate::output::{format, human, print};

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let format = text("format", "string").short('f').help("Format output: json, or a Go template");
    with_help(command.arg(format).arg(rest("words")), true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    words(&matches, "words", "info", Arity::None)?;
    let engine = call.connect().await?;
    let info = told("info", engine.system().info(InfoRequest {}).await)?;
    match said(&matches, "format").filter(|format| !format.is_empty()) {
        Some(template) => print(&format::object(template, &object(&info))?)?,
        None => print(&in_words(&info))?,
    }
    Ok(0)
}

fn in_words(info: &InfoResponse) -> String {
    let memory = human::binary_size(info.memory);
    let lines = [
        ("Client", format!("\n Version: {}\n\nServer:", env!("CARGO_PKG_VERSION"))),
        (" Containers", info.containers.to_string()),
        ("  Running", info.running.to_string()),
        ("  Stopped", info.stopped.to_string()),
        (" Images", info.images.to_string()),
        (" Storage Driver", info.snapshotter.clone()),
        (" Cgroup Version", info.cgroup_version.clone()),
        (" Default Runtime", info.runtime.clone()),
        (" Supervisor", info.supervisor_address.clone()),
        (" Bridge", format!("{} {}", info.bridge, info.subnet)),
        (" Kernel Version", info.kernel.clone()),
        (" Operating System", info.operating_system.clone()),
        (" CPUs", info.cpus.to_string()),
        (" Total Memory", memory),
        (" Name", info.name.clone()),
        (" Root Dir", info.root_dir.clone()),
        (" State Dir", info.state_dir.clone()),
    ];
    lines.iter().map(|(name, value)| format!("{}\n", format!("{name}: {value}").replace(": \n", ":\n"))).collect()
}

/// docker's keys where docker has them.
fn object(info: &InfoResponse) -> Value {
    Value::structure([
        ("Containers", info.containers.into()),
        ("ContainersRunning", info.running.into()),
        ("ContainersStopped", info.stopped.into()),
        ("Images", info.images.into()),
        ("Driver", info.snapshotter.as_str().into()),
        ("CgroupVersion", info.cgroup_version.as_str().into()),
        ("DefaultRuntime", info.runtime.as_str().into()),
        ("KernelVersion", info.kernel.as_str().into()),
        ("OperatingSystem", info.operating_system.as_str().into()),
        ("NCPU", info.cpus.into()),
        ("MemTotal", info.memory.into()),
        ("Name", info.name.as_str().into()),
        ("DockerRootDir", info.root_dir.as_str().into()),
        ("StateDir", info.state_dir.as_str().into()),
        ("Bridge", info.bridge.as_str().into()),
        ("Subnet", info.subnet.as_str().into()),
        ("SupervisorAddress", info.supervisor_address.as_str().into()),
    ])
}
