//! The core: containers, images, sandboxes, events. It knows no wire type of a front door.
//!
//! A front door asks [`Engine`]; what it stands on is in [`means`]. Containers are found in the [`roster`] and talked to
//! through their handles; what the supervisor tells of its own accord is heard in [`supervision`].

pub(crate) mod container;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod filter;
pub(crate) mod image;
pub(crate) mod info;
pub(crate) mod log_watch;
pub(crate) mod means;
mod roster;
mod sandbox;
pub(crate) mod signal;
pub(crate) mod spec;
pub(crate) mod stamp;
mod start;
pub(crate) mod step;
mod supervision;
mod users;

use std::collections::BTreeMap;
use std::sync::Arc;

use strata_fault::Fault;
use tokio::sync::mpsc;
use tracing::Instrument;

use self::container::create::{AtOnce, Created, create};
use self::container::wanted::Wanted;
use self::container::{Container, View};
use self::error::Error;
use self::event::Kind;
use self::filter::ContainerFilter;
use self::image::{Image, Images, Progress, Pull, Pulled, Removed};
use self::means::Means;
pub(crate) use self::start::{network_config, start};
use self::step::step;

/// When an image is pulled that a container is to be made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Missing,
    Always,
    Never,
}

/// The engine, as front doors ask it.
#[derive(Clone)]
pub(crate) struct Engine {
    means: Arc<Means>,
}

impl Engine {
    pub(crate) fn means(&self) -> &Arc<Means> {
        &self.means
    }

    pub(crate) fn images(&self) -> &Arc<Images> {
        &self.means.images
    }

    /// Step 2 and, if need be, 3: the image is here, or brought here.
    pub(crate) async fn image_for_run(
        &self,
        pull: Pull,
        policy: PullPolicy,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Arc<Image>, Fault> {
        let local = self.means.images.local(&pull.name).instrument(step!("validate", pull.name)).await?;
        match (local, policy) {
            (Some(image), PullPolicy::Missing | PullPolicy::Never) => Ok(image),
            (None, PullPolicy::Never) => Err(Error::ImageNotLocal { image: pull.name }.into()),
            (_, PullPolicy::Missing | PullPolicy::Always) => Ok(self.pull(pull, progress).await?.image),
        }
    }

    /// Brings an image here.
    pub(crate) async fn pull(&self, pull: Pull, progress: mpsc::Sender<Progress>) -> Result<Pulled, Fault> {
        let span = step!("pull", pull.name);
        let pulled = self.means.images.pull(pull, progress).instrument(span).await?;
        self.emit_image("pull", &pulled.image.familiar);
        Ok(pulled)
    }

    /// Removes an image's name, and the image with its last.
    pub(crate) async fn remove_image(&self, name: &str, force: bool) -> Result<Removed, Fault> {
        let removed = self.means.images.remove(name, force, &|id| self.users_of_image(id)).await?;
        removed.untagged.iter().for_each(|name| self.emit_image("untag", name));
        removed.deleted.iter().for_each(|id| self.emit_image("delete", id));
        Ok(removed)
    }

    fn users_of_image(&self, id: &str) -> Vec<String> {
        let containers = self.means.roster.all().into_iter();
        containers.filter(|container| container.fixed().image.id == id).map(|each| each.name().to_string()).collect()
    }

    fn emit_image(&self, action: &'static str, name: &str) {
        let attributes = BTreeMap::from([("name".to_owned(), name.to_owned())]);
        self.means.events.emit(Kind::Image, action, name, attributes);
    }

    /// Makes a container of an image that is here.
    pub(crate) async fn create(&self, wanted: Wanted) -> Result<Container, Fault> {
        let image = self.means.images.local(&wanted.image).instrument(step!("validate", wanted.image)).await?;
        let image = image.ok_or_else(|| Error::ImageNotLocal { image: wanted.image.clone() })?;
        let made = create(&self.means, wanted, &image, AtOnce { start: false, size: None }).await?;
        Ok(made.container)
    }

    /// Makes a container and has it started.
    pub(crate) async fn run(&self, wanted: Wanted, image: &Image, size: Option<(u32, u32)>) -> Result<Created, Fault> {
        create(&self.means, wanted, image, AtOnce { start: true, size }).await
    }

    /// The container of that name, id or beginning of an id.
    pub(crate) fn find(&self, wanted: &str) -> Result<Container, Error> {
        self.means.roster.find(wanted)
    }

    /// The containers that a filter lets through, newest first.
    pub(crate) fn list(&self, filter: &ContainerFilter, limit: usize) -> Vec<View> {
        let mut views: Vec<View> =
            self.means.roster.all().iter().map(Container::view).filter(|view| filter.lets_through(view)).collect();
        views.sort_by(|a, b| b.fixed.created.cmp(&a.fixed.created).then_with(|| a.fixed.id.cmp(&b.fixed.id)));
        if limit > 0 {
            views.truncate(limit);
        }
        views
    }
}
