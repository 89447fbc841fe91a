//! A store with many containers and images: asking for one, and for all.

use std::time::Instant;

use futures_util::StreamExt;
use proto_containerd::services::images::images_client::ImagesClient;
use proto_containerd::services::images::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
};

use super::api::{Api, Connection, Wish};
use super::served::Served;
use crate::measure::ms;

pub(super) const CONTAINERS: usize = 10_000;
const IMAGES: usize = 1_000;
/// Questions of each sort.
const QUESTIONS: usize = 1_000;
/// Requests that are under way at the same time while the store is filled.
const AT_ONCE: usize = 32;

/// Fills it by one tenth; how many containers there are then.
pub(super) fn fill(served: &mut Served<'_>) -> f64 {
    let api = &served.api;
    served.runtime.block_on(async {
        let before = api.list(vec![]).await;
        let (containers, images) = (CONTAINERS / 10, IMAGES / 10);
        let first = before - before % containers;
        let records = futures_util::stream::iter(first..first + containers);
        let wish = Wish { arguments: &["true"], input: None };
        records.for_each_concurrent(AT_ONCE, |number| async move { api.record(&container(number), wish).await }).await;
        let first = first / containers * images;
        let records = futures_util::stream::iter(first..first + images);
        records.for_each_concurrent(AT_ONCE, |number| name(api, number)).await;
        api.list(vec![]).await as f64
    })
}

fn container(number: usize) -> String {
    format!("stored-{number}")
}

fn image(number: usize) -> String {
    format!("example.org/stored/{number}:latest")
}

fn images(api: &Api) -> ImagesClient<Connection> {
    ImagesClient::new(api.connection())
}

/// Gives the image of busybox one more name.
async fn name(api: &Api, number: usize) {
    let get = GetImageRequest { name: "example.org/busybox:latest".to_owned() };
    let busybox = images(api).get(get).await.expect("busybox").into_inner().image.expect("an image");
    let image = Image { name: image(number), ..busybox };
    let create = CreateImageRequest { image: Some(image), source_date_epoch: None };
    images(api).create(create).await.expect("create an image");
}

/// Takes all of it away again; milliseconds.
pub(super) fn empty(served: &mut Served<'_>) -> f64 {
    let api = &served.api;
    let began = Instant::now();
    served.runtime.block_on(async {
        let containers = futures_util::stream::iter(0..CONTAINERS);
        containers.for_each_concurrent(AT_ONCE, |number| async move { api.forget(&container(number)).await }).await;
        let names = futures_util::stream::iter(0..IMAGES);
        names.for_each_concurrent(AT_ONCE, |number| unname(api, number)).await;
    });
    ms(began.elapsed())
}

async fn unname(api: &Api, number: usize) {
    let delete = DeleteImageRequest { name: image(number), ..DeleteImageRequest::default() };
    images(api).delete(delete).await.expect("delete an image");
}

/// Milliseconds that 99 of 100 questions for one container or image need at most: by its id, and by a filter.
pub(super) fn inspect(served: &mut Served<'_>) -> f64 {
    let api = &served.api;
    let mut times = served.runtime.block_on(async {
        let mut times = Vec::new();
        for question in 0..QUESTIONS {
            let began = Instant::now();
            ask(api, question).await;
            times.push(ms(began.elapsed()));
        }
        times
    });
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}

/// Asks for one thing, of each sort in turn.
async fn ask(api: &Api, question: usize) {
    // Spread over all of them, in no order.
    let (stored, named) = (container(question * 7919 % CONTAINERS), image(question * 7919 % IMAGES));
    match question % 4 {
        0 => assert_eq!(api.inspect(&stored).await.id, stored),
        1 => assert_eq!(api.list(vec![format!("id=={stored}")]).await, 1),
        2 => drop(images(api).get(GetImageRequest { name: named }).await.expect("get an image")),
        _ => {
            let request = ListImagesRequest { filters: vec![format!("name=={named}")] };
            assert_eq!(images(api).list(request).await.expect("list images").into_inner().images.len(), 1);
        }
    }
}

/// Microseconds that each listed container takes, of all that there are; the quickest of some, as others disturb it.
pub(super) fn list(served: &mut Served<'_>) -> f64 {
    let api = &served.api;
    served.runtime.block_on(async {
        let mut quickest = f64::MAX;
        for _ in 0..9 {
            let began = Instant::now();
            let count = api.list(vec![]).await;
            quickest = quickest.min(began.elapsed().as_secs_f64() * 1e6 / count as f64);
        }
        quickest
    })
}
