//! `lowrun list` and `lowrun state`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::args::{Command, Typed, option, switch};
use super::{Global, print, print_json};
use crate::fault::{Code, Fault, Result};
use crate::spec;
use crate::state::{self, Container, Status};
use crate::sys::Failure;

pub(super) const STATE: Command = Command {
    name: "state",
    about: "print the state of a container",
    description: "Prints JSON: ociVersion, id, pid, status (creating, created, running, paused, stopped), bundle, rootfs, created,\n\
                  annotations, owner.",
    arguments: "CONTAINER",
    flags: &[],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) const LIST: Command = Command {
    name: "list",
    about: "list the containers of --root",
    description: "",
    arguments: "",
    flags: &[
        option("format", Some('f'), "FORMAT", "table (default) or json"),
        switch("quiet", Some('q'), "print ids only"),
    ],
    count: (0, 0),
    flags_end_after: usize::MAX,
};

/// What runc prints of a container, field by field in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: &'static str,
    id: String,
    pid: i32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Shown {
    fn of(container: &Container, owner: String) -> Shown {
        let status = container.status();
        let state = &container.state;
        let pid = state.init.as_ref().map_or(0, |init| init.pid);
        Shown {
            oci_version: spec::OCI_VERSION,
            id: state.id.clone(),
            pid: if status == Status::Stopped { 0 } else { pid },
            status: status.as_str(),
            bundle: state.bundle.display().to_string(),
            rootfs: state.rootfs.display().to_string(),
            created: state.created.clone(),
            annotations: state.annotations.clone(),
            owner,
        }
    }
}

pub(super) fn state(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    print_json(&Shown::of(&container, String::new()), "").map(|()| 0)
}

pub(super) fn list(global: &Global, typed: &Typed) -> Result<i32> {
    let ids = match state::list(&global.root)? {
        Some(ids) => ids,
        // As runc: a root that somebody names must be there.
        None if global.root_is_named => {
            let missing = Failure { call: "open", errno: rustix::io::Errno::NOENT };
            return Err(Fault::of(Code::StateInvalid, format!("list {}", global.root.display()), missing));
        }
        None => Vec::new(),
    };
    if typed.is_on("quiet") {
        return print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>()).map(|()| 0);
    }
    let mut shown = Vec::with_capacity(ids.len());
    for id in ids {
        match Container::load(&global.root, &id) {
            Ok(container) => {
                let owner = user_name(container.dir.owner());
                shown.push(Shown::of(&container, owner));
            }
            // Removed meanwhile.
            Err(fault) if fault.code == Code::ContainerNotFound => {}
            Err(fault) => global.log.warn(&fault.one_line()),
        }
    }
    match typed.text("format")?.unwrap_or("table") {
        "table" => print(&table(&shown)).map(|()| 0),
        "json" if shown.is_empty() => print("null\n").map(|()| 0),
        "json" => {
            let text = serde_json::to_string(&shown)
                .map_err(|error| Fault::new(Code::SystemError, "write to stdout").cause(error.to_string()))?;
            print(&(text + "\n")).map(|()| 0)
        }
        other => Err(Fault::new(Code::InvalidArgument, "invalid format option").cause(format!("{other:?}"))),
    }
}

/// Columns at least twelve wide, three apart.
fn table(shown: &[Shown]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head)
        .chain(shown.iter().map(|one| {
            [
                one.id.clone(),
                one.pid.to_string(),
                one.status.to_owned(),
                one.bundle.clone(),
                one.created.clone(),
                one.owner.clone(),
            ]
        }))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{cells}{}\n", row[5])
    };
    rows.iter().map(line).collect()
}

/// The name of a user of the host, or the number.
fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut own = entries.filter(|fields| fields.get(2).is_some_and(|id| id.parse() == Ok(uid)));
    own.next().map_or_else(|| format!("#{uid}"), |fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_has_its_head() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
