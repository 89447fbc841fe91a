//! After a start: each bundle that is there is a container that may be running. Its shim is asked; what has no shim, no
//! container or no process is cleaned up.

use std::sync::Arc;

use proto_shim::task::{StateRequest, StateResponse};
use strata_fault::GrpcCode;
use tokio::task::JoinSet;

use super::create::Claim;
use super::{Task, Tasks};
use crate::db::record::Container;
use crate::db::{Access, key};
use crate::error::{Chain, Error, Result};
use crate::name::Namespace;
use crate::shim::bundle::{Bundle, Kind, ShimRecord};
use crate::shim::log::LogCopy;
use crate::shim::shims::RECOVERY_TIMEOUT;
use crate::shim::{Connection, OwnedSubject, Shim};

impl Tasks {
    /// Finds all tasks again. What has to be cleaned up is cleaned up in the background.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        self.shims.forget_sockets().await?;
        let mut found = JoinSet::new();
        for (namespace, id) in self.shims.bundles(Kind::Task)? {
            // Nobody else claims anything yet, and each bundle is found once.
            let Some(claim) = Claim::on(self, &(namespace.clone(), id.clone())) else { continue };
            let tasks = self.clone();
            found.spawn(async move { tasks.recover_one(namespace, id, claim).await });
        }
        while found.join_next().await.is_some() {}
        Ok(())
    }

    async fn recover_one(self: Arc<Self>, namespace: Namespace, id: String, claim: Claim) {
        let bundle = self.shims.bundle(Kind::Task, &namespace, &id);
        let Some(record) = bundle.recorded() else {
            // It was killed before a shim was started.
            return self.shims.discard(&bundle);
        };
        let endpoint = bundle.endpoint();
        let subject = OwnedSubject { namespace, id, program: record.program.clone() };
        match self.reach(&subject, &bundle, &record).await {
            Ok((connection, pid)) => {
                let task = self.adopt(Task::new(subject, bundle, connection, pid.unwrap_or_default()), claim);
                if pid.is_none() {
                    tokio::spawn(async move { self.settle(&task).await });
                }
            }
            Err(error) => {
                tracing::warn!(id = %subject.id, error = %Chain(&error), "a container has no shim or no process");
                tokio::spawn(async move {
                    let _ = self.shims.clean_up(&subject, &bundle).await;
                    self.shims.discard(&bundle);
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
        record: &ShimRecord,
    ) -> Result<(Connection, Option<u32>)> {
        let entry = key(&[subject.namespace.as_str(), &subject.id]);
        self.store.read()?.require::<Container>(&entry, &subject.id)?;
        let endpoint = bundle.endpoint().ok_or_else(|| Error::ShimDied { id: subject.id.clone() })?;
        // Before it is asked anything: a shim may be waiting for somebody to read its log.
        let log = if record.is_of_sandbox { None } else { LogCopy::start(bundle, &subject.id) };
        let shim = Shim::connect(&endpoint, &subject.id).await?;
        let request = StateRequest { id: subject.id.clone(), exec_id: String::new() };
        let answer = shim.call_within::<_, StateResponse>(Some(RECOVERY_TIMEOUT), "report", "State", &request).await;
        let pid = match answer {
            Ok(state) => Some(state.pid),
            Err(Error::Shim(fault)) if fault.grpc == GrpcCode::DeadlineExceeded => None,
            Err(error) => return Err(error),
        };
        Ok((Connection { endpoint, shim, log, is_of_sandbox: record.is_of_sandbox }, pid))
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
