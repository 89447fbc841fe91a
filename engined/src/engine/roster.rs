//! Which containers there are: by id, by name, by the beginning of an id.
//!
//! A name is reserved before its container is made, so that two that are made at once cannot both have it; a container
//! that is being made is on no list.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::container::Container;
use super::container::id::{ContainerId, Name};
use super::error::Error;

/// Shortest beginning of an id that is looked for: fewer digits are rather a short name that is mistyped.
const PREFIX_MIN: usize = 1;
/// Made-up names that are tried before digits make them unique for certain.
const MADE_UP_TRIES: u32 = 64;

/// The containers of this engine.
#[derive(Clone, Default)]
pub(crate) struct Roster(Arc<RwLock<Inner>>);

#[derive(Default)]
struct Inner {
    containers: BTreeMap<ContainerId, Container>,
    names: HashMap<Name, ContainerId>,
}

/// A name that is nobody else's. It is free again when this is dropped before the container is there.
pub(crate) struct Reservation {
    roster: Roster,
    pub(crate) id: ContainerId,
    pub(crate) name: Name,
    is_kept: bool,
}

impl Roster {
    /// A new id, with the name that was asked for or a made-up one.
    pub(crate) fn reserve(&self, name: Option<&Name>) -> Result<Reservation, Error> {
        let id = ContainerId::random();
        let mut inner = self.write();
        let name = match name {
            Some(name) => match inner.names.get(name) {
                Some(holder) => {
                    return Err(Error::NameInUse { name: name.to_string(), holder: holder.short().to_owned() });
                }
                None => name.clone(),
            },
            None => (0..MADE_UP_TRIES)
                .map(Name::made_up)
                .find(|name| !inner.names.contains_key(name))
                .unwrap_or_else(|| Name::made_up(MADE_UP_TRIES)),
        };
        inner.names.insert(name.clone(), id.clone());
        Ok(Reservation { roster: self.clone(), id, name, is_kept: false })
    }

    /// Takes a container of an earlier life of the engine in. Its name may have been given to another meanwhile: the
    /// container is then found by its id alone.
    pub(crate) fn take_in(&self, container: Container) {
        let mut inner = self.write();
        let id = container.id().clone();
        inner.names.entry(container.name().clone()).or_insert_with(|| id.clone());
        inner.containers.insert(id, container);
    }

    /// Takes a container off every list, and frees its name.
    pub(crate) fn release(&self, id: &ContainerId, name: &Name) {
        let mut inner = self.write();
        inner.containers.remove(id);
        if inner.names.get(name) == Some(id) {
            inner.names.remove(name);
        }
    }

    /// The container of that id or name, or the only one whose id begins so.
    pub(crate) fn find(&self, wanted: &str) -> Result<Container, Error> {
        let inner = self.read();
        let by_name = || {
            let id = inner.names.get(&Name::parse(wanted).ok()?)?;
            inner.containers.get(id)
        };
        let by_id = || inner.containers.get(&ContainerId::try_from(wanted.to_owned()).ok()?);
        match by_id().or_else(by_name) {
            Some(container) => Ok(container.clone()),
            None => inner.by_prefix(wanted),
        }
    }

    /// The container of exactly that id.
    pub(crate) fn by_id(&self, id: &str) -> Option<Container> {
        let id = ContainerId::try_from(id.to_owned()).ok()?;
        self.read().containers.get(&id).cloned()
    }

    /// All containers, in the order of their ids.
    pub(crate) fn all(&self) -> Vec<Container> {
        self.read().containers.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn by_prefix(&self, prefix: &str) -> Result<Container, Error> {
        let not_found = || Error::ContainerNotFound { wanted: prefix.to_owned() };
        let is_digits = prefix.len() >= PREFIX_MIN && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut found = self
            .containers
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(|(id, _)| id.as_str().starts_with(prefix));
        match (found.next().filter(|_| is_digits), found.next()) {
            (None, _) => Err(not_found()),
            (Some(_), Some(_)) => Err(Error::ContainerAmbiguous { prefix: prefix.to_owned() }),
            (Some((_, container)), None) => Ok(container.clone()),
        }
    }
}

impl Reservation {
    /// The container is there: it is on the lists from now on.
    pub(crate) fn fulfil(mut self, container: Container) {
        self.roster.write().containers.insert(self.id.clone(), container);
        self.is_kept = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_kept {
            self.roster.release(&self.id, &self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_reserved_until_it_is_dropped() {
        let roster = Roster::default();
        let name = Name::parse("web").unwrap();
        let held = roster.reserve(Some(&name)).unwrap();
        assert!(matches!(roster.reserve(Some(&name)), Err(Error::NameInUse { .. })));
        assert!(roster.find("web").is_err(), "what is being made is on no list");
        drop(held);
        assert!(roster.reserve(Some(&name)).is_ok());
    }

    #[test]
    fn made_up_names_differ() {
        let roster = Roster::default();
        let held: Vec<Reservation> = (0..200).map(|_| roster.reserve(None).unwrap()).collect();
        let mut names: Vec<&str> = held.iter().map(|reservation| reservation.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 200);
    }
}
