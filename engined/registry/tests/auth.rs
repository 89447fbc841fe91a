//! Who gets to see credentials: the registry they are for, the token server it names, and nobody else.

mod liar;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use liar::{Answer, Honest, Liar, Request, client, layer, platform, problem};
use serde_json::json;
use strata_registry::{Credentials, Image, Problem};

const BASIC: &str = "Basic dXNlcjpwYXNz";

fn user() -> Credentials {
    Credentials::Basic { user: "user".into(), password: "pass".into() }
}

async fn pull(liar: &Liar, credentials: &Credentials) -> Result<Image, strata_registry::Error> {
    client().resolve(&liar.reference(), credentials, &platform()).await
}

fn challenge(value: impl Into<String>) -> Answer {
    let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    Answer::new(401, body).header("www-authenticate", value)
}

/// A registry that serves those who show `wanted`, and sends the others to a token server on its own host.
fn token_registry(honest: Honest, wanted: &'static str) -> impl Fn(&Request) -> Answer {
    move |request| {
        let host = request.header("host").unwrap();
        match request.header("authorization") {
            _ if request.path.starts_with("/token") => match request.header("authorization") {
                Some(BASIC) => Answer::new(200, json!({"token": "good"}).to_string()),
                None => Answer::new(200, json!({"access_token": "anonymous"}).to_string()),
                Some(_) => Answer::new(401, r#"{"details":"incorrect username or password"}"#),
            },
            Some(shown) if shown == wanted => honest.answer(request),
            _ => challenge(format!(
                r#"Bearer realm="http://{host}/token",service="test",scope="repository:x:pull,push""#
            )),
        }
    }
}

#[tokio::test]
async fn basic() {
    let honest = Honest::new();
    let liar = Liar::start(move |request| match request.header("authorization") {
        Some(BASIC) => honest.answer(request),
        _ => challenge(r#"Basic realm="test""#),
    })
    .await;
    let image = pull(&liar, &user()).await.unwrap();
    assert!(image.config().await.is_ok() && layer(&image, 0, 0).await.is_ok());
    // Only the first request went without.
    let without = liar.requests().iter().filter(|request| request.header("authorization").is_none()).count();
    assert_eq!(without, 1);
    assert!(matches!(
        problem(pull(&liar, &Credentials::Anonymous).await),
        Problem::Unauthorized { given: false, said, .. } if said == "authentication required"
    ));
    let wrong = Credentials::Basic { user: "user".into(), password: "wrong".into() };
    assert!(matches!(problem(pull(&liar, &wrong).await), Problem::Unauthorized { given: true, .. }));
}

#[tokio::test]
async fn a_token_for_credentials() {
    let liar = Liar::start(token_registry(Honest::new(), "Bearer good")).await;
    let image = pull(&liar, &user()).await.unwrap();
    assert!(layer(&image, 0, 0).await.is_ok());
    let asked: Vec<Request> = liar.requests().into_iter().filter(|r| r.path.starts_with("/token")).collect();
    assert_eq!(asked.len(), 1);
    // Never more than the right to pull this one repository.
    assert_eq!(asked[0].path, "/token?service=test&scope=repository%3Ateam%2Fapp%3Apull");
    // The password goes to the token server and nowhere else.
    assert!(liar.requests().iter().all(|r| r.path.starts_with("/token") || r.header("authorization") != Some(BASIC)));
    let wrong = Credentials::Basic { user: "user".into(), password: "wrong".into() };
    assert!(matches!(
        problem(pull(&liar, &wrong).await),
        Problem::Unauthorized { given: true, said, .. } if said.contains("incorrect")
    ));
}

#[tokio::test]
async fn a_token_for_nothing() {
    let liar = Liar::start(token_registry(Honest::new(), "Bearer anonymous")).await;
    assert!(pull(&liar, &Credentials::Anonymous).await.is_ok());
    // An anonymous token that is not enough is not asked for again and again.
    let liar = Liar::start(token_registry(Honest::new(), "Bearer good")).await;
    assert!(matches!(problem(pull(&liar, &Credentials::Anonymous).await), Problem::Unauthorized { given: false, .. }));
    assert_eq!(liar.requests().len(), 3);
}

#[tokio::test]
async fn a_token_that_runs_out_is_renewed() {
    let (honest, served) = (Honest::new(), AtomicUsize::new(0));
    let tokens = Arc::new(AtomicUsize::new(0));
    let liar = Liar::start(move |request| {
        let host = request.header("host").unwrap();
        if request.path.starts_with("/token") {
            let number = tokens.fetch_add(1, Ordering::Relaxed) + 1;
            return Answer::new(200, json!({"token": format!("t{number}")}).to_string());
        }
        // Each token is good for two answers.
        let current = format!("Bearer t{}", tokens.load(Ordering::Relaxed));
        if request.header("authorization") == Some(&current) && served.fetch_add(1, Ordering::Relaxed) % 3 < 2 {
            return honest.answer(request);
        }
        challenge(format!(r#"Bearer realm="http://{host}/token""#))
    })
    .await;
    let image = pull(&liar, &Credentials::Anonymous).await.unwrap();
    for _ in 0..4 {
        assert!(image.config().await.is_ok());
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let honest = Honest::new();
    let liar = Liar::start(move |request| match (request.method.as_str(), request.header("authorization")) {
        ("POST", None) if request.body.contains("refresh_token=id-token") => {
            Answer::new(200, json!({"access_token": "good"}).to_string())
        }
        ("GET", Some("Bearer good")) => honest.answer(request),
        _ => challenge(format!(r#"Bearer realm="http://{}/token""#, request.header("host").unwrap())),
    })
    .await;
    assert!(pull(&liar, &Credentials::IdentityToken("id-token".into())).await.is_ok());
}

#[tokio::test]
async fn a_redirect_carries_no_credentials_away() {
    let honest = Honest::new();
    let store = honest.clone();
    let elsewhere = Liar::start(move |request| store.answer(request)).await;
    let to = elsewhere.host();
    let liar = Liar::start(move |request| match request.header("authorization") {
        Some(BASIC) if request.path.contains("/blobs/") => Answer::redirect(format!("http://{to}{}", request.path)),
        Some(BASIC) => honest.answer(request),
        _ => challenge("Basic"),
    })
    .await;
    let image = pull(&liar, &user()).await.unwrap();
    assert!(layer(&image, 0, 0).await.is_ok() && image.config().await.is_ok());
    assert_eq!(elsewhere.requests().len(), 2);
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_challenge_from_where_a_redirect_led_is_not_answered() {
    let honest = Honest::new();
    let thief = Liar::start(|_| challenge("Basic")).await;
    let to = thief.host();
    let liar = Liar::start(move |request| match request.path.contains("/blobs/") {
        true => Answer::redirect(format!("http://{to}{}", request.path)),
        false => honest.answer(request),
    })
    .await;
    let image = pull(&liar, &user()).await.unwrap();
    assert!(matches!(problem(layer(&image, 0, 0).await), Problem::Protocol(_)));
    assert!(thief.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_registry_in_plain_text_names_no_token_server_elsewhere() {
    // Another loopback address is another host.
    let liar = Liar::start(|_| challenge(r#"Bearer realm="http://127.0.0.2:9/token""#)).await;
    assert!(matches!(problem(pull(&liar, &user()).await), Problem::Unsafe(_)));
    for realm in ["http://auth.example/token", "file:///etc/passwd", "not a url", "http://u:p@127.0.0.1/token"] {
        let liar = Liar::start(move |_| challenge(format!(r#"Bearer realm="{realm}""#))).await;
        let problem = problem(pull(&liar, &user()).await);
        assert!(matches!(problem, Problem::Unsafe(_) | Problem::Protocol(_)), "{realm}");
        assert_eq!(liar.requests().len(), 1);
    }
}

#[tokio::test]
async fn token_servers_that_talk_nonsense() {
    for body in ["", "{}", "[1]", r#"{"token":"a\nb"}"#, r#"{"token":""}"#] {
        let liar = Liar::start(move |request| match request.path.starts_with("/token") {
            true => Answer::new(200, body),
            false => challenge(format!(r#"Bearer realm="http://{}/token""#, request.header("host").unwrap())),
        })
        .await;
        assert!(matches!(problem(pull(&liar, &user()).await), Problem::Protocol(_)), "{body}");
    }
    let giant = vec![b' '; 2 << 20];
    let liar = Liar::start(move |request| match request.path.starts_with("/token") {
        true => Answer::new(200, giant.clone()).chunked(),
        false => challenge(format!(r#"Bearer realm="http://{}/token""#, request.header("host").unwrap())),
    })
    .await;
    assert!(matches!(problem(pull(&liar, &user()).await), Problem::TooLarge { .. }));
}

#[tokio::test]
async fn a_challenge_that_is_none() {
    for header in ["", "Negotiate", "Bearer service=\"x\""] {
        let liar = Liar::start(move |_| challenge(header)).await;
        assert!(matches!(problem(pull(&liar, &user()).await), Problem::Unauthorized { .. }), "{header}");
    }
    let liar = Liar::start(|_| Answer::new(401, "")).await;
    assert!(matches!(problem(pull(&liar, &user()).await), Problem::Unauthorized { .. }));
}
