//! Tasks through the API: the time of one life, and many at once.

use std::time::Instant;

use futures_util::future::join_all;
use proto_containerd::types::Mount;

use super::api::{Api, Wish};
use super::served::Served;
use crate::measure::ms;

const CLIENTS: usize = 16;
const TASKS_OF_A_CLIENT: usize = 8;
const TRUE: Wish<'static> = Wish { arguments: &["true"], input: None };

/// Milliseconds of create, start, wait and delete. What the container is made from is made before and goes after.
pub(super) fn one(served: &mut Served<'_>) -> f64 {
    let id = served.next_name();
    let api = served.api.clone();
    served.runtime.block_on(async {
        let rootfs = api.container(&id, TRUE).await;
        let began = Instant::now();
        live(&api, &id, rootfs).await;
        let wall = ms(began.elapsed());
        api.remove(&id).await;
        wall
    })
}

async fn live(api: &Api, id: &str, rootfs: Vec<Mount>) {
    api.start(id, rootfs, ["", ""]).await;
    assert_eq!(api.wait(id).await, 0, "true failed");
    api.delete(id).await;
}

/// Lives in a second with so many clients, each with a connection of its own.
pub(super) fn sixteen(served: &mut Served<'_>) -> f64 {
    let clients: Vec<Vec<String>> =
        (0..CLIENTS).map(|_| (0..TASKS_OF_A_CLIENT).map(|_| served.next_name()).collect()).collect();
    let (api, socket) = (&served.api, &served.socket);
    served.runtime.block_on(async {
        let ready = join_all(clients.iter().map(async |ids| {
            let api = api.again(socket).await;
            let mut lives = Vec::new();
            for id in ids {
                lives.push((id, api.container(id, TRUE).await));
            }
            (api, lives)
        }));
        let ready = ready.await;
        let began = Instant::now();
        join_all(ready.into_iter().map(async |(api, lives)| {
            for (id, rootfs) in lives {
                live(&api, id, rootfs).await;
            }
        }))
        .await;
        let wall = began.elapsed();
        for id in clients.iter().flatten() {
            api.remove(id).await;
        }
        (CLIENTS * TASKS_OF_A_CLIENT) as f64 / wall.as_secs_f64()
    })
}
