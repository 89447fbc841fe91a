//! What registries do wrong, by fault or by malice, and that nothing wrong comes of it.

mod liar;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use liar::{Answer, Honest, Liar, client, layer, manifest_answer, noise, platform, problem, ranged};
use serde_json::{Value, json};
use strata_registry::{Config, Credentials, DOCUMENT_MAX, Digest, Problem, Reference, media_type};

#[tokio::test]
async fn an_honest_registry_is_believed() {
    let honest = Honest::new();
    let expected = honest.layers.clone();
    let liar = Liar::start(move |request| honest.answer(request)).await;
    let image = liar.resolve().await.unwrap();
    assert!(image.indexes.is_empty());
    assert_eq!(image.target().digest, Digest::of(&image.manifest.bytes));
    assert!(image.config().await.unwrap().starts_with(b"{"));
    assert_eq!(layer(&image, 0, 0).await.unwrap(), expected[0]);
    assert_eq!(layer(&image, 1, 0).await.unwrap(), expected[1]);
    assert_eq!(layer(&image, 0, 600_000).await.unwrap(), expected[0][600_000..]);
    assert_eq!(layer(&image, 0, 700_000).await.unwrap(), b"");
    let accept = liar.requests()[0].header("accept").map(str::to_owned);
    assert!(accept.unwrap().contains("manifest"));
}

#[tokio::test]
async fn a_manifest_with_another_digest() {
    let honest = Honest::new();
    let mut body = honest.manifest.clone();
    body.push(b'\n');
    let other = honest.manifest.clone();
    // The header lies.
    let lying = body.clone();
    let liar = Liar::start(move |_| {
        Answer::new(200, lying.clone()).header("docker-content-digest", Digest::of(b"").to_string())
    })
    .await;
    assert!(matches!(liar.problem().await, Problem::Digest { .. }));
    // The header tells the truth, but the digest that was asked for is another.
    let liar = Liar::start(move |_| manifest_answer(body.clone())).await;
    let reference = liar.reference().by_digest(Digest::of(&other));
    let result = client().resolve(&reference, &Credentials::Anonymous, &platform()).await;
    assert!(matches!(problem(result), Problem::Digest { .. }));
}

#[tokio::test]
async fn a_manifest_that_its_index_does_not_describe() {
    let honest = Honest::new();
    let index = |digest: Digest, size: usize, media_type: &str| {
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
            {"mediaType": media_type, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": "amd64"}}
        ]})
    };
    let (digest, size) = (Digest::of(&honest.manifest), honest.manifest.len());
    let cases = [
        (index(digest.clone(), size, media_type::OCI_MANIFEST), "good"),
        (index(Digest::of(b"x"), size, media_type::OCI_MANIFEST), "digest"),
        (index(digest.clone(), size + 1, media_type::OCI_MANIFEST), "size"),
        (index(digest.clone(), size, media_type::DOCKER_MANIFEST), "type"),
    ];
    for (index, case) in cases {
        let honest = honest.clone();
        let liar = Liar::start(move |request| match request.path.ends_with("/1") {
            true => Answer::new(200, index.to_string()).header("content-type", media_type::OCI_INDEX),
            false => honest.answer(request),
        })
        .await;
        match (case, liar.resolve().await) {
            ("good", Ok(image)) => assert_eq!(image.target(), &image.indexes[0].descriptor),
            ("digest", result) => assert!(matches!(problem(result), Problem::Digest { .. })),
            ("size", result) => assert!(matches!(problem(result), Problem::Size { .. })),
            (_, result) => assert!(matches!(problem(result), Problem::Protocol(_))),
        }
    }
}

#[tokio::test]
async fn no_image_for_the_platform() {
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": media_type::OCI_MANIFEST, "size": 1,
        "digest": Digest::of(b""), "platform": {"os": "linux", "architecture": "s390x"}}]});
    let liar =
        Liar::start(move |_| Answer::new(200, index.to_string()).header("content-type", media_type::OCI_INDEX)).await;
    let result = liar.resolve().await;
    let fault = result.as_ref().err().unwrap().fault();
    assert_eq!(fault.causes, ["there is no image for linux/amd64, only for linux/s390x"]);
    assert!(matches!(problem(result), Problem::Platform { .. }));
}

