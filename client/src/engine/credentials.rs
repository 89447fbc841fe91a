//! Credentials for a registry, from Docker's configuration: entries in `config.json`, and the credential helpers it names.
//!
//! The client sends them with the request; engined keeps none. A helper is a program that takes tens of milliseconds, so
//! it is asked only when the image is not here.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto_engine::RegistryAuth;
use serde::Deserialize;

use crate::error::Error;

/// Docker Hub's host in references, and its name in Docker's configuration.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper says instead of a user's name when the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Docker's `config.json`, as far as this client heeds it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Config {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
    pub(crate) detach_keys: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Where credentials for a registry would come from.
#[derive(Debug, PartialEq)]
pub(crate) enum Source {
    Nowhere,
    Known(RegistryAuth),
    /// The helper's name, and the key to ask it for.
    Helper {
        name: String,
        key: String,
        host: String,
    },
}

impl Config {
    /// Reads the file of DOCKER_CONFIG, else of the home directory. No file is an empty one.
    pub(crate) fn load() -> Result<Config, Error> {
        let Some(path) = config_path() else { return Ok(Config::default()) };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(Config::default()),
            Err(source) => return Err(Error::File { attempted: "read Docker's configuration", path, source }),
        };
        serde_json::from_slice(&text).map_err(|error| Error::Content {
            attempted: "read Docker's configuration",
            path,
            why: error.to_string(),
        })
    }

    /// Where credentials for the registry of `image` come from.
    pub(crate) fn source(&self, image: &str) -> Result<Source, Error> {
        let host = registry_host(image);
        let key = if host == HUB { HUB_KEY } else { host };
        let helper = self.cred_helpers.get(key).or_else(|| self.cred_helpers.get(host));
        let store = Some(&self.creds_store).filter(|store| !store.is_empty());
        if let Some(name) = helper.or(store) {
            return Ok(Source::Helper { name: name.clone(), key: key.to_owned(), host: host.to_owned() });
        }
        let entry = self.auths.iter().find(|(written, _)| written.as_str() == key || host_of_key(written) == host);
        match entry {
            Some((written, entry)) => {
                entry.credentials(host, written).map(|auth| auth.map_or(Source::Nowhere, Source::Known))
            }
            None => Ok(Source::Nowhere),
        }
    }
}

impl Entry {
    fn credentials(&self, host: &str, written: &str) -> Result<Option<RegistryAuth>, Error> {
        let mut auth = RegistryAuth {
            host: host.to_owned(),
            username: self.username.clone(),
            password: self.password.clone(),
            identity_token: self.identitytoken.clone(),
        };
        if !self.auth.is_empty() {
            (auth.username, auth.password) = decoded(&self.auth).ok_or_else(|| Error::Credentials {
                attempted: format!("read the credentials of {written} in Docker's configuration"),
                why: "\"auth\" is not the base64 of name:password".to_owned(),
            })?;
        }
        let empty = auth.username.is_empty() && auth.identity_token.is_empty();
        Ok((!empty).then_some(auth))
    }
}

fn decoded(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.trim_end_matches('\0').to_owned()))
}

fn config_path() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
    folder.map(|folder| folder.join("config.json"))
}

/// The registry that a reference names: its first component when that looks like a host, else Docker Hub.
pub(crate) fn registry_host(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => match first {
            "index.docker.io" | "registry-1.docker.io" => HUB,
            host => host,
        },
        _ => HUB,
    }
}

/// The host in a key of `auths`: `https://host/v1/` and `host` mean the same.
fn host_of_key(key: &str) -> &str {
    let host = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = host.split('/').next().unwrap_or(host);
    if host == "index.docker.io" { HUB } else { host }
}

/// Asks a helper; that it knows no credentials is no error.
pub(crate) fn ask_helper(name: &str, key: &str, host: &str) -> Result<Option<RegistryAuth>, Error> {
    let program = format!("docker-credential-{name}");
    let failed =
        |why: String| Error::Credentials { attempted: format!("ask {program} for the credentials of {key}"), why };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper may end without reading; its answer tells.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return if said.contains("credentials not found") { Ok(None) } else { Err(failed(said)) };
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    Ok(Some(of_answer(answer, host)))
}

fn of_answer(answer: HelperAnswer, host: &str) -> RegistryAuth {
    let host = host.to_owned();
    if answer.username == TOKEN_USER {
        return RegistryAuth { host, identity_token: answer.secret, ..RegistryAuth::default() };
    }
    RegistryAuth { host, username: answer.username, password: answer.secret, ..RegistryAuth::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_reference() {
        for (image, host) in [
            ("nginx", "docker.io"),
            ("team/app:1", "docker.io"),
            ("docker.io/library/nginx", "docker.io"),
            ("index.docker.io/library/nginx", "docker.io"),
            ("localhost/app", "localhost"),
            ("localhost:5000/nginx", "localhost:5000"),
            ("quay.io/a/b@sha256:00", "quay.io"),
        ] {
            assert_eq!(registry_host(image), host, "{image}");
        }
    }

    fn config(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    fn known(source: Source) -> (String, String, String) {
        match source {
            Source::Known(auth) => (auth.username, auth.password, auth.identity_token),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entries_of_the_file() {
        let config = config(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpwOnE="}, "quay.io": {"username": "a", "password": "b"},
                "https://reg:5000/v2/": {"identitytoken": "tok"}, "empty.io": {}, "bad.io": {"auth": "!!"}}, "psFormat": "x"}"#,
        );
        let of = |image: &str| known(config.source(image).unwrap());
        assert_eq!(of("nginx"), ("u".to_owned(), "p:q".to_owned(), String::new()));
        assert_eq!(of("quay.io/x"), ("a".to_owned(), "b".to_owned(), String::new()));
        assert_eq!(of("reg:5000/x"), (String::new(), String::new(), "tok".to_owned()));
        assert_eq!(config.source("empty.io/x").unwrap(), Source::Nowhere);
        assert_eq!(config.source("ghcr.io/x").unwrap(), Source::Nowhere);
        assert!(config.source("bad.io/x").is_err());
    }

    #[test]
    fn helpers_go_before_entries() {
        let config = config(r#"{"credsStore": "pass", "credHelpers": {"gcr.io": "gcr"}}"#);
        let helper = |name: &str, key: &str, host: &str| Source::Helper {
            name: name.to_owned(),
            key: key.to_owned(),
            host: host.to_owned(),
        };
        assert_eq!(config.source("gcr.io/x").unwrap(), helper("gcr", "gcr.io", "gcr.io"));
        assert_eq!(config.source("nginx").unwrap(), helper("pass", HUB_KEY, "docker.io"));
    }
}
