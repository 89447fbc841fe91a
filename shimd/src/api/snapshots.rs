//! The snapshots service.

use futures_util::stream::{self, BoxStream, StreamExt};
use proto_containerd::events;
use proto_containerd::services::snapshots as wire;
use proto_containerd::services::snapshots::snapshots_server::Snapshots;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::{labels, mask, required, wire_labels, wire_mounts};
use super::mapping::{for_client, knows_mappings};
use super::scope::{OrStatus, Scope};
use crate::daemon::Daemon;
use crate::db::record::SnapshotKind;
use crate::diff::run_blocking;
use crate::error::Result as OurResult;
use crate::filter::Filters;
use crate::snapshot::{Info, Mount, Request as Making};

const STEP: &str = "assemble";
/// Records of one message of a list.
const LIST_CHUNK: usize = 100;

#[tonic::async_trait]
impl Snapshots for Api {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let knows = knows_mappings(request.metadata());
        let request = request.into_inner();
        let making = Making {
            namespace: scope.namespace.clone(),
            lease: scope.lease().map(str::to_owned),
            key: request.key.clone(),
            parent: request.parent.clone(),
            labels: labels(request.labels),
        };
        let mounts = make(self, &request.snapshotter, SnapshotKind::Active, making).await.or_status(STEP)?;
        let event =
            events::SnapshotPrepare { key: request.key, parent: request.parent, snapshotter: request.snapshotter };
        self.events.publish(&scope.namespace, "/snapshot/prepare", &event);
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts: wire_mounts(for_client(mounts, knows)) }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let knows = knows_mappings(request.metadata());
        let request = request.into_inner();
        let making = Making {
            namespace: scope.namespace.clone(),
            lease: scope.lease().map(str::to_owned),
            key: request.key.clone(),
            parent: request.parent.clone(),
            labels: labels(request.labels),
        };
        let mounts = make(self, &request.snapshotter, SnapshotKind::View, making).await.or_status(STEP)?;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts: wire_mounts(for_client(mounts, knows)) }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Result<Response<wire::MountsResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let knows = knows_mappings(request.metadata());
        let request = request.into_inner();
        let snapshots = self.snapshots.named(&request.snapshotter).or_status(STEP)?;
        let mounts = snapshots.mounts(&scope.namespace, &request.key).or_status(STEP)?;
        Ok(Response::new(wire::MountsResponse { mounts: wire_mounts(for_client(mounts, knows)) }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let snapshots = self.snapshots.named(&request.snapshotter).or_status(STEP)?;
        snapshots
            .commit(&scope.namespace, scope.lease(), &request.key, &request.name, labels(request.labels))
            .or_status(STEP)?;
        let event = events::SnapshotCommit { key: request.key, name: request.name, snapshotter: request.snapshotter };
        self.events.publish(&scope.namespace, "/snapshot/commit", &event);
        self.upkeep.schedule_sync();
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let snapshots = self.snapshots.named(&request.snapshotter).or_status(STEP)?;
        snapshots.remove(&scope.namespace, &request.key).or_status(STEP)?;
        let event = events::SnapshotRemove { key: request.key, snapshotter: request.snapshotter };
        self.events.publish(&scope.namespace, "/snapshot/remove", &event);
        self.gc.schedule();
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let snapshots = self.snapshots.named(&request.snapshotter).or_status(STEP)?;
        let info = snapshots.stat(&scope.namespace, &request.key).or_status(STEP)?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let snapshots = self.snapshots.named(&request.snapshotter).or_status(STEP)?;
        let info = required(request.info, "info").or_status(STEP)?;
        let paths = mask(request.update_mask);
        let updated = snapshots.update(&scope.namespace, &info.name, &labels(info.labels), &paths).or_status(STEP)?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(to_wire(updated)) }))
    }

    type ListStream = BoxStream<'static, Result<wire::ListSnapshotsResponse, Status>>;

    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let snapshotter = self.snapshots.named(&request.snapshotter).or_status(STEP)?.snapshotter();
        let filters = Filters::parse(&request.filters).or_status(STEP)?;
        let daemon = self.clone();
        let found = run_blocking(move || daemon.snapshots.of(snapshotter).list(&scope.namespace, &filters))
            .await
            .or_status(STEP)?;
        let messages = stream::iter(found).map(to_wire).chunks(LIST_CHUNK);
        Ok(Response::new(messages.map(|info| Ok(wire::ListSnapshotsResponse { info })).boxed()))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Result<Response<wire::UsageResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let snapshotter = self.snapshots.named(&request.snapshotter).or_status(STEP)?.snapshotter();
        let daemon = self.clone();
        let usage = run_blocking(move || daemon.snapshots.of(snapshotter).usage(&scope.namespace, &request.key)).await;
        let usage = usage.or_status(STEP)?;
        Ok(Response::new(wire::UsageResponse { size: usage.bytes as i64, inodes: usage.inodes as i64 }))
    }

    async fn cleanup(&self, request: Request<wire::CleanupRequest>) -> Result<Response<()>, Status> {
        Scope::of(&request).or_status(STEP)?;
        self.snapshots.named(&request.get_ref().snapshotter).or_status(STEP)?;
        // What is removed is always on its way out already; what no record tells of goes with the next collection.
        self.gc.schedule();
        Ok(Response::new(()))
    }
}

async fn make(daemon: &Daemon, snapshotter: &str, kind: SnapshotKind, making: Making) -> OurResult<Vec<Mount>> {
    let snapshotter = daemon.snapshots.named(snapshotter)?.snapshotter();
    let span = crate::span!("assemble", "supervisor", making.key);
    daemon.snapshots.make(snapshotter, kind, making).instrument(span).await
}

fn to_wire(info: Info) -> wire::Info {
    let record = info.record;
    wire::Info {
        name: info.name,
        parent: record.parent,
        kind: record.kind,
        created_at: record.created_at,
        updated_at: record.updated_at,
        labels: wire_labels(record.labels),
    }
}
