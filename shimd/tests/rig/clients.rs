//! A client for each of shimd's services.

use proto_containerd::services::containers::containers_client::ContainersClient;
use proto_containerd::services::content::content_client::ContentClient;
use proto_containerd::services::diff::diff_client::DiffClient;
use proto_containerd::services::events::events_client::EventsClient;
use proto_containerd::services::images::images_client::ImagesClient;
use proto_containerd::services::leases::leases_client::LeasesClient;
use proto_containerd::services::sandbox::controller_client::ControllerClient;
use proto_containerd::services::sandbox::store_client::StoreClient;
use proto_containerd::services::snapshots::snapshots_client::SnapshotsClient;
use proto_containerd::services::streaming::streaming_client::StreamingClient;
use proto_containerd::services::tasks::tasks_client::TasksClient;
use proto_containerd::services::transfer::transfer_client::TransferClient;

use super::{Connection, Lab};

impl Lab {
    pub(crate) async fn content(&self) -> ContentClient<Connection> {
        ContentClient::new(self.connect().await)
    }

    pub(crate) async fn snapshots(&self) -> SnapshotsClient<Connection> {
        SnapshotsClient::new(self.connect().await)
    }

    pub(crate) async fn diff(&self) -> DiffClient<Connection> {
        DiffClient::new(self.connect().await)
    }

    pub(crate) async fn tasks(&self) -> TasksClient<Connection> {
        TasksClient::new(self.connect().await)
    }

    pub(crate) async fn transfer(&self) -> TransferClient<Connection> {
        TransferClient::new(self.connect().await)
    }

    pub(crate) async fn streaming(&self) -> StreamingClient<Connection> {
        StreamingClient::new(self.connect().await)
    }

    pub(crate) async fn sandboxes(&self) -> StoreClient<Connection> {
        StoreClient::new(self.connect().await)
    }

    pub(crate) async fn controller(&self) -> ControllerClient<Connection> {
        ControllerClient::new(self.connect().await)
    }

    pub(crate) async fn containers(&self) -> ContainersClient<Connection> {
        ContainersClient::new(self.connect().await)
    }

    pub(crate) async fn images(&self) -> ImagesClient<Connection> {
        ImagesClient::new(self.connect().await)
    }

    pub(crate) async fn leases(&self) -> LeasesClient<Connection> {
        LeasesClient::new(self.connect().await)
    }

    pub(crate) async fn events(&self) -> EventsClient<Connection> {
        EventsClient::new(self.connect().await)
    }
}

/// Events of one topic, counted from the call on.
pub(crate) struct Counted(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Counted {
    pub(crate) fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Lab {
    pub(crate) async fn events_of(&self, topic: &str) -> Counted {
        use proto_containerd::services::events::SubscribeRequest;
        let filters = vec![format!("topic=={topic:?}")];
        let mut events = self.events().await.subscribe(SubscribeRequest { filters }).await.unwrap().into_inner();
        let count = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
        let counted = Counted(count.clone());
        tokio::spawn(async move {
            while let Ok(Some(_)) = events.message().await {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
        counted
    }
}