#[tokio::test]
async fn indexes_that_go_round_in_circles() {
    // Nobody can make an index that contains its own digest, but a long chain is as good.
    let deepest = json!({"schemaVersion": 2, "manifests": []}).to_string();
    let mut documents = vec![deepest];
    for _ in 0..6 {
        let inner = documents.last().unwrap();
        let entry = json!({"mediaType": media_type::OCI_INDEX, "size": inner.len(), "digest": Digest::of(inner.as_bytes()),
            "platform": {"os": "linux", "architecture": "amd64"}});
        documents.push(json!({"schemaVersion": 2, "manifests": [entry]}).to_string());
    }
    let liar = Liar::start(move |request| {
        let name = request.path.rsplit('/').next().unwrap();
        let named = documents.iter().find(|document| Digest::of(document.as_bytes()).as_str() == name);
        let body = named.or(documents.last()).unwrap().clone();
        Answer::new(200, body).header("content-type", media_type::OCI_INDEX)
    })
    .await;
    assert!(matches!(liar.problem().await, Problem::Protocol(_)));
    assert!(liar.requests().len() <= 5);
}

#[tokio::test]
async fn documents_that_could_be_two_things() {
    let honest = Honest::new();
    let mut both: Value = serde_json::from_slice(&honest.manifest).unwrap();
    both["manifests"] = json!([]);
    let answers = [
        manifest_answer(both.to_string()),
        Answer::new(200, honest.manifest.clone()).header("content-type", media_type::OCI_INDEX),
        Answer::new(200, honest.manifest.clone()).header("content-type", "text/html"),
        Answer::new(200, "<html>hello</html>").header("content-type", "text/html"),
        Answer::new(200, ""),
    ];
    for answer in answers {
        let liar = Liar::start(move |_| answer.clone()).await;
        assert!(matches!(liar.problem().await, Problem::Document(_)));
    }
}

#[tokio::test]
async fn giant_documents() {
    let giant = vec![b' '; DOCUMENT_MAX as usize + 1];
    let announced = Answer::new(200, "{").header("content-length", "5000000000").silent_at(1);
    for answer in [Answer::new(200, giant.clone()), Answer::new(200, giant.clone()).chunked(), announced] {
        let liar = Liar::start(move |_| answer.clone()).await;
        assert!(matches!(liar.problem().await, Problem::TooLarge { limit: DOCUMENT_MAX }));
        assert_eq!(liar.requests().len(), 1);
    }
}

