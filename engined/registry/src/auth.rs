//! Getting let in: a registry's challenge, the credentials for it, and the token that a token server gives for them.
//!
//! ```text
//! GET manifest ──▶ 401 WWW-Authenticate: Bearer realm="https://auth…",service="…"
//!                    │  GET realm?service=…&scope=repository:PATH:pull   (Basic, if there are credentials)
//!                    ▼
//! GET manifest ◀── token        or, for a Basic challenge, the credentials themselves
//! ```
//!
//! What is asked for is always the right to pull, or to push to, one repository, whatever scope the challenge names. A token lives as
//! long as the pull that it was got for, and with that pull's credentials: nobody else's pull can use it.

pub(crate) mod challenge;
mod credentials;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use serde::Deserialize;

pub use credentials::{Credentials, CredentialsError, DockerConfig};

use crate::error::Problem;
use crate::transport::{Answer, Transport};
use challenge::Challenge;

/// Most bytes of a token server's answer.
const TOKEN_ANSWER_MAX: u64 = 1 << 20;
/// How this client calls itself where a token server wants to know.
const CLIENT_ID: &str = "strata";

/// What is asked for.
pub(crate) struct Scope<'a> {
    /// The repository.
    pub(crate) path: &'a str,
    /// `pull`, or `pull,push`.
    pub(crate) actions: &'a str,
}

/// The `Authorization` that the challenges of `answer`, a 401, ask for.
///
/// # Errors
/// No credentials where some are needed, or a token server that does not give a token.
pub(crate) async fn authorize(
    transport: &Transport,
    answer: Answer,
    scope: &Scope<'_>,
    credentials: &Credentials,
) -> Result<HeaderValue, Problem> {
    let registry = answer.host.clone();
    if answer.elsewhere {
        // A storage server that the registry pointed to is not the registry: it gets no credentials.
        return Err(Problem::Protocol(format!("it redirects to {registry}, which wants credentials of its own")));
    }
    let challenges = challenge::parse(answer.response.headers().get_all(WWW_AUTHENTICATE));
    match challenges.into_iter().max_by_key(Challenge::strength) {
        Some(Challenge::Bearer { realm, service }) => {
            token(transport, &Realm::new(transport, &registry, &answer, realm, service)?, scope, credentials).await
        }
        Some(Challenge::Basic) => match credentials {
            Credentials::Basic { user, password } => Ok(basic(user, password)),
            _ => Err(refused(transport, answer, credentials).await),
        },
        Some(Challenge::Other) | None => Err(refused(transport, answer, credentials).await),
    }
}

/// The problem that an answer of 401 is when nothing more can be done about it.
pub(crate) async fn refused(transport: &Transport, answer: Answer, credentials: &Credentials) -> Problem {
    let (host, given) = (answer.host, !matches!(credentials, Credentials::Anonymous));
    Problem::Unauthorized { host, given, said: transport.said(answer.response).await }
}

/// A token server that may be asked.
struct Realm {
    uri: Uri,
    service: Option<String>,
    /// Of the registry, for errors.
    registry: String,
}

impl Realm {
    /// A registry that is spoken to with TLS may name a token server anywhere that has TLS: that is how Docker Hub and
    /// most others do it. One in plain text may name one on its own host only, for anybody on the way could have
    /// written the challenge.
    fn new(
        transport: &Transport,
        registry: &str,
        answer: &Answer,
        realm: String,
        service: Option<String>,
    ) -> Result<Realm, Problem> {
        let uri: Uri = realm.parse().map_err(|_| Problem::Protocol(format!("its token server {realm:?} is no URL")))?;
        transport.allowed(&uri)?;
        let plain_registry = !answer.tls;
        if plain_registry && uri.host() != registry_host(registry).as_deref() {
            return Err(Problem::Unsafe(format!(
                "{registry}, asked in plain HTTP, names a token server on another host ({realm}), which is not asked"
            )));
        }
        Ok(Realm { uri, service, registry: registry.to_owned() })
    }
}

fn registry_host(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    Some(authority.host().to_owned())
}

