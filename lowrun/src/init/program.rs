//! The program that a process becomes: its file, its environment, and what is said when it cannot be executed.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::fault::{Code, Fault, Result};
use crate::plan::process::ProcessPlan;
use crate::sys::process::Strings;
use crate::sys::{self, Call, Failure};

/// Most bytes of a container's passwd that are looked at.
const PASSWD_MAX: u64 = 1 << 20;

/// The program's environment, with HOME from the container's passwd if the spec has none.
pub(super) fn environment(process: &ProcessPlan) -> Vec<String> {
    let mut environment = process.env.clone();
    if process.wants_home {
        environment.push(format!("HOME={}", home(process.uid).unwrap_or_else(|| "/".to_owned())));
    }
    environment
}

/// The file is the image's: it may be a FIFO, a device or endless.
fn home(uid: u32) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let passwd = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    if crate::path::stat(passwd.as_fd()).ok()?.st_mode & libc::S_IFMT != libc::S_IFREG {
        return None;
    }
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(passwd), PASSWD_MAX), &mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

/// The home directory of the first entry with this uid.
pub fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut own = entries.filter(|fields| fields.get(2).is_some_and(|id| id.parse() == Ok(uid)));
    own.next().and_then(|fields| fields.get(5).map(|home| (*home).to_owned())).filter(|home| !home.is_empty())
}

/// The file to execute. Looked for at creation, so that a caller learns of a missing program then.
pub(super) fn find(process: &ProcessPlan) -> Result<CString> {
    let name = process.args[0].as_str();
    let found = if name.contains('/') {
        check_executable(Path::new(name)).map(|()| PathBuf::from(name))
    } else {
        search(name, process.search_path())
    };
    let path = found.map_err(|failure| exec_fault(name, failure))?;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| exec_fault(name, Failure { call: "execve", errno: Errno::INVAL }))
}

fn search(name: &str, path: &str) -> sys::Result<PathBuf> {
    // What is there but cannot be executed is told, if nothing better comes.
    let mut best = Failure { call: "search", errno: Errno::NOENT };
    for dir in path.split(':').filter(|_| !name.is_empty()) {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(failure) if failure.errno == Errno::ACCESS => best = failure,
            Err(_) => {}
        }
    }
    Err(best)
}

fn check_executable(path: &Path) -> sys::Result<()> {
    let stat = rustix::fs::stat(path).call("stat")?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Failure { call: "execve", errno: Errno::ISDIR });
    }
    match rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // Not there before Linux 5.8, or denied by the filter: the mode must do.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno::NOSYS | Errno::PERM) => Err(Failure { call: "execve", errno: Errno::ACCESS }),
        result => result.call("execve"),
    }
}

/// The words are those that callers look for to choose 126 or 127.
pub(super) fn exec_fault(name: &str, failure: Failure) -> Box<Fault> {
    let message = format!("exec: {name:?}");
    let refusal = format!("exec {name}: {}", sys::words(failure.errno));
    match failure.errno {
        Errno::NOENT if failure.call == "search" => {
            Fault::new(Code::CommandNotFound, message).cause("executable file not found in $PATH")
        }
        Errno::NOENT | Errno::NOTDIR => Fault::new(Code::CommandNotFound, message).cause(refusal),
        Errno::NOEXEC => Fault::new(Code::CommandNotExecutable, message)
            .cause(refusal)
            .hint("the file is no program of this architecture, or a script without a first line that names its shell"),
        // Older callers know only the kernel's own word for it, which is EACCES.
        Errno::ISDIR => Fault::new(Code::CommandNotExecutable, message)
            .cause("is a directory")
            .cause(Failure { call: "execve", errno: Errno::ACCESS }.to_string()),
        _ => Fault::of(Code::CommandNotExecutable, message, failure),
    }
}

/// Words as the kernel takes them.
pub(super) fn strings(words: &[String]) -> Strings {
    Strings::new(words.iter().filter_map(|word| CString::new(word.as_bytes()).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_that_of_the_first_entry_with_the_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n7:x:0:0::/evil:/bin/sh\nu:x:7:7::/home/u:\nbad\nempty:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7).as_deref(), Some("/home/u"));
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }

    #[test]
    fn a_missing_and_a_forbidden_program_have_codes_of_their_own() {
        let not_found = search("no-such-program", "/bin:/usr/bin").unwrap_err();
        assert_eq!(exec_fault("no-such-program", not_found).code, Code::CommandNotFound);
        assert!(exec_fault("x", not_found).one_line().contains("executable file not found in $PATH"));
        let directory = check_executable(Path::new("/etc")).unwrap_err();
        assert_eq!(exec_fault("/etc", directory).code, Code::CommandNotExecutable);
        let plain = check_executable(Path::new("/etc/passwd")).unwrap_err();
        assert!(exec_fault("/etc/passwd", plain).one_line().contains("permission denied"));
    }
}
