//! Leases: whoever holds one keeps what was made under it from the garbage collection, until all is linked together.

use std::borrow::Cow;
use std::ops::ControlFlow;

use crate::clock;
use crate::db::record::{Labels, Lease};
use crate::db::{Access, Durability, Store, Table, Writer, key, prefix, tail};
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, label, present};
use crate::name::{Digest, Namespace, check_labels, check_name};

/// Types of what a lease can hold beside snapshots, as containerd writes them.
pub(crate) const CONTENT: &str = "content";
pub(crate) const INGEST: &str = "ingests";
/// Of containerd 2.x: an image that would have expired.
pub(crate) const IMAGE: &str = "images";

/// A lease under its id.
pub(crate) struct Info {
    pub(crate) id: String,
    pub(crate) record: Lease,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "id" => present(&self.id),
            "labels" => label(&self.record.labels, &path[1..]),
            _ => None,
        }
    }
}

/// What a lease holds.
pub(crate) struct Resource {
    /// `content`, `ingests`, `snapshots/NAME`.
    pub(crate) kind: String,
    pub(crate) id: String,
}

/// Makes a lease; an empty `id` gets one that nobody else has.
pub(crate) fn create(store: &Store, namespace: &Namespace, id: &str, labels: Labels) -> Result<Info> {
    let id = if id.is_empty() { random_id() } else { id.to_owned() };
    // Free-form, as containerd has it: its clients end the names of their leases with base64, such as `7-_2X1`.
    check_name("lease", &id)?;
    check_labels(&labels)?;
    let record = Lease { created_at: Some(clock::now()), labels };
    store.write(Durability::Process, |writer| {
        let entry = key(&[namespace.as_str(), &id]);
        if writer.get::<Lease>(&entry)?.is_some() {
            return Err(Error::exists("lease", &id));
        }
        writer.put(&entry, &record)
    })?;
    Ok(Info { id, record })
}

fn random_id() -> String {
    let mut bytes = [0; 12];
    // Before the kernel's pool is ready this waits; daemons start later than that.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        bytes[..8].copy_from_slice(&(std::process::id() as u64 ^ clock::now().nanos as u64).to_le_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ends a lease. What only it held is left to the garbage collection.
pub(crate) fn delete(store: &Store, namespace: &Namespace, id: &str) -> Result<()> {
    store.write(Durability::Process, |writer| delete_in(writer, namespace, id))
}

/// [`delete`] as part of a larger change.
pub(crate) fn delete_in(writer: &mut Writer, namespace: &Namespace, id: &str) -> Result<()> {
    let entry = key(&[namespace.as_str(), id]);
    writer.require::<Lease>(&entry, id)?;
    writer.remove(Table::Leases, &entry)?;
    for resource in keys_below(writer, &prefix(&[namespace.as_str(), id]))? {
        writer.remove(Table::LeaseResources, &resource)?;
    }
    Ok(())
}

pub(crate) fn list(store: &Store, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info>> {
    let mut found = Vec::new();
    store.read()?.each(&prefix(&[namespace.as_str()]), |entry, record: Lease| {
        let info = Info { id: tail(entry, 1), record };
        if filters.matches(&info) {
            found.push(info);
        }
        Ok(())
    })?;
    Ok(found)
}

pub(crate) fn add_resource(store: &Store, namespace: &Namespace, lease: &str, resource: &Resource) -> Result<()> {
    resource.check()?;
    store.write(Durability::Process, |writer| hold(writer, namespace, Some(lease), &resource.kind, &resource.id))
}

pub(crate) fn delete_resource(store: &Store, namespace: &Namespace, lease: &str, resource: &Resource) -> Result<()> {
    resource.check()?;
    store.write(Durability::Process, |writer| {
        writer.require::<Lease>(&key(&[namespace.as_str(), lease]), lease)?;
        release(writer, namespace, Some(lease), &resource.kind, &resource.id)
    })
}

pub(crate) fn resources(store: &Store, namespace: &Namespace, lease: &str) -> Result<Vec<Resource>> {
    let view = store.read()?;
    view.require::<Lease>(&key(&[namespace.as_str(), lease]), lease)?;
    let keys = keys_below(&view, &prefix(&[namespace.as_str(), lease]))?;
    Ok(keys.iter().map(|entry| Resource { kind: tail(entry, 2), id: tail(entry, 3) }).collect())
}

impl Resource {
    /// Whether it could be held: the kinds are containerd's, and so is what is said of others.
    fn check(&self) -> Result<()> {
        let words: Vec<&str> = self.kind.split('/').collect();
        match words[..] {
            [CONTENT] => Digest::parse(&self.id).map(drop),
            [INGEST] | [IMAGE] | ["snapshots", _] => Ok(()),
            [CONTENT | INGEST | IMAGE | "snapshots", ..] => {
                Err(Error::invalid(format!("resource type {:?}", self.kind), "it has too few words or too many"))
            }
            _ => Err(Error::Unimplemented { what: format!("leases of resource type {:?}", self.kind) }),
        }
    }
}

fn keys_below(view: &impl Access, prefix: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    view.scan(Table::LeaseResources, prefix, &mut |entry, _| {
        keys.push(entry.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(keys)
}

/// Enters a resource under the lease of a request, if it has one. The lease must exist.
pub(crate) fn hold(
    writer: &mut Writer,
    namespace: &Namespace,
    lease: Option<&str>,
    kind: &str,
    id: &str,
) -> Result<()> {
    let Some(lease) = lease else { return Ok(()) };
    writer.require::<Lease>(&key(&[namespace.as_str(), lease]), lease)?;
    writer.mark(Table::LeaseResources, &key(&[namespace.as_str(), lease, kind, id]))
}

/// Takes a resource from under the lease of a request, if it has one.
pub(crate) fn release(
    writer: &mut Writer,
    namespace: &Namespace,
    lease: Option<&str>,
    kind: &str,
    id: &str,
) -> Result<()> {
    match lease {
        Some(lease) => writer.remove(Table::LeaseResources, &key(&[namespace.as_str(), lease, kind, id])),
        None => Ok(()),
    }
}

/// Takes a resource that is gone from under every lease: a later thing of that name is another one.
pub(crate) fn release_all(writer: &mut Writer, namespace: &Namespace, kind: &str, id: &str) -> Result<()> {
    let mut leases = Vec::new();
    writer.each(&prefix(&[namespace.as_str()]), |entry, _: Lease| {
        leases.push(tail(entry, 1));
        Ok(())
    })?;
    for lease in leases {
        let entry = key(&[namespace.as_str(), &lease, kind, id]);
        if writer.bytes(Table::LeaseResources, &entry)?.is_some() {
            writer.remove(Table::LeaseResources, &entry)?;
        }
    }
    Ok(())
}
