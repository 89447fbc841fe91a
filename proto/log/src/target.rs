//! The address of a log, as it stands in the `stdout` of a task: `strata-log:///DIR?segment_bytes=N&keep_bytes=N`.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::format::RECORD_MAX;
use crate::{Error, Limits};

/// What the address begins with.
pub const SCHEME: &str = "strata-log://";
/// Smallest segment: a few of the largest records.
const SEGMENT_MIN: u64 = 4 * RECORD_MAX as u64;

/// Where a log is and how large it may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Absolute path of the directory.
    pub directory: PathBuf,
    /// Its bounds.
    pub limits: Limits,
}

impl Target {
    /// Reads an address.
    ///
    /// # Errors
    /// Another scheme, a path that is not absolute, an unknown option or a number out of range.
    pub fn parse(uri: &str) -> Result<Target, Error> {
        parse(uri).map_err(|reason| Error::Target { uri: uri.to_owned(), reason })
    }
}

fn parse(uri: &str) -> Result<Target, &'static str> {
    let rest = uri.strip_prefix(SCHEME).ok_or("it does not begin with strata-log://")?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let directory = PathBuf::from(decoded(path)?);
    if !directory.is_absolute() {
        return Err("the path is not absolute");
    }
    let mut limits = Limits::default();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').ok_or("an option has no value")?;
        let value: u64 = value.parse().map_err(|_| "an option is not a number")?;
        match key {
            "segment_bytes" => limits.segment_bytes = value,
            "keep_bytes" => limits.keep_bytes = value,
            _ => return Err("an option is not known (segment_bytes, keep_bytes)"),
        }
    }
    if limits.segment_bytes < SEGMENT_MIN {
        return Err("segment_bytes is too small");
    }
    if limits.keep_bytes < limits.segment_bytes {
        return Err("keep_bytes is less than segment_bytes");
    }
    Ok(Target { directory, limits })
}

/// Undoes percent-encoding.
fn decoded(path: &str) -> Result<OsString, &'static str> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|byte| *byte != 0);
        bytes.push(byte.ok_or("a percent sign is not followed by two hexadecimal digits")?);
        rest = &tail[2..];
    }
    Ok(OsString::from_vec(bytes))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        for &byte in self.directory.as_os_str().as_bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                    f.write_char(byte.into())?
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        write!(f, "?segment_bytes={}&keep_bytes={}", self.limits.segment_bytes, self.limits.keep_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_with_and_without_options() {
        let target = Target::parse("strata-log:///var/lib/x%20y").unwrap();
        assert_eq!((target.directory.to_str(), target.limits), (Some("/var/lib/x y"), Limits::default()));
        let target = Target::parse("strata-log:///d?segment_bytes=8388608&keep_bytes=9000000").unwrap();
        assert_eq!(target.limits, Limits { segment_bytes: 8 << 20, keep_bytes: 9_000_000 });
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for uri in [
            "file:///x",
            "strata-log://x",
            "strata-log:///x?a=1",
            "strata-log:///x?keep_bytes",
            "strata-log:///x?keep_bytes=-1",
            "strata-log:///x?segment_bytes=1",
            "strata-log:///x?keep_bytes=1",
            "strata-log:///x%",
            "strata-log:///x%zz",
            "strata-log:///x%00",
            "strata-log:///x%é",
        ] {
            assert!(Target::parse(uri).is_err(), "{uri}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(path in "/[^\0]{0,40}") {
            let target = Target { directory: PathBuf::from(path), limits: Limits::default() };
            prop_assert_eq!(Target::parse(&target.to_string()).unwrap(), target);
        }
    }
}
