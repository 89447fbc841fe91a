//! A disk that remembers: one file on FUSE, for a loop device, that logs each write and each flush in their order.
//!
//! The file is served by one thread, so what stands before a flush in the log had been answered before the flush came,
//! and is what the flush promises. FUSE without a cache for writing hands each write on at once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

const NAME: &str = "disk";
const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// What reached the disk.
pub(crate) enum Operation {
    Write {
        offset: u64,
        data: Box<[u8]>,
    },
    /// All writes before this one are safe.
    Flush,
}

struct State {
    content: Vec<u8>,
    log: Vec<Operation>,
}

/// The mounted recorder.
pub(crate) struct Recorder {
    state: Arc<Mutex<State>>,
    session: BackgroundSession,
    place: PathBuf,
}

impl Recorder {
    /// An empty disk of `size` bytes, as a file in the directory `place`.
    pub(crate) fn mount(place: &Path, size: usize) -> Recorder {
        std::fs::create_dir_all(place).expect("a place for the recorder");
        let state = Arc::new(Mutex::new(State { content: vec![0; size], log: Vec::new() }));
        let session = fuser::spawn_mount(Server(state.clone()), place, &Config::default()).expect("mount the recorder");
        Recorder { state, session, place: place.to_path_buf() }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.place.join(NAME)
    }

    /// How many operations there were so far.
    pub(crate) fn position(&self) -> usize {
        lock(&self.state).log.len()
    }

    /// Ends the recording.
    pub(crate) fn finish(self) -> Vec<Operation> {
        self.session.umount_and_join().expect("unmount the recorder");
        std::mem::take(&mut lock(&self.state).log)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Server(Arc<Mutex<State>>);

impl Server {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0),
            DISK => (FileType::RegularFile, lock(&self.0).content.len() as u64),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(DISK).filter(|_| name == NAME) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.0);
        let from = (offset as usize).min(state.content.len());
        let to = (from + size as usize).min(state.content.len());
        reply.data(&state.content[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.0);
        let from = offset as usize;
        let Some(target) = state.content.get_mut(from..from + data.len()) else { return reply.error(Errno::ENOSPC) };
        target.copy_from_slice(data);
        state.log.push(Operation::Write { offset, data: data.into() });
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.0).log.push(Operation::Flush);
        reply.ok();
    }
}
