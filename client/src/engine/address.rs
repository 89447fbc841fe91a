//! Where engined listens: `--host`, else STRATA_HOST, else the usual place.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The usual place.
pub(crate) const DEFAULT: &str = "unix:///run/strata/engined.sock";
/// Names another place.
pub(crate) const VARIABLE: &str = "STRATA_HOST";

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(PathBuf);

impl Address {
    /// Reads `unix:///path`, or a plain absolute path.
    pub(crate) fn parse(text: &str) -> Result<Address, Error> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if !path.starts_with('/') {
            return Err(Error::Address(text.to_owned()));
        }
        Ok(Address(path.into()))
    }

    /// The address that holds for this call of the program.
    pub(crate) fn of_call(flag: Option<&str>) -> Result<Address, Error> {
        match (flag, std::env::var(VARIABLE)) {
            (Some(said), _) => Address::parse(said),
            (None, Ok(said)) if !said.is_empty() => Address::parse(&said),
            _ => Address::parse(DEFAULT),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_sockets() {
        assert_eq!(Address::parse("unix:///run/x.sock").unwrap().path(), Path::new("/run/x.sock"));
        assert_eq!(Address::parse("/run/x.sock").unwrap().path(), Path::new("/run/x.sock"));
        for text in ["tcp://localhost:2375", "unix://run/x.sock", "", "ssh://host"] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.fault().message.contains(text), "{error:?}");
        }
    }
}
