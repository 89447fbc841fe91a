//! From the name of a runtime to the program of its shim.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// `io.containerd.runc.v2` → `containerd-shim-runc-v2`; `None` for what is no runtime's name.
pub(crate) fn program_name(runtime: &str) -> Option<String> {
    let parts: Vec<&str> = runtime.split('.').collect();
    let plain =
        |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    match parts.as_slice() {
        [.., name, version] if parts.iter().all(plain) => Some(format!("containerd-shim-{name}-{version}")),
        _ => None,
    }
}

/// Finds the shim of `runtime`, which is a name or an absolute path, in `directories`.
pub(crate) fn find(runtime: &str, directories: &[PathBuf]) -> Result<PathBuf> {
    if Path::new(runtime).is_absolute() {
        let path = PathBuf::from(runtime);
        return if is_executable(&path) { Ok(path) } else { Err(not_found(runtime, runtime)) };
    }
    let name = program_name(runtime).ok_or_else(|| {
        Error::invalid(
            format!("runtime {runtime:?}"),
            "it is neither a name like io.containerd.runc.v2 nor an absolute path",
        )
    })?;
    directories
        .iter()
        .map(|directory| directory.join(&name))
        .find(|path| is_executable(path))
        .ok_or_else(|| not_found(runtime, &name))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn not_found(runtime: &str, program: &str) -> Error {
    Error::ShimStart { runtime: runtime.to_owned(), why: format!("program {program:?} is not installed"), source: None }
}

/// Where shims are looked for: the configured directory, beside shimd, what clients have installed, then `PATH`.
pub(crate) fn search_path(configured: Option<&Path>, opt: &Path) -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = configured.map(Path::to_owned).into_iter().chain(beside).chain([opt.join("bin")]);
    first.chain(std::env::split_paths(&path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(program_name("io.containerd.runc.v2").unwrap(), "containerd-shim-runc-v2");
        assert_eq!(program_name("io.containerd.strata.v1").unwrap(), "containerd-shim-strata-v1");
        assert_eq!(program_name("wasmtime.v1").unwrap(), "containerd-shim-wasmtime-v1");
        for bad in ["", "runc", ".v1", "io.../../bin.v1", "io.a/b.v1", "io.x."] {
            assert_eq!(program_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_first_executable_is_it() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        for place in [&first, &second] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("containerd-shim-x-v1"), "").unwrap();
        }
        let directories = [first, second.clone()];
        assert!(find("io.containerd.x.v1", &directories).is_err());
        let program = second.join("containerd-shim-x-v1");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("io.containerd.x.v1", &directories).unwrap(), program);
        assert_eq!(find(program.to_str().unwrap(), &[]).unwrap(), program);
    }
}
