//! Who a program runs as: the image's files are read once for each image, and what they said is remembered.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use strata_fault::Fault;

use super::container::id::fill_random;
use super::image::Image;
use super::means::{INSTANCE_LABEL, Means};
use super::spec::passwd::{self, UserFiles};
use super::spec::user::{self, User, UserSpec};

/// Most answers that are remembered; each takes some hundred bytes.
const REMEMBERED_MAX: usize = 256;
/// What the key of a snapshot begins with that is only looked at.
const VIEW_PREFIX: &str = "users-";

/// Answers that were given before, by the image's layers and the user.
#[derive(Default)]
pub(crate) struct Users(Mutex<HashMap<(String, UserSpec), User>>);

impl Users {
    /// Who `spec` is in the image.
    pub(crate) async fn resolve(&self, means: &Means, image: &Image, spec: &UserSpec) -> Result<User, Fault> {
        let key = (image.chain_id.clone(), spec.clone());
        if let Some(user) = self.known().get(&key) {
            return Ok(user.clone());
        }
        let files = read_files(means, image).await?;
        let user = user::resolve(spec, &files.passwd, &files.group, &image.familiar)?;
        let mut known = self.known();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(key, user.clone());
        Ok(user)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<(String, UserSpec), User>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_files(means: &Means, image: &Image) -> Result<UserFiles, Fault> {
    if image.chain_id.is_empty() {
        return Ok(UserFiles::default());
    }
    let mut random = [0; 8];
    fill_random(&mut random);
    let key = format!("{VIEW_PREFIX}{:016x}", u64::from_le_bytes(random));
    let labels = HashMap::from([(INSTANCE_LABEL.to_owned(), means.settings.instance.clone())]);
    let snapshotter = &means.settings.snapshotter;
    let mounts = means.client.view_snapshot(snapshotter, &key, &image.chain_id, labels).await?;
    let name = image.familiar.clone();
    let read = tokio::task::spawn_blocking(move || passwd::read(&mounts, &name)).await;
    // Nobody waits for this; what a failure leaves is removed at the next start.
    let (client, snapshotter) = (means.client.clone(), snapshotter.clone());
    tokio::spawn(async move {
        if let Err(fault) = client.remove_snapshot(&snapshotter, &key).await {
            tracing::warn!(%fault, causes = ?fault.causes, "a snapshot stays that was only looked at");
        }
    });
    match read {
        Ok(files) => Ok(files?),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
