//! What a person types, parsed by docker's rules: a file per kind of value. Nothing here knows clap or engined's
//! connection; an error is the words that follow `invalid argument "…" for "--flag" flag:`.

pub(crate) mod csv;
pub(crate) mod environment;
pub(crate) mod filter;
pub(crate) mod label;
pub(crate) mod lines;
pub(crate) mod moment;
pub(crate) mod mount;
pub(crate) mod number;
pub(crate) mod port;
pub(crate) mod restart;
pub(crate) mod security;
pub(crate) mod size;
pub(crate) mod tmpfs;
pub(crate) mod ulimit;
pub(crate) mod volume;

/// Words about a value that is not accepted.
pub(crate) type Parsed<T> = Result<T, String>;
