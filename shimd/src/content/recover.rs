//! After a start: records and files of content are made to agree.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::Content;
use crate::db::record::{Blob, Ingest};
use crate::db::{Access, Durability, Table, tail};
use crate::error::{Error, Result};

impl Content {
    /// A record whose file is not there is dropped (a power cut took the name), and so is a file that no record tells
    /// of (the record was not written, or a namespace gave the blob up).
    pub(super) fn recover(&self) -> Result<()> {
        let blobs = names(&self.blobs)?;
        let ingests = names(&self.ingests)?;
        let mut lost = Vec::new();
        let mut used_blobs = HashSet::new();
        let mut used_ingests = HashSet::new();
        let view = self.store.read()?;
        view.each(&[], |entry, _: Blob| {
            let hex = tail(entry, 1).rsplit(':').next().unwrap_or_default().to_owned();
            if blobs.contains(&hex) {
                used_blobs.insert(hex);
            } else {
                lost.push((Table::Blobs, entry.to_vec()));
            }
            Ok(())
        })?;
        view.each(&[], |entry, record: Ingest| {
            let number = record.directory.to_string();
            if ingests.contains(&number) {
                used_ingests.insert(number);
            } else {
                lost.push((Table::Ingests, entry.to_vec()));
            }
            Ok(())
        })?;
        self.forget(&lost)?;
        remove_unused(&self.blobs, &blobs, &used_blobs)?;
        remove_unused(&self.ingests, &ingests, &used_ingests)?;
        let next = ingests.iter().filter_map(|name| name.parse::<u64>().ok()).max().map_or(1, |number| number + 1);
        self.next.store(next, Ordering::Relaxed);
        Ok(())
    }

    fn forget(&self, lost: &[(Table, Vec<u8>)]) -> Result<()> {
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(count = lost.len(), "content records are dropped: their files are not there");
        self.store.write(Durability::Process, |writer| {
            lost.iter().try_for_each(|(table, entry)| writer.remove(*table, entry))
        })
    }
}

fn names(directory: &Path) -> Result<HashSet<String>> {
    let failed = |error| Error::io(format!("list {}", directory.display()), error);
    let mut names = HashSet::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

fn remove_unused(directory: &Path, names: &HashSet<String>, used: &HashSet<String>) -> Result<()> {
    for name in names.difference(used) {
        let path = directory.join(name);
        std::fs::remove_file(&path).map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
    }
    Ok(())
}
