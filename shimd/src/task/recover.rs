//! After a start: each bundle that is there is a container that may be running. Its shim is asked; what has no shim, no
//! container or no process is cleaned up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto_shim::task::{StateRequest, StateResponse};
use strata_fault::GrpcCode;
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
            // Nobody else claims anything yet, and each bundle is found once.
            let Some(claim) = Claim::on(self, &(namespace.clone(), id.clone())) else { continue };
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
        let endpoint = bundle.endpoint();
        let subject = OwnedSubject { namespace, id, program: record.program };
        match self.reach(&subject, &bundle, endpoint.clone()).await {
            Ok((connection, pid)) => {
                let task = self.adopt(Task::new(subject, bundle, connection, pid.unwrap_or_default()), claim);
                if pid.is_none() {
                    tokio::spawn(async move { self.settle(&task).await });
                }
            }
            Err(error) => {
                tracing::warn!(id = %subject.id, error = %Chain(&error), "a container has no shim or no process");
                tokio::spawn(async move {
                    let _ = self.clean_up(&subject, &bundle).await;
                    self.discard(&bundle);
                    if let Some(endpoint) = endpoint {
                        endpoint.remove_unserved_socket().await;
                    }
                    drop(claim);
                });
            }
        }
    }

    /// Connects to a shim and asks for its init process; its pid is not known yet where the shim does not answer soon.
    async fn reach(
        &self,
        subject: &OwnedSubject,
        bundle: &Bundle,
        endpoint: Option<Endpoint>,
    ) -> Result<(Connection, Option<u32>)> {
        let entry = key(&[subject.namespace.as_str(), &subject.id]);
        self.store.read()?.require::<Container>(&entry, &subject.id)?;
        let endpoint = endpoint.ok_or_else(|| Error::ShimDied { id: subject.id.clone() })?;
        // Before it is asked anything: a shim may be waiting for somebody to read its log.
        let log = LogCopy::start(bundle, &subject.id);
        let shim = Shim::connect(&endpoint, &subject.id).await?;
        let request = StateRequest { id: subject.id.clone(), exec_id: String::new() };
        let answer = shim.call_within::<_, StateResponse>(Some(ANSWER_TIMEOUT), "report", "State", &request).await;
        let pid = match answer {
            Ok(state) => Some(state.pid),
            Err(Error::Shim(fault)) if fault.grpc == GrpcCode::DeadlineExceeded => None,
            Err(error) => return Err(error),
        };
        Ok((Connection { endpoint, shim, log }, pid))
    }

    /// Finds out, however long it takes, whether a shim that did not answer has a container.
    async fn settle(self: Arc<Self>, task: &Arc<Task>) {
        match task.state("").await {
            // The pid was noted on the way.
            Ok(_) => {}
            Err(error) if error.is_not_found() => {
                tracing::warn!(id = %task.id, "a shim has no container");
                self.dismiss(task);
            }
            Err(error) => tracing::warn!(id = %task.id, error = %Chain(&error), "ask a shim for its container"),
        }
    }
}

/// The bundles that are there.
pub(super) fn list(state: &Path) -> Result<Vec<(Namespace, String)>> {
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
