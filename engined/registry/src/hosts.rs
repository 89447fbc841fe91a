//! Where the images of a registry are had instead, in containerd's form: a directory with one of its own for each registry,
//! and in that a `hosts.toml`.
//!
//! ```text
//!   DIR/docker.io/hosts.toml     server = "https://registry-1.docker.io"       asked last
//!   DIR/127.0.0.1_5000_/…        [host."https://mirror.example"]               asked first, in this order
//!   DIR/_default/hosts.toml      capabilities, ca, client, skip_verify, header, override_path
//! ```
//! What stands there is the operator's word: a host that is named with `http://` is spoken to in plain HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Deserialize;

/// The file's name.
const FILE: &str = "hosts.toml";
/// The directory for registries that have none of their own.
const DEFAULT: &str = "_default";
/// Most bytes of such a file, and of one that it names.
const FILE_MAX: u64 = 1 << 20;
/// What goes before a repository in a URL.
const API: &str = "/v2";

/// The hosts for one registry, in the order in which they are asked; the registry's own is the last one.
#[derive(Clone, Debug, PartialEq)]
pub struct Hosts(pub(crate) Vec<Host>);

/// A `hosts.toml` and what it names, as they were read.
#[derive(Clone, Debug, Default)]
pub struct HostFiles {
    text: String,
    /// By the names that stand in the text.
    files: BTreeMap<String, Vec<u8>>,
}

/// One host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Host {
    /// `host[:port]`.
    pub(crate) authority: String,
    /// TLS is spoken; `None`: as the registry's name has it.
    pub(crate) tls: Option<bool>,
    /// What goes before a repository: `/v2`, or all that the URL says.
    pub(crate) prefix: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) trust: Trust,
    /// Sent with each request to it.
    pub(crate) headers: HeaderMap,
}

/// What a host is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Default for Capabilities {
    fn default() -> Capabilities {
        Capabilities { pull: true, resolve: true, push: true }
    }
}

/// Whom to believe to be a host, and who to be for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// PEM of further authorities.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// PEM of a certificate, and of its key where that is another file.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
    /// Whatever certificate it shows.
    pub(crate) skip_verify: bool,
}

/// A `hosts.toml` that cannot be followed.
#[derive(Debug)]
pub struct HostsError {
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl HostsError {
    fn new(what: impl Into<String>) -> HostsError {
        HostsError { what: what.into(), source: None }
    }

    fn because(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostsError {
        HostsError { what: what.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for HostsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for HostsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_ref()?;
        Some(source.as_ref())
    }
}

/// What stands of one host.
#[derive(Deserialize)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<Several>,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, Several>,
    #[serde(default)]
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Several {
    One(String),
    Many(Vec<String>),
}

impl Several {
    fn all(&self) -> &[String] {
        match self {
            Several::One(one) => std::slice::from_ref(one),
            Several::Many(many) => many,
        }
    }
}

/// A file with certificate and key, several of them, or pairs of files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    Files(Several),
    Pairs(Vec<Several>),
}

impl Clients {
    /// The files of the first client: one is shown to a host.
    fn first(&self) -> Option<(&str, Option<&str>)> {
        let pair = match self {
            Clients::Files(files) => return files.all().first().map(|file| (file.as_str(), None)),
            Clients::Pairs(pairs) => pairs.first()?.all(),
        };
        let (certificate, key) = (pair.first()?, pair.get(1).filter(|key| !key.is_empty()));
        Some((certificate, key.map(String::as_str)))
    }
}

/// The directory in `root` for `registry`; none where there is none, and no other for all.
pub fn directory_of(root: &Path, registry: &str) -> Option<PathBuf> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port.into_iter().chain([registry.to_owned(), DEFAULT.to_owned()]);
    // The name came from a person or a client.
    let is_name = |name: &String| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    names.filter(is_name).map(|name| root.join(name)).find(|directory| directory.is_dir())
}

/// The text of a directory's file, and the files that it names, under the names that it has for them. For whoever reads them
/// for another process.
///
/// # Errors
/// A file cannot be read, or is too large.
pub fn read_files(directory: &Path) -> Result<Option<HostFiles>, HostsError> {
    let path = directory.join(FILE);
    let text = match read_bounded(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| HostsError::because(format!("read {}", path.display()), error))?,
    };
    let text =
        String::from_utf8(text).map_err(|error| HostsError::because(format!("read {}", path.display()), error))?;
    let mut files = BTreeMap::new();
    Hosts::parse(&text, "registry.invalid", &mut |name: &str| {
        let bytes = read_bounded(&directory.join(name))?;
        files.insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    })?;
    Ok(Some(HostFiles { text, files }))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

impl Hosts {
    /// The hosts for a registry in the directory `root`: by its name there, and for it the host that it is served by; none
    /// where nothing is said of it.
    ///
    /// # Errors
    /// A file cannot be read or followed.
    pub fn read(root: &Path, name: &str, registry: &str) -> Result<Option<Hosts>, HostsError> {
        let Some(directory) = directory_of(root, name) else { return Ok(None) };
        let Some(files) = read_files(&directory)? else { return Ok(None) };
        Hosts::of_files(&files, registry).map(Some)
    }

