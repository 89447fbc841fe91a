//! A `hosts.toml`, as containerd has it, between a client and registries that say what they were asked.

mod liar;

use std::path::Path;
use std::time::Duration;

use liar::{Answer, Honest, Liar, Request, layer, platform};
use strata_registry::{Client, Config, Credentials, Problem};

fn client(directory: &Path, registry: &str, hosts: &str) -> Client {
    let own = directory.join(registry.replace(':', "_") + "_");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("hosts.toml"), hosts).unwrap();
    let stall = Duration::from_millis(400);
    Client::new(Config { hosts_dir: Some(directory.to_owned()), stall, ..Config::default() })
}

fn user() -> Credentials {
    Credentials::Basic { user: "user".into(), password: "pass".into() }
}

/// Strips what an operator put before the repository.
fn at(prefix: &'static str, world: Honest) -> impl Fn(&Request) -> Answer {
    move |request| match request.path.strip_prefix(prefix) {
        Some(rest) => {
            let path = rest.split('?').next().unwrap().to_owned();
            world.answer(&Request { path, ..request.clone() })
        }
        None => Answer::new(404, ""),
    }
}

#[tokio::test]
async fn each_host_is_asked_for_what_it_is_there_for() {
    let image = Honest::new();
    let mirror = Liar::start(at("/all/images", image.clone())).await;
    let secret = image.clone();
    // It wants to know who asks, and has only documents.
    let own = Liar::start(move |request| match request.header("authorization") {
        None => Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
        Some(_) if request.path.contains("/blobs/") => Answer::new(404, ""),
        Some(_) => secret.answer(request),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let hosts = format!(
        "[host.\"http://{}/all/images\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
         [host.\"http://{}/all/images\".header]\nx-key = \"opens\"\n",
        mirror.host(),
        mirror.host()
    );
    let client = client(directory.path(), &own.host(), &hosts);
    let found = client.resolve(&own.reference(), &user(), &platform()).await.unwrap();
    assert!(mirror.requests().is_empty(), "it does not say what a tag stands for");
    assert_eq!(layer(&found, 0, 0).await.unwrap(), image.layers[0]);
    let asked = mirror.requests();
    assert!(asked[0].path.starts_with("/all/images/team/app/blobs/sha256:"), "{}", asked[0].path);
    assert!(asked[0].path.ends_with(&format!("?ns={}", own.host())), "{}", asked[0].path);
    assert_eq!(asked[0].header("x-key"), Some("opens"));
    assert!(asked.iter().all(|request| request.header("authorization").is_none()), "credentials are the registry's");
    assert!(own.requests().iter().all(|request| request.header("x-key").is_none()), "headers are the mirror's");
    // Piece by piece it is the same.
    let session = client.session(&own.reference(), &user(), false).unwrap();
    let document = session.resolve().await.unwrap();
    let before = mirror.requests().len();
    assert_eq!(session.document(&document.descriptor).await.unwrap(), image.manifest);
    assert_eq!(mirror.requests().len(), before + 1, "a digest stands for itself");
}

#[tokio::test]
async fn a_mirror_that_fails_is_stood_in_for() {
    let image = Honest::new();
    let down = Liar::start(|_| Answer::new(404, "")).await;
    let good = image.clone();
    let own = Liar::start(move |request| good.answer(request)).await;
    let directory = tempfile::tempdir().unwrap();
    let client = client(directory.path(), &own.host(), &format!("[host.\"http://{}\"]", down.host()));
    let found = client.resolve(&own.reference(), &Credentials::Anonymous, &platform()).await.unwrap();
    assert_eq!(layer(&found, 1, 0).await.unwrap(), image.layers[1]);
    let session = client.session(&own.reference(), &Credentials::Anonymous, false).unwrap();
    let document = session.resolve().await.unwrap();
    assert_eq!(session.document(&document.descriptor).await.unwrap(), image.manifest);
    assert!(down.requests().len() >= 3);
}

#[tokio::test]
async fn what_is_said_of_certificates_holds_for_that_host_alone() {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    let image = Honest::new();
    let (store, front) = (image.clone(), image.clone());
    let storage = Liar::start_tls(&certificate, move |request| store.answer(request)).await;
    let elsewhere = format!("https://{}/v2/team/app", storage.host());
    // Blobs lie at another host.
    let mirror = Liar::start_tls(&certificate, move |request| match request.path.split_once("/blobs/") {
        Some((_, digest)) => Answer::redirect(format!("{elsewhere}/blobs/{}", digest.split('?').next().unwrap())),
        None => front.answer(request),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let own = Liar::start(|_| Answer::new(404, "")).await;
    let name = format!("https://localhost:{}", mirror.address.port());
    let of = |words: &str| client(directory.path(), &own.host(), &format!("[host.\"{name}\"]\n{words}"));
    let resolve = async |client: &Client| client.resolve(&own.reference(), &Credentials::Anonymous, &platform()).await;
    // Nobody vouches for it.
    assert!(resolve(&of("")).await.is_err());
    assert!(mirror.requests().is_empty());
    let found = resolve(&of("skip_verify = true")).await.unwrap();
    assert!(layer(&found, 1, 0).await.is_err(), "the other host's certificate was not looked at");
    assert!(storage.requests().is_empty());
    // An authority vouches for all.
    let own_directory = directory.path().join(own.host().replace(':', "_") + "_");
    std::fs::write(own_directory.join("ca.pem"), certificate.cert.pem()).unwrap();
    let found = resolve(&of("ca = \"ca.pem\"")).await.unwrap();
    assert_eq!(layer(&found, 1, 0).await.unwrap(), image.layers[1]);
}

#[tokio::test]
async fn a_certificate_of_the_clients_own_is_shown_where_one_is_asked_for() {
    let [server, known, stranger] =
        ["localhost", "known", "stranger"].map(|name| rcgen::generate_simple_self_signed(vec![name.into()]).unwrap());
    let image = Honest::new();
    let mirror = Liar::start_mutual_tls(&server, &known, at("", image.clone())).await;
    let directory = tempfile::tempdir().unwrap();
    let own = Liar::start(|_| Answer::new(404, "")).await;
    let name = format!("https://localhost:{}", mirror.address.port());
    let of =
        |words: &str| client(directory.path(), &own.host(), &format!("[host.\"{name}\"]\nca = \"ca.pem\"\n{words}"));
    let resolve = async |client: &Client| client.resolve(&own.reference(), &Credentials::Anonymous, &platform()).await;
    // It makes the directory.
    drop(of(""));
    let own_directory = directory.path().join(own.host().replace(':', "_") + "_");
    std::fs::write(own_directory.join("ca.pem"), server.cert.pem()).unwrap();
    for (name, certificate) in [("known", &known), ("stranger", &stranger)] {
        std::fs::write(own_directory.join(format!("{name}.cert")), certificate.cert.pem()).unwrap();
        std::fs::write(own_directory.join(format!("{name}.key")), certificate.signing_key.serialize_pem()).unwrap();
        let both = certificate.cert.pem() + &certificate.signing_key.serialize_pem();
        std::fs::write(own_directory.join(format!("{name}.pem")), both).unwrap();
    }
    assert!(resolve(&of("")).await.is_err());
    assert!(resolve(&of("client = [[\"stranger.cert\", \"stranger.key\"]]")).await.is_err());
    assert!(mirror.requests().is_empty(), "who shows no certificate that it knows was let in");
    for words in ["client = [[\"known.cert\", \"known.key\"]]", "client = \"known.pem\""] {
        let found = resolve(&of(words)).await.unwrap();
        assert_eq!(layer(&found, 1, 0).await.unwrap(), image.layers[1], "{words}");
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_told() {
    let own = Liar::start(|_| Answer::new(404, "")).await;
    let directory = tempfile::tempdir().unwrap();
    let client = client(directory.path(), &own.host(), "[host.\"ftp://x\"]");
    let failed = client.resolve(&own.reference(), &Credentials::Anonymous, &platform()).await;
    assert!(matches!(liar::problem(failed), Problem::Setup(_)));
    assert!(own.requests().is_empty());
}
