//! Running a shim's program: `start`, which leaves the shim behind and prints its address, and `delete`, which cleans
//! up after a shim that is gone.
//!
//! The child is spawned with vfork semantics and gets nothing of shimd's environment but `PATH` and a home.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use prost_types::Any;
use proto_containerd::types::RuntimeInfo;
use proto_shim::bootstrap::{BootstrapParams, Extension};
use proto_shim::runc;
use proto_shim::task::DeleteResponse;

use super::Endpoint;
use super::spawner::{Child, Spawner};
use crate::error::{Error, Result};
use crate::name::Namespace;

/// How long a shim may take to come up, or to clean up: the latter kills processes and unmounts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to say what it is.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);
/// What a shim prints is an address or an error; more is cut off.
const OUTPUT_MAX: usize = 16 << 10;
/// The name of containerd's own runtime, and the version of containerd whose shims know the newer form.
const STOCK: &str = "io.containerd.runc.v2";
const NEWER_FORM_SINCE: (u32, u32) = (2, 3);
/// Variables that shims get from shimd's environment.
const PASSED_ON: [&str; 2] = ["HOME", "XDG_RUNTIME_DIR"];

/// Runs shims.
pub(crate) struct Launcher {
    /// shimd's gRPC socket, as shims are told.
    pub(crate) address: PathBuf,
    /// shimd's socket for events.
    pub(crate) events_address: PathBuf,
    /// Where shims shall put their sockets.
    pub(crate) socket_directory: PathBuf,
    /// shimd's own program, which old shims run to publish events.
    pub(crate) publish_binary: PathBuf,
    /// Where shims' programs are looked for.
    pub(crate) search_path: Vec<PathBuf>,
    /// Where clients have installed programs: their `bin` and `lib`.
    pub(crate) opt: PathBuf,
    /// What each program wants on its standard input.
    pub(crate) forms: Mutex<HashMap<PathBuf, Form>>,
    /// What starts them.
    pub(crate) spawner: Spawner,
}

/// What a shim reads from its standard input at `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `BootstrapParams`: containerd from 2.3 on.
    Bootstrap,
    /// The runtime's options, or nothing: containerd before.
    Options,
}

/// Whose shim it is.
pub(crate) struct Subject<'a> {
    pub(crate) program: &'a Path,
    pub(crate) namespace: &'a Namespace,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
}

impl Launcher {
    /// Starts a shim. Shims of containerd before 2.3 want the runtime's options on their standard input and refuse
    /// anything else; later ones want a message of their own and refuse the options. So the newer form is tried first,
    /// and what a program took is remembered. Those of 2.0 to 2.2 pass over what they do not understand and are started
    /// without their options, of which the shim's cgroup is all that counts at the start: where there is one, who they
    /// are is asked before.
    pub(crate) async fn start(&self, subject: &Subject<'_>, options: Option<&Any>) -> Result<Endpoint> {
        let form = match self.known_form(subject.program) {
            None if names_cgroup(options) => self.told_form(subject.program).await,
            known => known,
        };
        if let Some(form) = form {
            return self.start_in_form(form, subject, options).await.map(|(_, endpoint)| endpoint);
        }
        let newer = self.start_in_form(Form::Bootstrap, subject, options).await;
        let (form, endpoint) = match newer {
            Err(Error::ShimStart { why, .. }) if why.contains("type with url") => {
                self.start_in_form(Form::Options, subject, options).await?
            }
            newer => newer?,
        };
        self.forms().insert(subject.program.to_owned(), form);
        Ok(endpoint)
    }

    /// The form that a shim of 2.0 to 2.2 wants, which says of itself what it is.
    async fn told_form(&self, program: &Path) -> Option<Form> {
        let info = RuntimeInfo::decode(self.info(program, None).await.ok()?.as_slice()).ok()?;
        let version = info.version.unwrap_or_default().version;
        let mut numbers = version.trim_start_matches('v').split('.').map(|number| number.parse::<u32>().ok());
        let version = (numbers.next()??, numbers.next()??);
        let is_older = info.name == STOCK && version < NEWER_FORM_SINCE;
        if is_older {
            self.forms().insert(program.to_owned(), Form::Options);
        }
        is_older.then_some(Form::Options)
    }

    /// Starts a shim, and tells which form it knows: who took the newer one answers in it.
    async fn start_in_form(
        &self,
        form: Form,
        subject: &Subject<'_>,
        options: Option<&Any>,
    ) -> Result<(Form, Endpoint)> {
        let runtime = subject.program.display().to_string();
        let input = match form {
            Form::Bootstrap => self.bootstrap(subject, options).encode_to_vec(),
            Form::Options => options.map(Message::encode_to_vec).unwrap_or_default(),
        };
        let output = self.run(subject, &["start"], &input, START_TIMEOUT).await?;
        if !output.status.success() {
            let why = format!("{}: {}", output.status, words(&output));
            return Err(Error::ShimStart { runtime, why, source: None });
        }
        let form = if Endpoint::is_in_newer_form(&output.stdout) { Form::Bootstrap } else { Form::Options };
        Ok((form, Endpoint::parse(&output.stdout, &runtime)?))
    }

    fn known_form(&self, program: &Path) -> Option<Form> {
        self.forms().get(program).copied()
    }

    fn forms(&self) -> MutexGuard<'_, HashMap<PathBuf, Form>> {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cleans up after a shim that is gone: kills what is left of its container, unmounts, removes its files.
    pub(crate) async fn delete(&self, subject: &Subject<'_>) -> Result<DeleteResponse> {
        let bundle = subject.bundle.to_string_lossy();
        let output = self.run(subject, &["-bundle", &bundle, "delete"], &[], DELETE_TIMEOUT).await?;
        let failed = |why: String| {
            Error::io(format!("clean up after the shim of container {:?}", subject.id), std::io::Error::other(why))
        };
        if !output.status.success() {
            return Err(failed(format!("{}: {}", output.status, words(&output))));
        }
        DeleteResponse::decode(output.stdout.as_slice()).map_err(|_| failed("its answer is no message".to_owned()))
    }

