//! Content on a real file system; no root needed.

use sha2::{Digest as _, Sha256};

use super::*;
use bytes::Bytes;

struct Rig {
    directory: tempfile::TempDir,
    content: Arc<Content>,
    namespace: Namespace,
}

fn open(root: &Path) -> Arc<Content> {
    let store = Arc::new(Store::open(root).unwrap());
    let provisional = Arc::new(Provisional::open(root).unwrap());
    store
        .write(Durability::Process, |writer| {
            writer.put(&key(&["ns"]), &NamespaceRecord::default())?;
            writer.put(&key(&["other"]), &NamespaceRecord::default())
        })
        .unwrap();
    Arc::new(Content::open(root, store, provisional).unwrap())
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let content = open(directory.path());
    Rig { directory, content, namespace: Namespace::parse("ns").unwrap() }
}

fn digest(data: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(data))
}

impl Rig {
    async fn writer_in(&self, namespace: &str, reference: &str, expected: Option<Digest>) -> Result<Writer> {
        let namespace = Namespace::parse(namespace).unwrap();
        Writer::open(self.content.clone(), Opening { namespace, expected, ..self.opening(reference) }).await
    }

    fn opening(&self, reference: &str) -> Opening {
        let (namespace, reference) = (self.namespace.clone(), reference.to_owned());
        Opening { namespace, lease: None, reference, expected: None, total: 0, unpack: None }
    }

    async fn writer(&self, reference: &str) -> Writer {
        self.writer_in("ns", reference, None).await.unwrap()
    }

    fn read(&self, digest: &Digest) -> Vec<u8> {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut self.content.blob(&self.namespace, digest).unwrap().0, &mut bytes).unwrap();
        bytes
    }
}

fn commit(expected: Option<Digest>, total: u64) -> Commit {
    Commit { expected, total, labels: Labels::from([("k".to_owned(), "v".to_owned())]) }
}

#[tokio::test]
async fn what_cannot_be_recorded_is_no_blob() {
    let rig = rig();
    crate::lease::create(&rig.content.store, &rig.namespace, "l", Labels::new()).unwrap();
    let opening = Opening {
        namespace: rig.namespace.clone(),
        lease: Some("l".to_owned()),
        reference: "r".to_owned(),
        expected: None,
        total: 0,
        unpack: None,
    };
    let mut writer = Writer::open(rig.content.clone(), opening).await.unwrap();
    writer.write(Bytes::from_static(b"data")).await.unwrap();
    assert_eq!(writer.digest().await.unwrap(), digest(b"data"));
    crate::lease::delete(&rig.content.store, &rig.namespace, "l").unwrap();
    assert!(writer.commit(commit(None, 4)).await.is_err());
    assert!(!rig.content.blob_path(&digest(b"data")).exists());
    let mut again = rig.writer("r").await;
    assert_eq!(again.commit(commit(Some(digest(b"data")), 4)).await.unwrap(), digest(b"data"));
    assert_eq!(rig.read(&digest(b"data")), b"data");
}

#[tokio::test]
async fn a_blob_is_what_was_written() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"hello ")).await.unwrap();
    writer.write(Bytes::from_static(b"world")).await.unwrap();
    assert_eq!(writer.digest().await.unwrap(), digest(b"hello world"));
    let made = writer.commit(commit(Some(digest(b"hello world")), 11)).await.unwrap();
    assert_eq!(rig.read(&made), b"hello world");
    let info = rig.content.info(&rig.namespace, &made).unwrap();
    assert_eq!((info.record.size, info.record.labels["k"].as_str()), (11, "v"));
    assert!(rig.content.status(&rig.namespace, "r").unwrap_err().is_not_found());
    assert!(matches!(rig.writer_in("ns", "again", Some(made)).await, Err(Error::Exists { .. })));
}

#[tokio::test]
async fn what_does_not_match_never_becomes_visible() {
    let rig = rig();
    for (expected, total) in [(Some(digest(b"other")), 0), (None, 4)] {
        let opening = Opening { total, expected: expected.clone(), ..rig.opening("r") };
        let mut writer = Writer::open(rig.content.clone(), opening).await.unwrap();
        writer.write(Bytes::from_static(b"hello")).await.unwrap();
        let error = writer.commit(commit(expected, total)).await.unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. } | Error::SizeMismatch { .. }));
    }
    assert!(rig.content.list(&rig.namespace, &Filters::default()).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(rig.directory.path().join("content/ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_promised_stays_where_the_commit_says_otherwise() {
    let rig = rig();
    let promised = Some(digest(b"hello"));
    let mut writer = rig.writer_in("ns", "r", promised.clone()).await.unwrap();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    assert!(matches!(writer.commit(commit(Some(digest(b"other")), 0)).await, Err(Error::DigestMismatch { .. })));
    let made = take_up(&rig).await.commit(commit(promised, 5)).await.unwrap();
    assert_eq!(rig.read(&made), b"hello");
}

/// As containerd's: where nothing was promised before, the commit may be what is wrong.
#[tokio::test]
async fn a_commit_that_was_wrong_can_be_made_again() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    assert!(matches!(writer.commit(commit(Some(digest(b"other")), 0)).await, Err(Error::DigestMismatch { .. })));
    let mut writer = take_up(&rig).await;
    assert!(matches!(writer.commit(commit(None, 4)).await, Err(Error::SizeMismatch { .. })));
    let mut writer = take_up(&rig).await;
    assert_eq!(writer.commit(commit(None, 5)).await.unwrap(), digest(b"hello"));
}

/// As containerd's: whoever aborts needs not to wait for a stream that was closed a moment ago.
#[tokio::test]
async fn an_ingest_that_is_written_can_be_aborted() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    rig.content.abort(&rig.namespace, "r").unwrap();
    assert!(rig.content.abort(&rig.namespace, "r").unwrap_err().is_not_found());
    assert!(rig.content.status(&rig.namespace, "r").unwrap_err().is_not_found());
    assert!(writer.commit(commit(None, 5)).await.unwrap_err().is_not_found());
    assert!(rig.content.list(&rig.namespace, &Filters::default()).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(rig.directory.path().join("content/ingest")).unwrap().count(), 0);
    assert_eq!(take_up(&rig).await.offset(), 0);
}

