//! The metadata store: one redb database and a journal beside it.
//!
//! Every change is one [`Store::write`]. Its operations go to the journal first, a plain append that a killed process
//! does not lose, and then into redb without a sync. So the records of a run cost some microseconds and survive
//! `kill -9`. What must survive a power cut too is written with [`Durability::Synced`]: one fdatasync of the journal.
//! Now and then, and at the end, [`Store::checkpoint`] makes redb durable and empties the journal.
//!
//! ```text
//!   write:       journal += operations      redb commit (memory)     [synced: fdatasync(journal)]
//!   checkpoint:  redb commit (fsync, seq)   journal = ""
//!   open:        redb as of the last checkpoint, then each journal entry whose number is beyond its seq
//! ```
//!
//! A torn end of the journal (power cut, full disk) ends the replay; what it held had not been acknowledged as synced.
//! Callers reconcile the rest with what is really on disk and in the kernel.

mod journal;
mod open;
pub(crate) mod record;

use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::{Error, Result};
use journal::{Journal, Operation};

/// A journal of this length is folded into redb at once.
const JOURNAL_MAX: u64 = 4 << 20;
/// Separates the parts of a key; names hold no NUL.
const SEPARATOR: u8 = 0;

/// The tables. Their numbers stand in the journal: never re-use one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Table {
    Meta = 0,
    Namespaces = 1,
    Containers = 2,
    Images = 3,
    Blobs = 4,
    Ingests = 5,
    Snapshots = 6,
    /// `namespace, parent, child` of snapshots; no values.
    SnapshotChildren = 7,
    Leases = 8,
    /// `namespace, lease, type, id`; no values.
    LeaseResources = 9,
    Sandboxes = 10,
    /// Those of the snapshotter `native`, as [`Table::Snapshots`] and [`Table::SnapshotChildren`].
    NativeSnapshots = 11,
    NativeSnapshotChildren = 12,
}

impl Table {
    const ALL: [Table; 13] = [
        Table::Meta,
        Table::Namespaces,
        Table::Containers,
        Table::Images,
        Table::Blobs,
        Table::Ingests,
        Table::Snapshots,
        Table::SnapshotChildren,
        Table::Leases,
        Table::LeaseResources,
        Table::Sandboxes,
        Table::NativeSnapshots,
        Table::NativeSnapshotChildren,
    ];

    fn from_number(number: u8) -> Option<Table> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Table::Meta => "meta",
            Table::Namespaces => "namespaces",
            Table::Containers => "containers",
            Table::Images => "images",
            Table::Blobs => "blobs",
            Table::Ingests => "ingests",
            Table::Snapshots => "snapshots",
            Table::SnapshotChildren => "snapshot-children",
            Table::Leases => "leases",
            Table::LeaseResources => "lease-resources",
            Table::Sandboxes => "sandboxes",
            Table::NativeSnapshots => "native-snapshots",
            Table::NativeSnapshotChildren => "native-snapshot-children",
        })
    }
}

/// A record with a table of its own.
pub(crate) trait Record: Message + Default {
    const TABLE: Table;
    /// For error messages: `container`.
    const NOUN: &'static str;
}

/// How much a write survives once it has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The end of this process, however sudden.
    Process,
    /// A power cut, too.
    Synced,
}

/// The key whose parts are `parts`.
pub(crate) fn key(parts: &[&str]) -> Vec<u8> {
    let mut key = Vec::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            key.push(SEPARATOR);
        }
        key.extend_from_slice(part.as_bytes());
    }
    key
}

/// The prefix of all keys that begin with `parts`.
pub(crate) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut prefix = key(parts);
    if !parts.is_empty() {
        prefix.push(SEPARATOR);
    }
    prefix
}

/// The parts of a key.
pub(crate) fn parts(key: &[u8]) -> impl Iterator<Item = &str> {
    key.split(|byte| *byte == SEPARATOR).map(|part| std::str::from_utf8(part).unwrap_or_default())
}

/// The part of `key` behind the first `skip` parts, whole.
pub(crate) fn tail(key: &[u8], skip: usize) -> String {
    parts(key).nth(skip).unwrap_or_default().to_owned()
}

/// Is shown keys and values, and says whether to go on.
type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>;

