//! Credentials as Docker's users keep them: `config.json` with names and passwords, or with the name of a helper
//! program (`docker-credential-…`) that knows them.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::reference::HUB;

/// Most bytes of `config.json` and of a helper's answer.
const TEXT_MAX: u64 = 4 << 20;
/// Longest wait for a helper: it may have to ask a key ring, but nobody types into it.
const HELPER_TIMEOUT: Duration = Duration::from_secs(20);
/// The key under which Docker keeps Docker Hub's credentials.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name of an identity token in a helper's answer.
const TOKEN_USER: &str = "<token>";

/// What a registry, or its token server, is shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// Name and password.
    Basic {
        /// Not empty.
        user: String,
        /// As it is, not encoded.
        password: String,
    },
    /// A refresh token, to be exchanged at the token server.
    IdentityToken(String),
    /// A token for the registry itself.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::Basic { user, .. } => write!(f, "Basic({user})"),
            Credentials::IdentityToken(_) => f.write_str("IdentityToken"),
            Credentials::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

/// What was attempted with a store of credentials.
#[derive(Debug)]
pub struct CredentialsError {
    attempt: String,
    source: Option<crate::error::Cause>,
}

impl CredentialsError {
    fn new(attempt: impl Into<String>) -> CredentialsError {
        CredentialsError { attempt: attempt.into(), source: None }
    }

    fn caused_by(mut self, source: impl Into<crate::error::Cause>) -> CredentialsError {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.attempt)
    }
}

impl std::error::Error for CredentialsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Docker's `config.json`, as far as it is about credentials.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DockerConfig {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(..)")
    }
}

impl DockerConfig {
    /// Where Docker keeps it: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub fn default_path() -> Option<PathBuf> {
        let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let directory = directory.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
        Some(directory.join("config.json"))
    }

    /// Reads the file; one that is not there holds nothing.
    ///
    /// # Errors
    /// It is there and cannot be read, or it is not of the form.
    pub async fn read(path: &Path) -> Result<DockerConfig, CredentialsError> {
        let failed = || CredentialsError::new(format!("read credentials from {}", path.display()));
        let file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DockerConfig::default()),
            Err(error) => return Err(failed().caused_by(error)),
        };
        let mut text = Vec::new();
        file.take(TEXT_MAX).read_to_end(&mut text).await.map_err(|error| failed().caused_by(error))?;
        serde_json::from_slice(&text).map_err(|error| failed().caused_by(error))
    }

    /// The credentials for the registry called `domain` in references. A helper for just this registry comes first,
    /// then what stands in the file, then the helper for all.
    ///
    /// # Errors
    /// A helper that cannot be asked, or an entry that is not of the form.
    pub async fn credentials(&self, domain: &str) -> Result<Credentials, CredentialsError> {
        let key = if domain == HUB { HUB_KEY } else { domain };
        if let Some(helper) = self.cred_helpers.get(domain).or_else(|| self.cred_helpers.get(key)) {
            return ask_helper(helper, key).await;
        }
        match self.entry(domain).filter(|entry| !entry.is_empty()) {
            Some(entry) => entry.credentials(domain),
            None => match self.creds_store.as_deref().filter(|helper| !helper.is_empty()) {
                Some(helper) => ask_helper(helper, key).await,
                None => Ok(Credentials::Anonymous),
            },
        }
    }

    /// Keys may be bare hosts, or the URLs that older versions wrote.
    fn entry(&self, domain: &str) -> Option<&Auth> {
        let named = |key: &str| {
            let host = key.trim_start_matches("https://").trim_start_matches("http://");
            let host = host.split('/').next().unwrap_or_default();
            host == domain || (domain == HUB && host == "index.docker.io")
        };
        self.auths.get(domain).or_else(|| self.auths.iter().find(|(key, _)| named(key)).map(|(_, auth)| auth))
    }
}

impl Auth {
    fn is_empty(&self) -> bool {
        self.auth.is_empty()
            && self.username.is_empty()
            && self.identitytoken.is_empty()
            && self.registrytoken.is_empty()
    }

    fn credentials(&self, domain: &str) -> Result<Credentials, CredentialsError> {
        if !self.registrytoken.is_empty() {
            return Ok(Credentials::RegistryToken(self.registrytoken.clone()));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Credentials::IdentityToken(self.identitytoken.clone()));
        }
        if self.auth.is_empty() {
            return Ok(Credentials::Basic { user: self.username.clone(), password: self.password.clone() });
        }
        let failed = || CredentialsError::new(format!("decode the stored credentials of {domain}"));
        let bytes = BASE64.decode(&self.auth).map_err(|error| failed().caused_by(error))?;
        let text = String::from_utf8(bytes).map_err(|_| failed().caused_by("they are not text"))?;
        let (user, password) = text.split_once(':').ok_or_else(|| failed().caused_by("they have no colon"))?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Credentials::Basic { user: user.to_owned(), password })
    }
}

