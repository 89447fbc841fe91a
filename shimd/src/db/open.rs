//! Opening the database, and making it where there is none.
//!
//! redb refuses what a power cut leaves of a database that is being made. So it is made beside, and gets its name when
//! it is whole and safe.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use redb::Database;

use super::failed;
use crate::error::{Error, Result};

/// Bytes that redb keeps in memory.
const CACHE_BYTES: usize = 4 << 20;
/// How long another process may have the database, and how often it is tried.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
const NAME: &str = "meta.redb";
/// Of databases that are being made; the maker's pid follows.
const UNFINISHED: &str = "meta.redb.new-";

/// Opens the database in `directory`.
pub(super) fn database(directory: &Path) -> Result<Database> {
    let path = directory.join(NAME);
    if !path.exists() {
        make(directory, &path)?;
    }
    let database = open(&path)?;
    sweep(directory);
    Ok(database)
}

fn make(directory: &Path, path: &Path) -> Result<()> {
    let failed = |source| Error::io(format!("make {}", path.display()), source);
    let unfinished = directory.join(format!("{UNFINISHED}{}", std::process::id()));
    // Of an earlier process with this pid, at another boot.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    drop(open(&unfinished)?);
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(failed)?;
    match std::fs::hard_link(&unfinished, path) {
        // Another shimd was faster: its database stays.
        Err(error) if !path.exists() => return Err(failed(error)),
        _ => {}
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// One process has the database at a time. A shimd that was killed while it started a program leaves a child that has
/// its lock until it executes the program.
fn open(path: &Path) -> Result<Database> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match redb::Builder::new().set_cache_size(CACHE_BYTES).create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            outcome => return outcome.map_err(|error| failed("open the database", error)),
        }
    }
}

/// Takes away the other names, finished or not: who has the database open has it under its own.
fn sweep(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "remove an unfinished database");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_power_cut_left_of_a_making_is_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        // As redb leaves it: the length is there, and nothing else.
        for pid in [1, std::process::id()] {
            let file = File::create(directory.path().join(format!("{UNFINISHED}{pid}"))).unwrap();
            file.set_len(1 << 20).unwrap();
        }
        drop(database(directory.path()).unwrap());
        drop(database(directory.path()).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn redb_refuses_a_database_that_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join(NAME)).unwrap().set_len(1 << 20).unwrap();
        assert!(database(directory.path()).is_err());
    }
}
