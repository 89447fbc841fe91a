//! What the client shows: values and their JSON, Go templates, tables, ages and sizes, docker's shapes of containers and
//! images, progress. Nothing here talks to engined.

pub(crate) mod container;
pub(crate) mod event;
pub(crate) mod format;
pub(crate) mod human;
pub(crate) mod image;
pub(crate) mod inspect_container;
pub(crate) mod inspect_image;
pub(crate) mod json;
pub(crate) mod logs;
pub(crate) mod ports;
pub(crate) mod progress;
pub(crate) mod quote;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod time;
pub(crate) mod value;

use std::io::{self, Write};

use crate::error::Error;

/// Writes a command's answer to standard output.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|source| Error::Terminal { attempted: "write to standard output", source })
}

/// Writes one line of a command's answer to standard output.
pub(crate) fn print_line(line: &str) -> Result<(), Error> {
    print(&format!("{line}\n"))
}