/// What a status says of the last bytes is not later than the answer to them, also for who takes the ingest up.
#[tokio::test]
async fn an_ingest_was_changed_when_bytes_were_accepted() {
    let rig = rig();
    let before = Some(crate::clock::now());
    let mut writer = rig.writer("r").await;
    assert_eq!(writer.updated_at(), writer.started_at());
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    let (updated, after) = (writer.updated_at(), Some(crate::clock::now()));
    let order = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
    assert!(order(before) <= order(updated) && order(updated) <= order(after));
    drop(writer);
    assert_eq!(take_up(&rig).await.updated_at(), updated);
    assert_eq!(rig.content.status(&rig.namespace, "r").unwrap().updated_at, updated);
}

#[tokio::test]
async fn one_writer_at_a_time_and_the_next_takes_up() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"first ")).await.unwrap();
    writer.digest().await.unwrap();
    assert!(matches!(rig.writer_in("ns", "r", None).await, Err(Error::Busy { .. })));
    drop(writer);
    let mut writer = take_up(&rig).await;
    assert_eq!(writer.offset(), 6);
    writer.write(Bytes::from_static(b"second")).await.unwrap();
    assert_eq!(writer.commit(commit(None, 12)).await.unwrap(), digest(b"first second"));
}

/// The worker of a dropped writer ends a moment later.
async fn take_up(rig: &Rig) -> Writer {
    loop {
        match rig.writer_in("ns", "r", None).await {
            Err(Error::Busy { .. }) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            outcome => return outcome.unwrap(),
        }
    }
}

#[tokio::test]
async fn after_a_restart_files_and_records_agree() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"kept")).await.unwrap();
    writer.digest().await.unwrap();
    let mut other = rig.writer("s").await;
    other.write(Bytes::from_static(b"blob")).await.unwrap();
    let blob = other.commit(commit(None, 0)).await.unwrap();
    let root = rig.directory.path().to_owned();
    std::fs::write(root.join("content/blobs/sha256").join("0".repeat(64)), "stray").unwrap();
    std::fs::write(root.join("content/ingest/77"), "stray").unwrap();
    drop(writer);
    let Rig { directory, content, namespace } = rig;
    while Arc::strong_count(&content) > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    drop(content);
    let content = open(directory.path());
    let rig = Rig { directory, content, namespace };
    assert_eq!(rig.content.status(&rig.namespace, "r").unwrap().offset, 4);
    assert_eq!(rig.read(&blob), b"blob");
    assert!(!root.join("content/blobs/sha256").join("0".repeat(64)).exists());
    assert!(!root.join("content/ingest/77").exists());
}

#[tokio::test]
async fn namespaces_share_bytes_but_not_names() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"shared")).await.unwrap();
    let blob = writer.commit(commit(None, 0)).await.unwrap();
    let other = Namespace::parse("other").unwrap();
    assert!(rig.content.info(&other, &blob).unwrap_err().is_not_found());
    let mut writer = rig.writer_in("other", "r", Some(blob.clone())).await.unwrap();
    assert_eq!(writer.offset(), 6);
    writer.commit(commit(Some(blob.clone()), 6)).await.unwrap();
    rig.content.delete(&rig.namespace, &blob).unwrap();
    assert!(rig.content.blob(&other, &blob).is_ok());
    rig.content.delete(&other, &blob).unwrap();
    assert!(!rig.content.blob_path(&blob).exists());
}

#[tokio::test]
async fn a_reset_begins_anew() {
    let rig = rig();
    let mut writer = rig.writer("r").await;
    writer.write(Bytes::from_static(b"wrong start")).await.unwrap();
    writer.reset().await.unwrap();
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(writer.commit(commit(None, 1)).await.unwrap(), digest(b"x"));
}

#[tokio::test]
async fn a_blob_that_a_writer_finds_there_is_held_by_its_lease() {
    let rig = rig();
    rig.writer("first").await.commit(commit(None, 0)).await.unwrap();
    let there = digest(b"");
    let store = &rig.content.store;
    for (lease, expected) in [("before", Some(there.clone())), ("at the end", None)] {
        let lease = lease::create(store, &rig.namespace, lease, Labels::new()).unwrap().id;
        let reference = "again".to_owned();
        let namespace = rig.namespace.clone();
        let opening = Opening { namespace, lease: Some(lease.clone()), reference, expected, total: 0, unpack: None };
        let outcome = match Writer::open(rig.content.clone(), opening).await {
            Ok(mut writer) => writer.commit(commit(None, 0)).await,
            Err(error) => Err(error),
        };
        assert!(matches!(outcome, Err(Error::Exists { .. })), "{outcome:?}");
        let held = lease::resources(store, &rig.namespace, &lease).unwrap();
        assert!(held.iter().any(|held| held.kind == lease::CONTENT && held.id == there.as_str()), "{lease}");
    }
}
