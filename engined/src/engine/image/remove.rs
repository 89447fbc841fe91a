//! Taking a name away from an image, and the image with its last name.

use std::sync::Arc;

use strata_fault::{Fault, Layer, code};
use strata_registry::Reference;

use super::{Image, Images, catalog};

/// The names of the containers that use the image of that id.
pub(crate) type Users<'u> = &'u (dyn Fn(&str) -> Vec<String> + Sync);

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Names that are gone, as people write them.
    pub(crate) untagged: Vec<String>,
    /// Ids of images that are gone.
    pub(crate) deleted: Vec<String>,
}

impl Images {
    /// Removes what `name` says: a name of an image, or by an id the image with all its names. The last name of an image
    /// that a container uses stays, unless by force; then the container keeps what it stands on.
    ///
    /// # Errors
    /// No such image, in use, several repositories name it (by id, without force), or the supervisor fails.
    pub(crate) async fn remove(&self, name: &str, force: bool, in_use: Users<'_>) -> Result<Removed, Fault> {
        let all = self.load_all().await?;
        // An image that is not unpacked can be removed too.
        let Some(target) = self.lookup(name).await? else { return Err(not_found(name)) };
        let same: Vec<Arc<Image>> = all.into_iter().filter(|image| image.id == target.id).collect();
        let (going, staying): (Vec<_>, Vec<_>) = match is_name_of(name, &target) {
            true => same.into_iter().partition(|image| image.reference == target.reference),
            false => (same, Vec::new()),
        };
        if !force {
            check_repositories(name, &going)?;
            if staying.is_empty() {
                check_users(&target, in_use(&target.id))?;
            }
        }
        self.delete(going, staying.is_empty()).await
    }

    async fn delete(&self, going: Vec<Arc<Image>>, is_last: bool) -> Result<Removed, Fault> {
        let mut removed = Removed::default();
        for image in &going {
            self.client.delete_image(&image.reference).await?;
            self.memory.forget_names();
            removed.untagged.push(image.familiar.clone());
        }
        if is_last {
            removed.deleted.extend(going.first().map(|image| image.id.clone()));
        }
        Ok(removed)
    }
}

/// Whether `name` is the image's name, not its id.
fn is_name_of(name: &str, image: &Image) -> bool {
    image.reference == name || name.parse::<Reference>().is_ok_and(|reference| reference.to_string() == image.reference)
}

/// An id that several repositories share is more than the caller may know of.
fn check_repositories(name: &str, going: &[Arc<Image>]) -> Result<(), Fault> {
    let mut repositories: Vec<String> = going.iter().map(|image| repository(&image.reference)).collect();
    repositories.sort_unstable();
    repositories.dedup();
    if repositories.len() < 2 {
        return Ok(());
    }
    let what = format!("remove the image {name:?}");
    Err(Fault::new(Layer::Engine, "remove", code::IMAGE_IN_USE, what)
        .cause(format!("several repositories name it: {}", repositories.join(", ")))
        .hint("remove the names, or use force"))
}

fn repository(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.familiar_name())
}

fn check_users(image: &Image, users: Vec<String>) -> Result<(), Fault> {
    if users.is_empty() {
        return Ok(());
    }
    let what = format!("remove the image {}", image.familiar);
    Err(Fault::new(Layer::Engine, "remove", code::IMAGE_IN_USE, what)
        .cause(format!("it is used by {}", listed(&users)))
        .hint("remove the containers first, or use force"))
}

/// Some of the names, and how many more there are.
fn listed(users: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = users.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match users.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

fn not_found(name: &str) -> Fault {
    let what = format!("find the image {:?}", catalog::familiar(name));
    Fault::new(Layer::Engine, "remove", code::IMAGE_NOT_LOCAL, what).cause("there is no such image here")
}
