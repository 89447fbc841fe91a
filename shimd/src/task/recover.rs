//! After a start: each bundle that is there is a container that may be running. Its shim is asked; what has no shim, no
//! container or no process is cleaned up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto_shim::task::{StateRequest, StateResponse};
use tokio::task::JoinSet;

use super::bundle::{self, Bundle};
use super::create::{Claim, Connection, OwnedSubject};
use super::watch::LogCopy;
use super::{Task, Tasks};
use crate::db::record::Container;
use crate::db::{Access, key};
use crate::error::{Chain, Error, Result};
use crate::name::{Namespace, check_identifier};
use crate::shim::{Endpoint, Shim};

/// How long a shim may take to answer before it is taken as it is: one that is stopped must not hold shimd up.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

impl Tasks {
    /// Finds all tasks again. What has to be cleaned up is cleaned up in the background.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        let mut found = JoinSet::new();
        for (namespace, id) in list(&self.state)? {
            let claim = Claim::of_recovery(self, &namespace, &id);
            let tasks = self.clone();
            found.spawn(async move { tasks.recover_one(namespace, id, claim).await });
        }
        while found.join_next().await.is_some() {}
        Ok(())
    }

    async fn recover_one(self: Arc<Self>, namespace: Namespace, id: String, claim: Claim) {
        let bundle = Bundle::at(&self.state, &namespace, &id);
        let Some(record) = bundle.recorded() else {
            // It was killed before a shim was started.
            return self.discard(&bundle);
        };
        let endpoint = record.endpoint.clone().or_else(|| bundle.left_address(&record.program));
        let subject = OwnedSubject { namespace, id, program: record.program.clone() };
        match self.reach(&subject, &bundle, endpoint.clone()).await {
            Ok((connection, pid)) => {
                self.adopt(Task::new(subject, bundle, connection, pid), claim);
            }
            Err(error) => {
                tracing::warn!(id = %subject.id, error = %Chain(&error), "a container has no shim or no process");
                tokio::spawn(async move {
                    self.remove_rest(subject, bundle).await;
                    endpoint.iter().for_each(Endpoint::remove_socket);
                    drop(claim);
                });
            }
        }
    }

    /// Connects to a shim and asks for its init process.
    async fn reach(
        &self,
        subject: &OwnedSubject,
        bundle: &Bundle,
        endpoint: Option<Endpoint>,
    ) -> Result<(Connection, u32)> {
        let endpoint = endpoint.ok_or_else(|| Error::ShimDied { id: subject.id.clone() })?;
        let shim = Shim::connect(&endpoint, &subject.id).await?;
        let entry = key(&[subject.namespace.as_str(), &subject.id]);
        let has_record = self.store.read()?.get::<Container>(&entry)?.is_some();
        let request = StateRequest { id: subject.id.clone(), exec_id: String::new() };
        let answer = shim.call_within::<_, StateResponse>(Some(ANSWER_TIMEOUT), "report", "State", &request).await;
        let log = LogCopy::start(bundle, &subject.id);
        match answer {
            Ok(state) if has_record => Ok((Connection { endpoint, shim, log }, state.pid)),
            Ok(_) => Err(Error::not_found("container", &subject.id)),
            Err(Error::Shim(fault)) if fault.grpc == strata_fault::GrpcCode::DeadlineExceeded => {
                Ok((Connection { endpoint, shim, log }, 0))
            }
            Err(error) => Err(error),
        }
    }

    /// Kills and removes what is left of a container.
    async fn remove_rest(&self, subject: OwnedSubject, bundle: Bundle) {
        if let Err(error) = self.launcher.delete(&subject.borrow(&bundle)).await {
            tracing::warn!(id = %subject.id, error = %Chain(&error), "clean up what is left of a container");
        }
        self.discard(&bundle);
    }

    fn discard(&self, bundle: &Bundle) {
        if let Err(error) = bundle.remove(&self.trash) {
            tracing::warn!(bundle = %bundle.path.display(), error = %Chain(&error), "remove a bundle");
        }
    }
}

/// The bundles that are there.
fn list(state: &Path) -> Result<Vec<(Namespace, String)>> {
    let directory = bundle::directory(state);
    let mut found = Vec::new();
    for namespace in names(&directory)? {
        for id in names(&directory.join(&namespace))? {
            // What shimd did not make it does not touch.
            if let (Ok(namespace), Ok(())) = (Namespace::parse(&namespace), check_identifier("container", &id)) {
                found.push((namespace, id));
            }
        }
    }
    Ok(found)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(format!("list {}", directory.display()), error);
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}