    /// The same of what [`read_files`] has read.
    ///
    /// # Errors
    /// The text cannot be followed.
    pub fn of_files(read: &HostFiles, registry: &str) -> Result<Hosts, HostsError> {
        let absent = || io::Error::from(io::ErrorKind::NotFound);
        Hosts::parse(&read.text, registry, &mut |name: &str| read.files.get(name).cloned().ok_or_else(absent))
    }

    /// The same with headers that are sent to all of them.
    ///
    /// # Errors
    /// They cannot be headers.
    pub fn with_headers(mut self, named: &BTreeMap<String, String>) -> Result<Hosts, HostsError> {
        let named = named.iter().map(|(name, value)| (name.clone(), Several::One(value.clone()))).collect();
        let headers = headers(&named).map_err(HostsError::new)?;
        self.0.iter_mut().for_each(|host| host.headers.extend(headers.clone()));
        Ok(self)
    }

    fn parse(
        text: &str,
        registry: &str,
        read: &mut dyn FnMut(&str) -> io::Result<Vec<u8>>,
    ) -> Result<Hosts, HostsError> {
        let failed = |error| HostsError::because(format!("understand the {FILE} of {registry}"), error);
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| failed(error))?;
        let server = table.remove("server").and_then(|server| server.as_str().map(str::to_owned));
        let named = match table.remove("host") {
            Some(toml::Value::Table(named)) => named,
            None => toml::Table::new(),
            Some(_) => return Err(HostsError::new(format!("the {FILE} of {registry}: host is no table"))),
        };
        let mut hosts = Vec::new();
        for (url, entry) in named {
            hosts.push(Host::of(&url, entry.try_into().map_err(failed)?, read)?);
        }
        let own: Entry = toml::Value::Table(table).try_into().map_err(failed)?;
        hosts.push(match server.filter(|server| !server.is_empty()) {
            Some(server) => Host::of(&server, own, read)?,
            None => Host { tls: None, ..Host::of(&format!("https://{registry}"), own, read)? },
        });
        Ok(Hosts(hosts))
    }
}

impl Host {
    fn of(url: &str, entry: Entry, read: &mut dyn FnMut(&str) -> io::Result<Vec<u8>>) -> Result<Host, HostsError> {
        let wrong = |why: &str| HostsError::new(format!("host {url:?} in {FILE}: {why}"));
        let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let uri: Uri = full.parse().map_err(|_| wrong("it is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("its scheme is neither http nor https")),
        };
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(wrong("it must be a host, perhaps with a port"));
        }
        let path = uri.path().trim_end_matches('/');
        let is_whole = entry.override_path || path.ends_with(API);
        let prefix = if is_whole { path.to_owned() } else { format!("{path}{API}") };
        let capabilities = capabilities(entry.capabilities.as_deref()).map_err(|word| wrong(&word))?;
        let (headers, trust) = (headers(&entry.header).map_err(|name| wrong(&name))?, Trust::of(&entry, read)?);
        Ok(Host { authority: authority.to_owned(), tls: Some(tls), prefix, capabilities, trust, headers })
    }
}

impl Trust {
    fn of(entry: &Entry, read: &mut dyn FnMut(&str) -> io::Result<Vec<u8>>) -> Result<Trust, HostsError> {
        let mut read = |name: &str| {
            read(name).map_err(|error| HostsError::because(format!("read {name:?}, which {FILE} names"), error))
        };
        let named = entry.ca.iter().flat_map(Several::all);
        let authorities = named.map(|name| read(name)).collect::<Result<_, _>>()?;
        let client = match entry.client.as_ref().and_then(Clients::first) {
            Some((certificate, Some(key))) => Some((read(certificate)?, read(key)?)),
            Some((both, None)) => Some((read(both)?, Vec::new())),
            None => None,
        };
        Ok(Trust { authorities, client, skip_verify: entry.skip_verify })
    }
}

fn capabilities(words: Option<&[String]>) -> Result<Capabilities, String> {
    let Some(words) = words else { return Ok(Capabilities::default()) };
    let mut all = Capabilities { pull: false, resolve: false, push: false };
    for word in words {
        match word.as_str() {
            "pull" => all.pull = true,
            "resolve" => all.resolve = true,
            "push" => all.push = true,
            other => return Err(format!("{other:?} is no capability")),
        }
    }
    Ok(all)
}

