//! `delete`: cleans up after a shim that died. It goes on past each failure, which it prints, and always answers.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use proto_shim::task::DeleteResponse;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions};

use crate::cli::Flags;
use crate::error::Error;
use crate::lowrun::{LogName, Options, Runtime, null_stdio, says_gone};
use crate::rootfs;
use crate::socket::is_served;
use crate::stdio::above_stdio;
use crate::task::timestamp;

/// The status that containerd's own shim answers with: killed. What it really was, nobody saw.
const UNSEEN: u32 = 128 + 9;

/// How often the runtime is told to end the container, and the pause between.
const KILL_TRIES: u32 = 3;
const KILL_PAUSE: Duration = Duration::from_millis(100);

/// Ends what is left of the container in the working directory, or in `-bundle`.
pub(crate) fn delete(flags: &Flags) -> Result<(), Error> {
    let bundle = bundle(flags)?;
    let done = [kill_patiently(flags, &bundle), unmount(&bundle), remove_socket(&bundle)];
    for problem in done.into_iter().filter_map(Result::err) {
        eprintln!("{}", problem.into_fault("delete").one_line());
    }
    let pid = fs::read_to_string(bundle.join("init.pid")).ok().and_then(|text| text.trim().parse().ok());
    let response = DeleteResponse { pid: pid.unwrap_or(0), exit_status: UNSEEN, exited_at: Some(timestamp()) };
    io::stdout()
        .write_all(&response.encode_to_vec())
        .map_err(|source| Error::System { what: "print the answer".to_owned(), source })
}

fn bundle(flags: &Flags) -> Result<PathBuf, Error> {
    if !flags.bundle.is_empty() {
        return Ok(PathBuf::from(&flags.bundle));
    }
    std::env::current_dir().map_err(|source| Error::System { what: "find the working directory".to_owned(), source })
}

/// Tries again where the runtime fails: nobody else cleans up after this. In the bundle of a sandbox there is no
/// container, and a container of its name would be somebody else's.
fn kill_patiently(flags: &Flags, bundle: &Path) -> Result<(), Error> {
    if !Options::are_saved(bundle) {
        return Ok(());
    }
    for _ in 1..KILL_TRIES {
        if kill_container(flags, bundle).is_ok() {
            return Ok(());
        }
        std::thread::sleep(KILL_PAUSE);
    }
    kill_container(flags, bundle)
}

fn kill_container(flags: &Flags, bundle: &Path) -> Result<(), Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::System { what, source }
    };
    let runtime = Runtime::find(Options::load(bundle, &flags.namespace))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.map_err(io::Error::from).and_then(above_stdio).map_err(failed("open /dev/null"))?;
    let command = ["delete", "--force", &flags.id];
    let call = runtime.call(bundle, &command, null_stdio(&null), None, LogName::Own(std::process::id()))?;
    let pid = Pid::from_raw(call.pid.cast_signed());
    let waited = rustix::process::waitpid(pid, WaitOptions::empty());
    let waited = waited.map_err(io::Error::from).map_err(failed("wait for the runtime"))?;
    let status = waited.and_then(|(_, status)| status.exit_status()).unwrap_or(255);
    match call.outcome(status.cast_unsigned(), "delete").result {
        Err(fault) if !says_gone(&fault) => Err(Error::Told(fault)),
        _ => Ok(()),
    }
}

fn unmount(bundle: &Path) -> Result<(), Error> {
    strata_idmap::forget_layers(&bundle.join(rootfs::LAYERS));
    let rootfs = bundle.join("rootfs");
    rootfs::unmount_all(&rootfs)
        .map_err(|source| Error::Mount { what: format!("unmount {}", rootfs.display()), source })
}

fn remove_socket(bundle: &Path) -> Result<(), Error> {
    let Ok(address) = fs::read_to_string(bundle.join("address")) else { return Ok(()) };
    let Some(path) = address.trim().strip_prefix("unix://") else { return Ok(()) };
    // Of a shim that other containers of its group still have.
    if is_served(Path::new(path)) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::System { what: format!("remove {path}"), source })
        }
        _ => Ok(()),
    }
}