async fn token(
    transport: &Transport,
    realm: &Realm,
    scope: &Scope<'_>,
    credentials: &Credentials,
) -> Result<HeaderValue, Problem> {
    let scope = format!("repository:{}:{}", scope.path, scope.actions);
    let answer = match credentials {
        Credentials::IdentityToken(token) => {
            transport.post_form(&realm.uri, refresh_form(realm, &scope, token)).await?
        }
        Credentials::RegistryToken(token) => return bearer(token),
        Credentials::Anonymous | Credentials::Basic { .. } => {
            let authorization = credentials.basic();
            transport.get(&with_query(realm, &scope)?, &HeaderMap::new(), authorization.as_ref()).await?
        }
    };
    if answer.response.status() == StatusCode::UNAUTHORIZED {
        let given = !matches!(credentials, Credentials::Anonymous);
        let said = transport.said(answer.response).await;
        return Err(Problem::Unauthorized { host: realm.registry.clone(), given, said });
    }
    let body = transport.read_all(answer.response.into_body(), TOKEN_ANSWER_MAX, answer.host).await?;
    bearer(&token_in(&body)?)
}

/// OAuth 2's refresh grant, in the form that Docker's token servers take.
fn refresh_form(realm: &Realm, scope: &str, token: &str) -> String {
    let fields = [
        ("grant_type", "refresh_token"),
        ("service", realm.service.as_deref().unwrap_or_default()),
        ("client_id", CLIENT_ID),
        ("scope", scope),
        ("refresh_token", token),
    ];
    fields.map(|(name, value)| format!("{name}={}", escaped(value))).join("&")
}

fn with_query(realm: &Realm, scope: &str) -> Result<Uri, Problem> {
    let mut query = format!("scope={}", escaped(scope));
    if let Some(service) = &realm.service {
        query = format!("service={}&{query}", escaped(service));
    }
    let joint = if realm.uri.query().is_some() { '&' } else { '?' };
    let path = realm.uri.path();
    let base = realm.uri.to_string();
    let text = if path.is_empty() { format!("{base}/{joint}{query}") } else { format!("{base}{joint}{query}") };
    text.parse().map_err(|_| Problem::Protocol(format!("its token server {base:?} is no URL")))
}

fn token_in(body: &[u8]) -> Result<String, Problem> {
    #[derive(Deserialize)]
    struct TokenAnswer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: TokenAnswer = serde_json::from_slice(body)
        .map_err(|error| Problem::Protocol(format!("its token server's answer is not read: {error}")))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    token.ok_or_else(|| Problem::Protocol("its token server's answer holds no token".into()))
}

fn bearer(token: &str) -> Result<HeaderValue, Problem> {
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    value.map(secret).map_err(|_| Problem::Protocol("its token server's token cannot stand in a header".into()))
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = BASE64.encode(format!("{user}:{password}"));
    secret(HeaderValue::try_from(format!("Basic {encoded}")).expect("base64 is printable ASCII"))
}

/// Marked, so that no log shows it.
fn secret(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

impl Credentials {
    fn basic(&self) -> Option<HeaderValue> {
        match self {
            Credentials::Basic { user, password } => Some(basic(user, password)),
            _ => None,
        }
    }
}

/// RFC 3986: all but the unreserved characters as `%XX`.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(uri: &str, service: Option<&str>) -> Realm {
        Realm { uri: uri.parse().unwrap(), service: service.map(str::to_owned), registry: "r".into() }
    }

    #[test]
    fn the_question_to_a_token_server() {
        let asked = |uri: &str| with_query(&realm(uri, Some("a b")), "repository:x/y:pull").unwrap().to_string();
        let tail = "service=a%20b&scope=repository%3Ax%2Fy%3Apull";
        assert_eq!(asked("https://auth.x/token"), format!("https://auth.x/token?{tail}"));
        assert_eq!(asked("https://auth.x"), format!("https://auth.x/?{tail}"));
        assert_eq!(asked("https://auth.x/t?a=1"), format!("https://auth.x/t?a=1&{tail}"));
        let form = refresh_form(&realm("https://a/t", None), "s", "to+ken");
        assert_eq!(form, "grant_type=refresh_token&service=&client_id=strata&scope=s&refresh_token=to%2Bken");
    }

    #[test]
    fn a_token_by_either_name() {
        assert_eq!(token_in(br#"{"token":"a","access_token":"b"}"#).unwrap(), "a");
        assert_eq!(token_in(br#"{"access_token":"b","expires_in":300}"#).unwrap(), "b");
        assert!(token_in(b"{}").is_err() && token_in(b"[").is_err());
        assert!(bearer("a\nb").is_err());
    }

    #[test]
    fn secrets_are_marked() {
        assert_eq!(basic("u", "p"), "Basic dTpw");
        assert!(basic("u", "p").is_sensitive() && bearer("t").unwrap().is_sensitive());
    }
}