/// How reading layer 0 ends when its blob is answered by `answer`.
async fn blob_problem(answer: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> Problem {
    let honest = Honest::new();
    let wanted = Digest::of(&honest.layers[0]).to_string();
    let liar = Liar::start(move |request| match request.path.ends_with(&wanted) {
        true => answer(&honest.layers[0]),
        false => honest.answer(request),
    })
    .await;
    let image = liar.resolve().await.unwrap();
    problem(layer(&image, 0, 0).await)
}

#[tokio::test]
async fn blobs_that_are_not_what_was_promised() {
    let other = blob_problem(|blob| Answer::new(200, noise(9, blob.len()))).await;
    assert!(matches!(other, Problem::Digest { .. }));
    let flipped = blob_problem(|blob| {
        let mut bytes = blob.to_vec();
        bytes[blob.len() - 1] ^= 1;
        Answer::new(200, bytes).chunked()
    })
    .await;
    assert!(matches!(flipped, Problem::Digest { .. }));
    let longer = blob_problem(|blob| Answer::new(200, [blob, b"x"].concat())).await;
    assert!(matches!(longer, Problem::Size { expected: 700_000, actual: 700_001 }));
    let longer_unannounced = blob_problem(|blob| Answer::new(200, [blob, b"xx"].concat()).chunked()).await;
    assert!(matches!(longer_unannounced, Problem::Size { expected: 700_000, actual: 700_001 }));
    let shorter = blob_problem(|blob| Answer::new(200, &blob[1..])).await;
    assert!(matches!(shorter, Problem::Size { expected: 700_000, actual: 699_999 }));
    let shorter_unannounced = blob_problem(|blob| Answer::new(200, &blob[1..]).chunked()).await;
    assert!(matches!(shorter_unannounced, Problem::Size { expected: 700_000, actual: 699_999 }));
    let nothing = blob_problem(|_| Answer::new(404, "")).await;
    assert!(matches!(nothing, Problem::NotFound { .. }));
}

#[tokio::test]
async fn a_config_that_is_not_what_was_promised() {
    for wrong in [vec![b'x'; 78], vec![b'x'; 10], vec![b'x'; 500]] {
        let honest = Honest::new();
        let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
            true => Answer::new(200, wrong.clone()),
            false => honest.answer(request),
        })
        .await;
        let image = liar.resolve().await.unwrap();
        assert!(matches!(problem(image.config().await), Problem::Digest { .. } | Problem::Size { .. }));
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_goes_on_where_it_broke() {
    let honest = Honest::with_layers(vec![noise(3, 3_000_000)]);
    let (blob, expected) = (honest.layers[0].clone(), honest.layers[0].clone());
    let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
        // Each connection gives 400,000 bytes and dies.
        true => ranged(&blob, request.range_start()).reset_at(400_000),
        false => honest.answer(request),
    })
    .await;
    let image = liar.resolve().await.unwrap();
    assert_eq!(layer(&image, 0, 0).await.unwrap(), expected);
    let starts: Vec<usize> = liar.requests().iter().filter_map(|request| request.range_start()).collect();
    assert!(starts.is_sorted() && starts.len() >= 7, "{starts:?}");
    // What was sent and not used: at most the end of each connection, which the reset may have thrown away.
    let fetched_twice: usize = (starts.len() + 1) * 400_000 - starts.last().unwrap().min(&2_900_000) - 100_000;
    assert!(fetched_twice < 4 << 20, "{starts:?}");
}

#[tokio::test]
async fn a_registry_without_ranges_starts_again() {
    let honest = Honest::new();
    let (blob, expected, count) = (honest.layers[0].clone(), honest.layers[0].clone(), AtomicUsize::new(0));
    let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
        true if count.fetch_add(1, Ordering::Relaxed) < 2 => Answer::new(200, blob.clone()).reset_at(300_000),
        true => Answer::new(200, blob.clone()),
        false => honest.answer(request),
    })
    .await;
    let image = liar.resolve().await.unwrap();
    assert_eq!(layer(&image, 0, 0).await.unwrap(), expected);
    assert_eq!(layer(&image, 0, 123_456).await.unwrap(), expected[123_456..]);
}

#[tokio::test]
async fn a_range_that_was_not_asked_for() {
    let honest = Honest::new();
    let blob = honest.layers[0].clone();
    let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
        true => ranged(&blob, Some(5)),
        false => honest.answer(request),
    })
    .await;
    let image = liar.resolve().await.unwrap();
    assert!(matches!(problem(layer(&image, 0, 1000).await), Problem::Protocol(_)));
}

#[tokio::test]
async fn silence_is_ended() {
    let honest = Honest::new();
    let (blob, expected, count) = (honest.layers[0].clone(), honest.layers[0].clone(), AtomicUsize::new(0));
    let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
        true if count.fetch_add(1, Ordering::Relaxed) < 2 => ranged(&blob, request.range_start()).silent_at(200_000),
        true => ranged(&blob, request.range_start()),
        false => honest.answer(request),
    })
    .await;
    let image = liar.resolve().await.unwrap();
    assert_eq!(layer(&image, 0, 0).await.unwrap(), expected);
}