/// Reading, the same inside and outside of a write.
pub(crate) trait Access {
    fn bytes(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` for each entry whose key begins with `prefix`, in order of keys, until it breaks.
    fn scan(&self, table: Table, prefix: &[u8], visit: Visit<'_>) -> Result<()>;

    fn get<R: Record>(&self, key: &[u8]) -> Result<Option<R>> {
        self.get_in(R::TABLE, key)
    }

    /// The same of another table than the record's own.
    fn get_in<R: Record>(&self, table: Table, key: &[u8]) -> Result<Option<R>> {
        self.bytes(table, key)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// The record, or the error that it is not there; `name` is for people.
    fn require<R: Record>(&self, key: &[u8], name: &str) -> Result<R> {
        self.get(key)?.ok_or_else(|| Error::not_found(R::NOUN, name))
    }

    /// Calls `visit` for each record whose key begins with `prefix`.
    fn each<R: Record>(&self, prefix: &[u8], visit: impl FnMut(&[u8], R) -> Result<()>) -> Result<()>
    where
        Self: Sized,
    {
        self.each_in(R::TABLE, prefix, visit)
    }

    /// The same of another table than the record's own.
    fn each_in<R: Record>(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], R) -> Result<()>,
    ) -> Result<()>
    where
        Self: Sized,
    {
        self.scan(table, prefix, &mut |key, value| {
            visit(key, decode(value)?)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Whether any key begins with `prefix`.
    fn any(&self, table: Table, prefix: &[u8]) -> Result<bool> {
        let mut found = false;
        self.scan(table, prefix, &mut |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

fn decode<R: Record>(bytes: &[u8]) -> Result<R> {
    R::decode(bytes).map_err(|source| Error::Record { what: R::NOUN, source })
}

/// The store.
pub(crate) struct Store {
    db: Database,
    journal: Mutex<Journal>,
    /// Set by each write, cleared by each checkpoint.
    dirty: AtomicBool,
}

impl Store {
    /// Opens or makes the store in `directory`, and replays what a killed process left in the journal.
    pub(crate) fn open(directory: &Path) -> Result<Store> {
        let db = open::database(directory)?;
        let (journal, entries) = Journal::open(&directory.join("meta.journal"))?;
        let store = Store { db, journal: Mutex::new(journal), dirty: AtomicBool::new(true) };
        store.make_tables()?;
        store.replay(entries)?;
        store.checkpoint()?;
        Ok(store)
    }

    fn make_tables(&self) -> Result<()> {
        let transaction = self.db.begin_write().map_err(|error| failed("begin a write", error))?;
        for table in Table::ALL {
            transaction.open_table(table.definition()).map_err(|error| failed("make a table", error))?;
        }
        transaction.commit().map_err(|error| failed("commit", error))
    }

    fn replay(&self, entries: Vec<journal::Entry>) -> Result<()> {
        let mut seq = self.stored_seq()?;
        for entry in entries {
            if entry.seq <= seq {
                continue;
            }
            let mut writer = self.begin()?;
            for operation in &entry.operations {
                writer.apply(operation)?;
            }
            writer.commit_in_memory()?;
            seq = entry.seq;
        }
        self.journal().seq = seq;
        Ok(())
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        // The journal is whole between any two statements that could panic.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored_seq(&self) -> Result<u64> {
        let bytes = self.read()?.bytes(Table::Meta, b"seq")?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
    }

    /// A view of the store as it is now.
    pub(crate) fn read(&self) -> Result<Reader> {
        Ok(Reader(self.db.begin_read().map_err(|error| failed("begin a read", error))?))
    }

    /// Runs `change` as one transaction: all of it is seen, or, when it fails, nothing.
    pub(crate) fn write<T>(&self, durability: Durability, change: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        let mut writer = self.begin()?;
        let outcome = change(&mut writer)?;
        if writer.operations.is_empty() {
            return Ok(outcome);
        }
        let file = self.commit(writer)?;
        self.dirty.store(true, Ordering::Relaxed);
        if durability == Durability::Synced {
            // Outside all locks: writes that need no sync go on meanwhile.
            file.sync_data().map_err(|source| Error::io("sync the metadata journal", source))?;
        }
        Ok(outcome)
    }

    /// Journals and commits. The commit lets the next writer into redb while the journal's lock is still held here, so
    /// entries stand in the journal in the order of the commits.
    fn commit(&self, mut writer: Writer) -> Result<Arc<File>> {
        let operations = std::mem::take(&mut writer.operations);
        let mut journal = self.journal();
        let before = journal.length();
        journal.append(&operations)?;
        if let Err(error) = writer.commit_in_memory() {
            journal.retract(before)?;
            return Err(error);
        }
        Ok(journal.file())
    }

    fn begin(&self) -> Result<Writer> {
        let mut transaction = self.db.begin_write().map_err(|error| failed("begin a write", error))?;
        transaction.set_durability(redb::Durability::None).map_err(|error| failed("begin a write", error))?;
        Ok(Writer { transaction, operations: Vec::new() })
    }

    /// Number of the last write: who sees the same number twice knows that nothing was written in between.
    pub(crate) fn seq(&self) -> u64 {
        self.journal().seq
    }

    /// Whether there is something for [`Store::checkpoint`] to do.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Whether the journal is so long that a checkpoint should not wait.
    pub(crate) fn is_journal_long(&self) -> bool {
        self.journal().length() > JOURNAL_MAX
    }

    /// Makes redb durable and empties the journal. Blocks writers for the time of an fsync.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let mut transaction = self.db.begin_write().map_err(|error| failed("begin a checkpoint", error))?;
        // Saves the allocator's state, so that opening after a crash reads no whole database.
        transaction.set_quick_repair(true);
        // The lock order is that of `write`: redb, then the journal.
        let mut journal = self.journal();
        let seq = journal.seq;
        {
            let mut meta =
                transaction.open_table(Table::Meta.definition()).map_err(|error| failed("open a table", error))?;
            meta.insert(b"seq".as_slice(), seq.to_le_bytes().as_slice()).map_err(|error| failed("write", error))?;
        }
        transaction.commit().map_err(|error| failed("commit a checkpoint", error))?;
        // A writer may have begun, but it cannot have appended: that needs the journal's lock.
        journal.truncate(0)?;
        self.dirty.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// A view of the store.
pub(crate) struct Reader(redb::ReadTransaction);

impl Access for Reader {
    fn bytes(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = self.0.open_table(table.definition()).map_err(|error| failed("open a table", error))?;
        get_from(&table, key)
    }

    fn scan(&self, table: Table, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        let table = self.0.open_table(table.definition()).map_err(|error| failed("open a table", error))?;
        scan_table(&table, prefix, visit)
    }
}

impl Reader {
    /// Calls `visit` for each record whose key begins with `prefix` and comes after `after`, until it breaks.
    pub(crate) fn each_after<R: Record>(
        &self,
        prefix: &[u8],
        after: &[u8],
        mut visit: impl FnMut(&[u8], R) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let table = self.0.open_table(R::TABLE.definition()).map_err(|error| failed("open a table", error))?;
        scan_range(&table, (Bound::Excluded(after), prefix), &mut |key, value| visit(key, decode(value)?))
    }
}

/// A transaction that is being made.
pub(crate) struct Writer {
    transaction: redb::WriteTransaction,
    operations: Vec<Operation>,
}

impl Writer {
    pub(crate) fn put<R: Record>(&mut self, key: &[u8], record: &R) -> Result<()> {
        self.put_in(R::TABLE, key, record)
    }

    /// Puts a record into another table than its own.
    pub(crate) fn put_in<R: Record>(&mut self, table: Table, key: &[u8], record: &R) -> Result<()> {
        self.put_bytes(table, key, record.encode_to_vec())
    }

    /// Enters a key that has no value.
    pub(crate) fn mark(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.put_bytes(table, key, Vec::new())
    }

    pub(crate) fn put_bytes(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> Result<()> {
        self.perform(Operation::Put { table, key: key.to_vec(), value })
    }

    /// Removes a key, should it be there.
    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.perform(Operation::Remove { table, key: key.to_vec() })
    }

    fn perform(&mut self, operation: Operation) -> Result<()> {
        self.apply(&operation)?;
        self.operations.push(operation);
        Ok(())
    }

    fn apply(&mut self, operation: &Operation) -> Result<()> {
        let definition = operation.table().definition();
        let mut table = self.transaction.open_table(definition).map_err(|error| failed("open a table", error))?;
        match operation {
            Operation::Put { key, value, .. } => table.insert(key.as_slice(), value.as_slice()).map(drop),
            Operation::Remove { key, .. } => table.remove(key.as_slice()).map(drop),
        }
        .map_err(|error| failed("write", error))
    }

    fn commit_in_memory(self) -> Result<()> {
        self.transaction.commit().map_err(|error| failed("commit", error))
    }
}

impl Access for Writer {
    fn bytes(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let table = self.transaction.open_table(table.definition()).map_err(|error| failed("open a table", error))?;
        get_from(&table, key)
    }

    fn scan(&self, table: Table, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        let table = self.transaction.open_table(table.definition()).map_err(|error| failed("open a table", error))?;
        scan_table(&table, prefix, visit)
    }
}

type Bytes = &'static [u8];

fn get_from(table: &impl ReadableTable<Bytes, Bytes>, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let found = table.get(key).map_err(|error| failed("read", error))?;
    Ok(found.map(|value| value.value().to_vec()))
}

fn scan_table(table: &impl ReadableTable<Bytes, Bytes>, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
    scan_range(table, (Bound::Included(prefix), prefix), visit)
}

/// From where on, and the prefix that ends it.
fn scan_range(
    table: &impl ReadableTable<Bytes, Bytes>,
    (start, prefix): (Bound<&[u8]>, &[u8]),
    visit: Visit<'_>,
) -> Result<()> {
    let range: (Bound<&[u8]>, Bound<&[u8]>) = (start, Bound::Unbounded);
    for entry in table.range::<&[u8]>(range).map_err(|error| failed("read", error))? {
        let (key, value) = entry.map_err(|error| failed("read", error))?;
        if !key.value().starts_with(prefix) || visit(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

fn failed(attempted: &'static str, error: impl Into<redb::Error>) -> Error {
    Error::Store { attempted, source: Box::new(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &Store, name: &str, value: &str, durability: Durability) {
        store.write(durability, |writer| writer.put_bytes(Table::Images, &key(&["ns", name]), value.into())).unwrap();
    }

    fn get(store: &Store, name: &str) -> Option<String> {
        let bytes = store.read().unwrap().bytes(Table::Images, &key(&["ns", name])).unwrap();
        bytes.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn a_lock_that_is_on_its_way_out_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let first = Store::open(directory.path()).unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        let path = directory.path().to_owned();
        let second = std::thread::spawn(move || {
            begun.send(()).unwrap();
            Store::open(&path).map(drop)
        });
        begins.recv().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(first);
        second.join().unwrap().unwrap();
    }

    /// The store as the disk holds it when the process dies now: nothing is dropped, so nothing is flushed.
    fn kill_and_reopen(directory: &Path, store: Store) -> Store {
        let copy = directory.join("copy");
        std::fs::create_dir_all(&copy).unwrap();
        for name in ["meta.redb", "meta.journal"] {
            std::fs::copy(directory.join(name), copy.join(name)).unwrap();
        }
        std::mem::forget(store);
        Store::open(&copy).unwrap()
    }

    #[test]
    fn a_killed_process_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        put(&store, "a", "1", Durability::Process);
        store.checkpoint().unwrap();
        put(&store, "b", "2", Durability::Process);
        put(&store, "a", "3", Durability::Synced);
        store.write(Durability::Process, |writer| writer.remove(Table::Images, &key(&["ns", "b"]))).unwrap();
        let store = kill_and_reopen(directory.path(), store);
        assert_eq!(get(&store, "a").as_deref(), Some("3"));
        assert_eq!(get(&store, "b"), None);
        put(&store, "c", "4", Durability::Process);
        assert_eq!(get(&store, "c").as_deref(), Some("4"));
    }

    #[test]
    fn a_torn_journal_ends_the_replay() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        put(&store, "a", "1", Durability::Process);
        put(&store, "b", "2", Durability::Process);
        let journal = directory.path().join("meta.journal");
        let length = std::fs::metadata(&journal).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&journal).unwrap().set_len(length - 1).unwrap();
        let store = kill_and_reopen(directory.path(), store);
        assert_eq!(get(&store, "a").as_deref(), Some("1"));
        assert_eq!(get(&store, "b"), None);
    }

    #[test]
    fn a_failed_change_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let outcome = store.write(Durability::Process, |writer| {
            writer.mark(Table::Images, b"x")?;
            Err::<(), _>(Error::not_found("image", "y"))
        });
        assert!(outcome.unwrap_err().is_not_found());
        assert_eq!(store.read().unwrap().bytes(Table::Images, b"x").unwrap(), None);
    }

    #[test]
    fn prefixes_do_not_reach_into_longer_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store
            .write(Durability::Process, |writer| {
                writer.mark(Table::LeaseResources, &key(&["ns", "lease", "content", "a"]))?;
                writer.mark(Table::LeaseResources, &key(&["ns", "lease2", "content", "b"]))
            })
            .unwrap();
        let mut seen = Vec::new();
        store
            .read()
            .unwrap()
            .scan(Table::LeaseResources, &prefix(&["ns", "lease"]), &mut |key, _| {
                seen.push(tail(key, 3));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        assert_eq!(seen, ["a"]);
    }
}