fn headers(named: &BTreeMap<String, Several>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in named {
        let key = HeaderName::try_from(name).map_err(|_| format!("{name:?} is no name of a header"))?;
        for value in values.all() {
            let mut value = HeaderValue::try_from(value).map_err(|_| format!("header {name:?} has no such value"))?;
            // Some are secrets.
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Host>, HostsError> {
        let mut read = |name: &str| match name {
            "absent" => Err(io::ErrorKind::NotFound.into()),
            name => Ok(name.as_bytes().to_vec()),
        };
        Hosts::parse(text, "example.org:5000", &mut read).map(|hosts| hosts.0)
    }

    #[test]
    fn hosts_in_their_order_and_the_server_last() {
        let hosts = parse(
            r#"
            server = "https://registry.example"
            ca = "own.pem"
            [host."http://z.example:8080"]
            capabilities = ["pull"]
            [host."https://a.example/mirror"]
            [host."https://b.example/v2/all"]
            override_path = true
            skip_verify = true
            ca = ["one", "two"]
            client = [["cert", "key"]]
            [host."https://b.example/v2/all".header]
            x-one = "1"
            x-two = ["2", "3"]
            "#,
        )
        .unwrap();
        let places: Vec<_> =
            hosts.iter().map(|host| (host.authority.as_str(), host.tls, host.prefix.as_str())).collect();
        assert_eq!(
            places,
            [
                ("z.example:8080", Some(false), "/v2"),
                ("a.example", Some(true), "/mirror/v2"),
                ("b.example", Some(true), "/v2/all"),
                ("registry.example", Some(true), "/v2"),
            ]
        );
        assert_eq!(hosts[0].capabilities, Capabilities { pull: true, resolve: false, push: false });
        let trust = &hosts[2].trust;
        assert!(trust.skip_verify && !hosts[1].trust.skip_verify);
        assert_eq!(trust.authorities, [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(trust.client, Some((b"cert".to_vec(), b"key".to_vec())));
        assert_eq!(hosts[2].headers.get_all("x-two").iter().collect::<Vec<_>>(), ["2", "3"]);
        assert_eq!(hosts[3].trust.authorities, [b"own.pem".to_vec()]);
    }

    #[test]
    fn without_a_server_it_is_the_registry_itself() {
        let hosts = parse("").unwrap();
        assert_eq!(hosts.len(), 1);
        assert_eq!(
            (hosts[0].authority.as_str(), hosts[0].tls, hosts[0].prefix.as_str()),
            ("example.org:5000", None, "/v2")
        );
        assert_eq!(hosts[0].capabilities, Capabilities::default());
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        for (text, word) in [
            ("[host.\"ftp://x\"]", "scheme"),
            ("[host.\"https://u:p@x\"]", "must be a host"),
            ("[host.\"https://x\"]\ncapabilities = [\"steal\"]", "steal"),
            ("[host.\"https://x\"]\nca = \"absent\"", "absent"),
            ("[host.\"https://x\".header]\n\"a b\" = \"c\"", "a b"),
            ("host = 1", "no table"),
            ("server = ", "understand"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_registry_has_a_directory_with_its_port_in_its_name() {
        let root = tempfile::tempdir().unwrap();
        let name_of = |registry: &str| Some(directory_of(root.path(), registry)?.file_name()?.to_str()?.to_owned());
        assert_eq!(name_of("a.example"), None);
        std::fs::create_dir(root.path().join("_default")).unwrap();
        assert_eq!(name_of("a.example").unwrap(), "_default");
        for name in ["a.example", "a.example:5000", "a.example_5000_"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            assert_eq!(name_of(&name.replace("_5000_", ":5000")).unwrap(), name);
        }
        assert_eq!(name_of("../a.example").unwrap(), "_default");
        assert_eq!(Hosts::read(root.path(), "a.example", "a.example").unwrap(), None);
        let text = "[host.\"https://m\"]\nca = \"ca.pem\"";
        std::fs::write(root.path().join("a.example/hosts.toml"), text).unwrap();
        assert!(Hosts::read(root.path(), "a.example", "a.example").unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(root.path().join("a.example/ca.pem"), "pem").unwrap();
        let hosts = Hosts::read(root.path(), "a.example", "a.example").unwrap().unwrap();
        assert_eq!(hosts.0[0].trust.authorities, [b"pem".to_vec()]);
        let files = read_files(&root.path().join("a.example")).unwrap().unwrap();
        assert_eq!(Hosts::of_files(&files, "a.example").unwrap(), hosts);
    }
}