/// Runs `docker-credential-HELPER get`, with the key on its stdin.
async fn ask_helper(helper: &str, key: &str) -> Result<Credentials, CredentialsError> {
    let failed = || CredentialsError::new(format!("ask docker-credential-{helper} for the credentials of {key}"));
    if !helper.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
        return Err(failed().caused_by("a helper's name has letters, digits, hyphens, underscores and dots only"));
    }
    let answer = tokio::time::timeout(HELPER_TIMEOUT, run_helper(helper, key)).await;
    let (good, text) = answer
        .map_err(|_| failed().caused_by(format!("no answer within {} s", HELPER_TIMEOUT.as_secs())))?
        .map_err(|error| failed().caused_by(error))?;
    if !good {
        // All helpers say it in these words: there is nothing stored, which is no failure.
        return match text.trim() {
            said if said.contains("credentials not found") => Ok(Credentials::Anonymous),
            said => Err(failed().caused_by(said.chars().take(200).collect::<String>())),
        };
    }
    let answer: HelperAnswer = serde_json::from_str(&text).map_err(|error| failed().caused_by(error))?;
    Ok(answer.credentials())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl HelperAnswer {
    fn credentials(self) -> Credentials {
        match (self.username.as_str(), self.secret.is_empty()) {
            (TOKEN_USER, _) => Credentials::IdentityToken(self.secret),
            ("", true) => Credentials::Anonymous,
            _ => Credentials::Basic { user: self.username, password: self.secret },
        }
    }
}

/// Whether the helper succeeded, and what it wrote.
async fn run_helper(helper: &str, key: &str) -> std::io::Result<(bool, String)> {
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(key.as_bytes()).await?;
    }
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(TEXT_MAX).read_to_string(&mut text).await?;
    }
    Ok((child.wait().await?.success(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DockerConfig {
        serde_json::from_str(text).unwrap()
    }

    async fn found(config: &DockerConfig, domain: &str) -> Credentials {
        config.credentials(domain).await.unwrap()
    }

    fn basic(user: &str, password: &str) -> Credentials {
        Credentials::Basic { user: user.into(), password: password.into() }
    }

    #[tokio::test]
    async fn names_and_passwords() {
        let config = config(
            r#"{"auths": {
                "localhost:5000": {"auth": "dXNlcjpwYTpzcw=="},
                "https://ghcr.io/v1/": {"username": "a", "password": "b"},
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "quay.io": {"identitytoken": "idt"},
                "empty.io": {},
                "bad.io": {"auth": "%%"}
            }, "HttpHeaders": {"x": "y"}}"#,
        );
        assert_eq!(found(&config, "localhost:5000").await, basic("user", "pa:ss"));
        assert_eq!(found(&config, "ghcr.io").await, basic("a", "b"));
        assert_eq!(found(&config, "docker.io").await, basic("hub", "pw"));
        assert_eq!(found(&config, "quay.io").await, Credentials::IdentityToken("idt".into()));
        assert_eq!(found(&config, "empty.io").await, Credentials::Anonymous);
        assert_eq!(found(&config, "localhost").await, Credentials::Anonymous);
        assert!(config.credentials("bad.io").await.is_err());
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_holds_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert_eq!(found(&DockerConfig::read(&path).await.unwrap(), "x.io").await, Credentials::Anonymous);
        std::fs::write(&path, "[").unwrap();
        let error = DockerConfig::read(&path).await.unwrap_err();
        assert!(error.to_string().starts_with("read credentials from "), "{error}");
    }

    #[test]
    fn a_helpers_answer() {
        let answer = |text: &str| serde_json::from_str::<HelperAnswer>(text).unwrap().credentials();
        assert_eq!(answer(r#"{"ServerURL":"x","Username":"u","Secret":"s"}"#), basic("u", "s"));
        assert_eq!(answer(r#"{"Username":"<token>","Secret":"s"}"#), Credentials::IdentityToken("s".into()));
        assert_eq!(answer("{}"), Credentials::Anonymous);
    }

    #[tokio::test]
    async fn a_helpers_name_is_no_path() {
        let config = config(r#"{"credHelpers": {"x.io": "../../bin/sh"}}"#);
        assert!(config.credentials("x.io").await.is_err());
    }

    #[test]
    fn debugging_shows_no_secret() {
        let shown = format!("{:?} {:?}", basic("u", "hunter2"), config(r#"{"auths":{"x":{"auth":"aHVudGVyMg=="}}}"#));
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVyMg"), "{shown}");
    }
}
