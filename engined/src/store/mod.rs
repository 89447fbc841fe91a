//! Records on disk.
//!
//! They live in redb, and a commit there costs an fsync, which the path of a run cannot pay. So a change is written in two
//! steps: first it is appended to a journal with one `write`, which a SIGKILL of the daemon cannot undo, and that is all
//! its author waits for; a thread then gathers what came within [`LAG`] and commits it to redb with an fsync. A start
//! replays the journal over redb. What was made and removed within the lag never reaches redb.
//!
//! ```text
//!   put, remove ──► journal (page cache: survives the death of this process)
//!        │             │ truncated when all of it is in redb
//!        └─► pending ──┴─► redb, durable (survives a power cut)
//! ```
//!
//! A power cut may take the last fraction of a second of records with it. That is no loss: containers of that boot are
//! dead, and what they left is removed by the recovery at start, which trusts no record but compares it with what is there.

mod journal;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use self::journal::Journal;

/// How long changes are gathered before they are committed.
const LAG: Duration = Duration::from_millis(250);
/// Bytes of the journal beyond which it is rewritten even though changes keep coming.
const JOURNAL_MAX: u64 = 4 << 20;
/// redb's cache: a start reads everything once, and then nothing is read any more.
const CACHE_BYTES: usize = 1 << 20;

/// What kind of record it is; each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Table {
    Containers = 1,
    Sandboxes = 2,
}

impl Table {
    const ALL: [Table; 2] = [Table::Containers, Table::Sandboxes];

    const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(match self {
            Table::Containers => "containers",
            Table::Sandboxes => "sandboxes",
        })
    }

    fn from_number(number: u8) -> Option<Table> {
        Table::ALL.into_iter().find(|table| *table as u8 == number)
    }
}

/// A change: the record's new bytes, or none.
type Change = Option<Vec<u8>>;
type Changes = HashMap<(Table, String), Change>;

/// Why records cannot be kept or read.
#[derive(Debug)]
pub(crate) struct StoreError {
    attempt: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StoreError {
    fn new(attempt: &'static str, path: &Path, source: io::Error) -> StoreError {
        StoreError { attempt, path: path.to_owned(), source }
    }

    /// The system's answer.
    pub(crate) fn io(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.attempt, self.path.display())
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// redb's errors keep the system's error where there is one.
fn as_io(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// The records. Dropping it commits what is pending.
pub(crate) struct Store {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    database: Database,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    journal: Journal,
    pending: Changes,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the store in `directory`, and puts into redb what the journal of a killed predecessor holds.
    pub(crate) fn open(directory: &Path) -> Result<Store, StoreError> {
        let path = directory.join("engined.redb");
        let failed = |attempt| {
            let path = path.clone();
            move |error| StoreError { attempt, path, source: error }
        };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create(&path).map_err(|error| failed("open")(as_io(error)))?;
        let (journal, left) = Journal::open(directory)?;
        let state = State { journal, pending: HashMap::new(), closing: false };
        let shared = Arc::new(Shared { path, database, state: Mutex::new(state), wake: Condvar::new() });
        shared.create_tables()?;
        if !left.is_empty() {
            shared.commit(&left)?;
            shared.lock().journal.clear()?;
        }
        let committer = std::thread::Builder::new()
            .name("store".to_owned())
            .stack_size(256 << 10)
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.commit_for_ever()
            })
            .map_err(|error| StoreError::new("start a thread for", &shared.path, error))?;
        Ok(Store { shared, committer: Some(committer) })
    }

    /// Keeps a record. When this returns it survives the death of this process.
    pub(crate) fn put(&self, table: Table, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.change(table, key, Some(value))
    }

    /// Forgets a record; one that is not there is no error.
    pub(crate) fn remove(&self, table: Table, key: &str) -> Result<(), StoreError> {
        self.change(table, key, None)
    }

    fn change(&self, table: Table, key: &str, change: Change) -> Result<(), StoreError> {
        let mut state = self.shared.lock();
        state.journal.append(table, key, change.as_deref())?;
        let is_first = state.pending.is_empty();
        state.pending.insert((table, key.to_owned()), change);
        drop(state);
        if is_first {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Every record of a table. For the start: what is pending is not seen.
    pub(crate) fn load(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.shared.load(table).map_err(|error| StoreError::new("read", &self.shared.path, error))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.committer.take() {
            // It ends when what is pending is committed; what is not stays in the journal.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn create_tables(&self) -> Result<(), StoreError> {
        let create = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            for table in Table::ALL {
                transaction.open_table(table.definition())?;
            }
            Ok(transaction.commit()?)
        };
        let has_all = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_read()?;
            for table in Table::ALL {
                transaction.open_table(table.definition())?;
            }
            Ok(())
        };
        // The first start alone pays the fsync.
        if has_all().is_ok() {
            return Ok(());
        }
        create().map_err(|error| StoreError::new("make tables in", &self.path, as_io(error)))
    }

    fn load(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, io::Error> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let mut records = Vec::new();
            for row in transaction.open_table(table.definition())?.iter()? {
                let (key, value) = row?;
                records.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(records)
        };
        read().map_err(as_io)
    }

    fn commit(&self, changes: &Changes) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            let mut is_changed = false;
            for ((table, key), change) in changes {
                let mut rows = transaction.open_table(table.definition())?;
                is_changed |= match change {
                    Some(value) => {
                        rows.insert(key.as_str(), value.as_slice())?;
                        true
                    }
                    None => rows.remove(key.as_str())?.is_some(),
                };
            }
            // Records that came and went within the lag: nothing to sync.
            if is_changed { Ok(transaction.commit()?) } else { Ok(transaction.abort()?) }
        };
        write().map_err(|error| StoreError::new("commit to", &self.path, as_io(error)))
    }

