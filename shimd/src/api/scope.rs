//! What every request brings beside its message: a namespace, maybe a lease; and what becomes of errors.

use proto_containerd::{LEASE_HEADER, NAMESPACE_HEADER};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::daemon::Daemon;
use crate::error::{Chain, Error, Result};
use crate::name::{Namespace, check_name};

/// Turns errors into statuses, each with the step of a run at which it happened.
pub(super) trait OrStatus<T> {
    fn or_status(self, step: &str) -> Result<T, Status>;
}

impl<T> OrStatus<T> for Result<T> {
    fn or_status(self, step: &str) -> Result<T, Status> {
        self.map_err(|error| {
            // Handled here, by telling the caller: what is nobody's mistake but shimd's is worth a line of the log.
            if matches!(error, Error::Store { .. } | Error::Record { .. } | Error::Io { .. }) {
                tracing::warn!(step, error = %Chain(&error), "a request failed");
            } else {
                tracing::debug!(step, error = %Chain(&error), "a request failed");
            }
            error.status(step)
        })
    }
}

/// Namespace and lease of a request.
#[derive(Clone)]
pub(super) struct Scope {
    pub(super) namespace: Namespace,
    pub(super) lease: Option<String>,
}

impl Scope {
    /// Of a request that looks.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Scope> {
        let metadata = request.metadata();
        let namespace = text(metadata, NAMESPACE_HEADER)?
            .filter(|namespace| !namespace.is_empty())
            .ok_or_else(|| Error::refused("request", format!("namespace is required (header {NAMESPACE_HEADER})")))?;
        let lease = text(metadata, LEASE_HEADER)?.filter(|lease| !lease.is_empty());
        if let Some(lease) = lease {
            check_name("lease", lease)?;
        }
        Ok(Scope { namespace: Namespace::parse(namespace)?, lease: lease.map(str::to_owned) })
    }

    /// Of a request that makes something: the namespace begins to exist with the first thing in it.
    pub(super) fn making<T>(request: &Request<T>, daemon: &Daemon) -> Result<Scope> {
        let scope = Scope::of(request)?;
        daemon.namespaces.ensure(&scope.namespace)?;
        Ok(scope)
    }

    pub(super) fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Result<Option<&'a str>> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Error::invalid(format!("header {key}"), "it is not plain text"))?;
    Ok(Some(text))
}
