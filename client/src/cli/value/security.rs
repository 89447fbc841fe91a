//! `--security-opt`: `no-new-privileges`, `seccomp=unconfined`, `seccomp=FILE`.

use super::{Parsed, number};

/// One option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SecurityOption {
    NoNewPrivileges(bool),
    SeccompDefault,
    SeccompUnconfined,
    /// A file with a profile in Docker's form.
    SeccompFile(String),
}

/// Reads one option. A colon may stand for the equals sign, as it did in old versions of docker.
pub(crate) fn option(text: &str) -> Parsed<SecurityOption> {
    let (key, value) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((text, ""));
    match (key, value) {
        ("no-new-privileges", "") if !text.contains(['=', ':']) => Ok(SecurityOption::NoNewPrivileges(true)),
        ("no-new-privileges", value) => number::boolean(value).map(SecurityOption::NoNewPrivileges),
        ("seccomp", "unconfined") => Ok(SecurityOption::SeccompUnconfined),
        ("seccomp", "builtin") => Ok(SecurityOption::SeccompDefault),
        ("seccomp", "") => Err(format!("invalid --security-opt: \"{text}\": name a profile's file, or unconfined")),
        ("seccomp", file) => Ok(SecurityOption::SeccompFile(file.to_owned())),
        ("apparmor" | "label" | "systempaths" | "writable-cgroups", _) => {
            Err(format!("security option '{key}' is not supported (no-new-privileges and seccomp are)"))
        }
        _ => Err(format!("invalid --security-opt: \"{text}\" (no-new-privileges and seccomp=PROFILE are accepted)")),
    }
}

/// A profile as it is sent: checked to be JSON, white space taken out.
pub(crate) fn profile(content: &[u8]) -> Parsed<Vec<u8>> {
    let document: serde_json::Value = serde_json::from_slice(content)
        .map_err(|error| format!("compacting json for seccomp profile failed: {error}"))?;
    serde_json::to_vec(&document).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_does() {
        for (text, expected) in [
            ("no-new-privileges", SecurityOption::NoNewPrivileges(true)),
            ("no-new-privileges:true", SecurityOption::NoNewPrivileges(true)),
            ("no-new-privileges=false", SecurityOption::NoNewPrivileges(false)),
            ("seccomp=unconfined", SecurityOption::SeccompUnconfined),
            ("seccomp:unconfined", SecurityOption::SeccompUnconfined),
            ("seccomp=builtin", SecurityOption::SeccompDefault),
            ("seccomp=/p/x.json", SecurityOption::SeccompFile("/p/x.json".to_owned())),
        ] {
            assert_eq!(option(text), Ok(expected), "{text}");
        }
        for text in ["", "foo", "seccomp", "seccomp=", "apparmor=x", "no-new-privileges=maybe", "no-new-privileges="] {
            assert!(option(text).is_err(), "{text}");
        }
    }

    #[test]
    fn profiles_are_json() {
        assert_eq!(profile(b" { \"a\" : [ 1 ] } ").unwrap(), b"{\"a\":[1]}");
        assert!(profile(b"{").is_err());
    }
}