    fn commit_for_ever(&self) {
        while let Some(changes) = self.gathered() {
            match self.commit(&changes) {
                Ok(()) => self.forget_journal(),
                Err(error) => {
                    tracing::error!(
                        error = %error, cause = %error.source,
                        "records are kept in the journal alone until the store can be written"
                    );
                    self.put_back(changes);
                }
            }
        }
    }

    /// Waits for changes, then for more to come; `None` when the store is closed and nothing is left.
    fn gathered(&self) -> Option<Changes> {
        let mut state = self.lock();
        while state.pending.is_empty() {
            if state.closing {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.closing {
            let closing = |state: &mut State| !state.closing;
            (state, _) = self.wake.wait_timeout_while(state, LAG, closing).unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut state.pending))
    }

    /// After a commit: the journal's entries are in redb, but for those that came since.
    fn forget_journal(&self) {
        let mut state = self.lock();
        let State { journal, pending, .. } = &mut *state;
        let outcome = if pending.is_empty() {
            journal.clear()
        } else if journal.len() > JOURNAL_MAX {
            journal.rewrite(pending)
        } else {
            // Entries that are in redb already are replayed too, in order, which changes nothing.
            Ok(())
        };
        if let Err(error) = outcome {
            tracing::warn!(error = %error, cause = %error.source, "the journal keeps what it could lose");
        }
    }

    /// After a failed commit: what is newer wins. The journal still has all of it.
    fn put_back(&self, changes: Changes) {
        let mut state = self.lock();
        if state.closing {
            return;
        }
        for (key, change) in changes {
            state.pending.entry(key).or_insert(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(store: &Store) -> Vec<(String, Vec<u8>)> {
        store.load(Table::Containers).unwrap()
    }

    #[test]
    fn what_was_put_is_there_after_a_close() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(Table::Containers, "a", b"1".to_vec()).unwrap();
        store.put(Table::Containers, "a", b"2".to_vec()).unwrap();
        store.put(Table::Sandboxes, "a", b"3".to_vec()).unwrap();
        store.put(Table::Containers, "b", b"4".to_vec()).unwrap();
        store.remove(Table::Containers, "b").unwrap();
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(values(&store), [("a".to_owned(), b"2".to_vec())]);
        assert_eq!(store.load(Table::Sandboxes).unwrap(), [("a".to_owned(), b"3".to_vec())]);
    }

    #[test]
    fn what_was_put_survives_a_kill() {
        let directory = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(Table::Containers, "a", b"1".to_vec()).unwrap();
        // What a SIGKILL at this instant would leave: the files as they are, before the lag is over.
        for name in ["engined.redb", "engined.journal"] {
            std::fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
        }
        let revived = Store::open(copy.path()).unwrap();
        assert_eq!(values(&revived), [("a".to_owned(), b"1".to_vec())]);
    }

    #[test]
    fn the_journal_is_emptied_by_the_commit() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(Table::Containers, "a", vec![7; 1000]).unwrap();
        drop(store);
        assert_eq!(std::fs::metadata(directory.path().join("engined.journal")).unwrap().len(), 0);
    }
}