#[tokio::test]
async fn silence_for_ever_is_an_error() {
    let liar = Liar::start(|_| Answer::new(200, "{ }").silent_at(1)).await;
    let started = Instant::now();
    assert!(matches!(liar.problem().await, Problem::Stalled { .. }));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_trickle_is_no_better_than_silence() {
    let slow = |blob: &[u8]| Answer { trickle: Some(Duration::from_millis(20)), ..Answer::new(200, blob) };
    let started = Instant::now();
    assert!(matches!(blob_problem(slow).await, Problem::Stalled { .. }));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_slow_start_is_waited_for() {
    let honest = Honest::new();
    let liar = Liar::start(move |request| Answer { delay: Duration::from_millis(300), ..honest.answer(request) }).await;
    assert!(liar.resolve().await.is_ok());
}

#[tokio::test]
async fn failures_that_pass() {
    for failure in [
        Answer::new(503, "starting"),
        Answer::new(500, ""),
        Answer::new(429, "").header("retry-after", "0"),
        Answer::new(200, "").reset_at(0).header("content-length", "10"),
    ] {
        let (honest, count) = (Honest::new(), AtomicUsize::new(0));
        let liar = Liar::start(move |request| match count.fetch_add(1, Ordering::Relaxed) {
            0 => failure.clone(),
            _ => honest.answer(request),
        })
        .await;
        assert!(liar.resolve().await.is_ok());
    }
}

#[tokio::test]
async fn failures_that_stay() {
    let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    let liar = Liar::start(move |_| Answer::new(404, unknown)).await;
    assert!(matches!(liar.problem().await, Problem::NotFound { said } if said == "manifest unknown"));
    assert_eq!(liar.requests().len(), 1);
    let liar = Liar::start(|_| Answer::new(403, "")).await;
    assert!(matches!(liar.problem().await, Problem::Forbidden { .. }));
    let liar = Liar::start(|_| Answer::new(503, "")).await;
    assert!(matches!(liar.problem().await, Problem::Status { status: 503, .. }));
    assert_eq!(liar.requests().len(), 4);
    let liar = Liar::start(|_| Answer::new(429, "").header("retry-after", "86400")).await;
    assert!(matches!(liar.problem().await, Problem::RateLimited { .. }));
    assert_eq!(liar.requests().len(), 1);
}

#[tokio::test]
async fn nobody_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference: Reference = format!("{}/app", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let started = Instant::now();
    let result = client().resolve(&reference, &Credentials::Anonymous, &platform()).await;
    let fault = result.as_ref().err().unwrap().fault();
    assert_eq!(fault.code, "REGISTRY_UNREACHABLE");
    assert!(fault.causes.last().unwrap().contains("Connection refused"), "{fault:?}");
    assert!(matches!(problem(result), Problem::Connect { tls: false, .. }));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn redirects_without_end() {
    let liar = Liar::start(|request| Answer::redirect(format!("{}x", request.path))).await;
    assert!(matches!(liar.problem().await, Problem::Protocol(_)));
    assert!(liar.requests().len() <= 6);
    for to in ["", "http://[", "ftp://x/y"] {
        let liar = Liar::start(move |_| Answer::redirect(to)).await;
        assert!(matches!(liar.problem().await, Problem::Protocol(_) | Problem::Unsafe(_)), "{to}");
    }
}

#[tokio::test]
async fn redirects_into_plain_text_are_not_followed() {
    let liar = Liar::start(|_| Answer::redirect("http://registry.example/v2/x")).await;
    assert!(matches!(liar.problem().await, Problem::Unsafe(_)));
    let liar = Liar::start(|_| Answer::redirect("http://user:pw@127.0.0.1/v2/x")).await;
    assert!(matches!(liar.problem().await, Problem::Unsafe(_)));
}

#[tokio::test]
async fn blobs_may_lie_elsewhere() {
    let honest = Honest::new();
    let (store, expected) = (honest.clone(), honest.layers[0].clone());
    let storage = Liar::start(move |request| store.answer(request)).await;
    let to = storage.host();
    let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
        true => Answer::redirect(format!("http://{to}{}", request.path)),
        false => honest.answer(request),
    })
    .await;
    let image = liar.resolve().await.unwrap();
    assert_eq!(layer(&image, 0, 0).await.unwrap(), expected);
    assert_eq!(storage.requests().len(), 1);
}

#[tokio::test]
async fn a_dropped_stream_ends_the_transfer() {
    let honest = Honest::with_layers(vec![noise(5, 30_000_000)]);
    let liar = Liar::start(move |request| honest.answer(request)).await;
    let image = liar.resolve().await.unwrap();
    let mut blob = image.blob(&image.manifest.document.layers[0], 0);
    assert!(blob.next().await.unwrap().is_some());
    drop(blob);
    // Another request is served, and nothing waits for the dropped one.
    assert!(image.config().await.is_ok());
}

/// A client that asks these for Docker Hub's images.
fn client_with_mirrors(mirrors: &[&Liar]) -> strata_registry::Client {
    let mirrors = mirrors.iter().map(|mirror| mirror.host()).collect();
    strata_registry::Client::new(Config { mirrors, stall: Duration::from_millis(400), ..Config::default() })
}

#[tokio::test]
async fn mirrors_are_asked_first_and_without_credentials() {
    let empty = Liar::start(|_| Answer::new(404, "")).await;
    let honest = Honest::new();
    let manifest = honest.manifest.clone();
    let half = honest.clone();
    // It has the documents, but breaks off in the midst of layers.
    let broken = Liar::start(move |request| match half.answer(request) {
        answer if request.path.contains("/blobs/") && answer.body.len() > 1000 => answer.reset_at(10_000),
        answer => answer,
    })
    .await;
    let (good, expected) = (honest.clone(), honest.layers[0].clone());
    let whole = Liar::start(move |request| good.answer(request)).await;
    let client = client_with_mirrors(&[&empty, &broken, &whole]);
    let user = Credentials::Basic { user: "user".into(), password: "pass".into() };
    let image = client.resolve(&"nginx:1".parse().unwrap(), &user, &platform()).await.unwrap();
    assert_eq!(image.manifest.bytes, manifest);
    assert_eq!(layer(&image, 0, 0).await.unwrap(), expected);
    assert!(whole.requests().iter().any(|request| request.range_start().is_some()), "it goes on, not from the start");
    for mirror in [&empty, &broken, &whole] {
        assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    }
    assert_eq!(empty.requests()[0].path, "/v2/library/nginx/manifests/1");
    // Other registries have no mirrors.
    let before = whole.requests().len();
    let elsewhere: Reference = format!("{}/app:1", empty.host()).parse().unwrap();
    assert!(client.resolve(&elsewhere, &user, &platform()).await.is_err());
    assert_eq!(whole.requests().len(), before);
}

#[tokio::test]
async fn a_mirror_cannot_give_another_image() {
    let mut lying = Honest::new();
    let expected = Digest::of(&lying.manifest);
    lying.manifest.push(b' ');
    let mirror = Liar::start(move |request| lying.answer(request)).await;
    let second = Honest::new();
    let good = Liar::start(move |request| second.answer(request)).await;
    let reference = format!("nginx@{expected}").parse().unwrap();
    let client = client_with_mirrors(&[&mirror, &good]);
    let image = client.resolve(&reference, &Credentials::Anonymous, &platform()).await.unwrap();
    assert_eq!(image.target().digest, expected);
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn tls_that_fails_is_not_given_up_for_plain_text() {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let honest = Honest::new();
    let liar = Liar::start_tls(&certificate, move |request| honest.answer(request)).await;
    assert!(matches!(liar.problem().await, Problem::Connect { tls: true, .. }));
    assert!(liar.requests().is_empty());
    // With the certificate known, the same registry is good.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, certificate.cert.pem()).unwrap();
    let client = strata_registry::Client::new(Config { ca_files: vec![path], ..Config::default() });
    let image = client.resolve(&liar.reference(), &Credentials::Anonymous, &platform()).await.unwrap();
    assert_eq!(layer(&image, 1, 0).await.unwrap().len(), 1000);
}