    /// What a shim and its runtime say of themselves: an encoded `RuntimeInfo`.
    pub(crate) async fn info(&self, program: &Path, options: Option<&Any>) -> Result<Vec<u8>> {
        let failed = |why: String, source| Error::ShimStart {
            runtime: program.display().to_string(),
            why: format!("-info: {why}"),
            source,
        };
        let mut command = Command::new(program);
        command.arg("-info").process_group(0);
        // It runs its runtime, too.
        self.set_environment(&mut command);
        let input = options.map(Message::encode_to_vec).unwrap_or_default();
        let child = self.spawn(command, INFO_TIMEOUT).await;
        let child = child.map_err(|source| failed("it cannot be executed".to_owned(), Some(source)))?;
        let output = converse(child.killed_on_drop(), &input, INFO_TIMEOUT).await;
        let output = output.map_err(|source| failed("it does not answer".to_owned(), Some(source)))?;
        if !output.status.success() {
            return Err(failed(format!("{}: {}", output.status, words(&output)), None));
        }
        Ok(output.stdout)
    }

    fn bootstrap(&self, subject: &Subject<'_>, options: Option<&Any>) -> BootstrapParams {
        BootstrapParams {
            instance_id: subject.id.to_owned(),
            namespace: subject.namespace.to_string(),
            containerd_version: env!("CARGO_PKG_VERSION").to_owned(),
            containerd_ttrpc_address: self.events_address.display().to_string(),
            containerd_grpc_address: self.address.display().to_string(),
            containerd_binary: self.publish_binary.display().to_string(),
            extensions: options.map(|options| Extension { value: Some(options.clone()) }).into_iter().collect(),
            socket_dir: Some(self.socket_directory.display().to_string()),
            ..BootstrapParams::default()
        }
    }

    async fn run(&self, subject: &Subject<'_>, action: &[&str], input: &[u8], limit: Duration) -> Result<Output> {
        let failed = |source| Error::ShimStart {
            runtime: subject.program.display().to_string(),
            why: "it cannot be executed".to_owned(),
            source: Some(source),
        };
        let child = self.spawn(self.command(subject, action), limit).await.map_err(failed)?;
        converse(child, input, limit).await.map_err(failed)
    }

    /// Starts a program; its `exec` may hang, and then only this call is given up.
    async fn spawn(&self, command: Command, limit: Duration) -> std::io::Result<Child> {
        tokio::time::timeout(limit, self.spawner.spawn(command)).await?
    }

    fn command(&self, subject: &Subject<'_>, action: &[&str]) -> Command {
        let mut command = Command::new(subject.program);
        command.args(["-namespace", subject.namespace.as_str()]);
        command.arg("-address").arg(&self.address);
        command.arg("-publish-binary").arg(&self.publish_binary);
        command.args(["-id", subject.id]).args(action);
        command.current_dir(subject.bundle);
        self.set_environment(&mut command);
        command.env("TTRPC_ADDRESS", &self.events_address).env("GRPC_ADDRESS", &self.address);
        command.env("NAMESPACE", subject.namespace.as_str());
        command.envs([("MAX_SHIM_VERSION", "3"), ("GOMAXPROCS", "2")]);
        // Not in shimd's group: a signal for shimd's terminal is not for containers.
        command.process_group(0);
        command
    }

    /// What every program gets of shimd's environment, and nothing else.
    fn set_environment(&self, command: &mut Command) {
        command.env_clear();
        command.envs(PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        // A runtime or its libraries may have been installed by a client.
        command.env("PATH", first_in("PATH", &self.opt.join("bin")));
        let libraries = self.opt.join("lib");
        if libraries.is_dir() {
            command.env("LD_LIBRARY_PATH", first_in("LD_LIBRARY_PATH", &libraries));
        }
    }
}

/// Whether a shim shall be put into a cgroup, which is done at its start.
fn names_cgroup(options: Option<&Any>) -> bool {
    let options = options.and_then(|any| proto_shim::from_any::<runc::Options>(any).ok()?);
    options.is_some_and(|options| !options.shim_cgroup.is_empty())
}

/// A list of directories of shimd's environment, and one before them.
fn first_in(variable: &str, directory: &Path) -> OsString {
    let mut list = OsString::from(directory);
    if let Some(known) = std::env::var_os(variable).filter(|known| !known.is_empty()) {
        list.push(":");
        list.push(known);
    }
    list
}

/// Speaks with a program to its end, for so long.
async fn converse(mut child: Child, input: &[u8], limit: Duration) -> std::io::Result<Output> {
    let output = tokio::time::timeout(limit, child.converse(input, OUTPUT_MAX)).await;
    if output.is_err() {
        // What it started is found by the next recovery.
        child.kill();
    }
    output?
}

/// What a failed program said.
fn words(output: &Output) -> String {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    String::from_utf8_lossy(said).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn who_tells_of_a_runtime_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("shim");
        std::fs::write(&program, "#!/bin/sh\nexec /usr/bin/env").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let launcher = crate::shim::shims::tests::shims(directory.path()).launcher;
        let told = String::from_utf8(launcher.info(&program, None).await.unwrap()).unwrap();
        let path = first_in("PATH", Path::new("bin"));
        assert!(told.lines().any(|line| line == format!("PATH={}", path.display())), "{told}");
    }
}
