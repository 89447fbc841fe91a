//! What is remembered of images that were looked at, so that a known image costs a run nothing.
//!
//! Names change: by our own pulls and removals, and by others (`ctr`). The supervisor tells of every change, and while
//! that stream stands a remembered name is right; when it breaks, all names are forgotten and each look-up asks. What a
//! *digest* stands for never changes, so documents stay remembered, within a bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::{Image, Images};

/// Most names that are remembered.
const NAMES_MAX: usize = 1024;
/// Most images whose documents are remembered, and most bytes of configs among them.
const IMAGES_MAX: usize = 4096;
const CONFIG_BYTES_MAX: usize = 8 << 20;
/// Most layers whose size is remembered.
const SIZES_MAX: usize = 8192;
/// The pause before the stream of changes is asked for again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    /// The stream of changes stands.
    listening: bool,
    /// Counts changes, so that what was read before one is not remembered after it.
    changes: u64,
    names: HashMap<String, Arc<Image>>,
    /// By digest of the target. Each has the name by which it was first seen.
    images: HashMap<String, Arc<Image>>,
    config_bytes: usize,
    /// Bytes of one layer, by chain id.
    sizes: HashMap<String, u64>,
}

/// When something was read.
#[derive(Clone, Copy)]
pub(super) struct Moment(u64);

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that was remembered under that name.
    pub(super) fn image(&self, name: &str) -> Option<Arc<Image>> {
        self.state().names.get(name).cloned()
    }

    /// To be taken before something is read that shall be remembered.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.state().changes)
    }

    /// Remembers what `name` stood for at `moment`, if nothing has changed since.
    pub(super) fn remember_name(&self, name: &str, image: &Arc<Image>, moment: Moment) {
        let mut state = self.state();
        if !state.listening || state.changes != moment.0 {
            return;
        }
        if state.names.len() >= NAMES_MAX {
            state.names.clear();
        }
        state.names.insert(name.to_owned(), Arc::clone(image));
    }

    /// Something has changed: by our own doing, or because the supervisor said so.
    pub(super) fn forget_names(&self) {
        let mut state = self.state();
        state.changes += 1;
        state.names.clear();
    }

    fn listening(&self, listening: bool) {
        self.state().listening = listening;
        self.forget_names();
    }

    /// The documents of the image with that target.
    pub(super) fn documents(&self, target: &str) -> Option<Arc<Image>> {
        self.state().images.get(target).cloned()
    }

    pub(super) fn remember_documents(&self, image: &Arc<Image>) {
        let mut state = self.state();
        state.config_bytes += image.config_bytes.len();
        if state.images.len() >= IMAGES_MAX || state.config_bytes > CONFIG_BYTES_MAX {
            state.images.clear();
            state.config_bytes = image.config_bytes.len();
        }
        if let Some(before) = state.images.insert(image.digest.clone(), Arc::clone(image)) {
            state.config_bytes -= before.config_bytes.len();
        }
    }

    /// What the target's documents say is right no more: some of them are gone.
    pub(super) fn forget_documents(&self, target: &str) {
        let mut state = self.state();
        if let Some(before) = state.images.remove(target) {
            state.config_bytes -= before.config_bytes.len();
        }
    }

    pub(super) fn size(&self, chain_id: &str) -> Option<u64> {
        self.state().sizes.get(chain_id).copied()
    }

    pub(super) fn remember_size(&self, chain_id: &str, size: u64) {
        let mut state = self.state();
        if state.sizes.len() >= SIZES_MAX {
            state.sizes.clear();
        }
        state.sizes.insert(chain_id.to_owned(), size);
    }
}

/// Hears of changes as long as the images are there.
pub(super) async fn listen(images: Weak<Images>) {
    loop {
        let Some(client) = images.upgrade().map(|images| images.client.clone()) else { return };
        if let Ok(mut changes) = client.subscribe_images().await {
            let Some(()) = images.upgrade().map(|images| images.memory.listening(true)) else { return };
            while let Ok(true) = changes.next().await {
                let Some(()) = images.upgrade().map(|images| images.memory.forget_names()) else { return };
            }
        }
        let Some(()) = images.upgrade().map(|images| images.memory.listening(false)) else { return };
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn image(digest: &str, config_bytes: usize) -> Arc<Image> {
        Arc::new(Image {
            reference: "r".into(),
            familiar: "r".into(),
            digest: digest.into(),
            id: "id".into(),
            chain_id: String::new(),
            config: Default::default(),
            config_bytes: Bytes::from(vec![0; config_bytes]),
        })
    }

    #[test]
    fn a_name_is_remembered_while_changes_are_heard_of() {
        let (memory, image) = (Memory::default(), image("d", 1));
        memory.remember_name("a", &image, memory.moment());
        assert!(memory.image("a").is_none(), "nobody would tell of changes");
        memory.listening(true);
        memory.remember_name("a", &image, memory.moment());
        assert!(memory.image("a").is_some());
        memory.forget_names();
        assert!(memory.image("a").is_none());
        memory.remember_name("a", &image, memory.moment());
        memory.listening(false);
        assert!(memory.image("a").is_none());
    }

    #[test]
    fn what_was_read_before_a_change_is_not_remembered() {
        let memory = Memory::default();
        memory.listening(true);
        let before = memory.moment();
        memory.forget_names();
        memory.remember_name("a", &image("d", 1), before);
        assert!(memory.image("a").is_none());
    }

    #[test]
    fn configs_are_bounded() {
        let memory = Memory::default();
        for number in 0..20 {
            memory.remember_documents(&image(&number.to_string(), 1 << 20));
        }
        let kept = (0..20).filter(|number| memory.documents(&number.to_string()).is_some()).count();
        assert!((1..=8).contains(&kept), "{kept}");
        memory.forget_documents("19");
        assert!(memory.documents("19").is_none());
    }
}
