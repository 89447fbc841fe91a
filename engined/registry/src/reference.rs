//! Image references as Docker names them: `[domain[:port]/]path[:tag][@digest]`.
//!
//! A name without a domain belongs to Docker Hub, one of a single part there to `library/`. The *canonical* form says
//! all of that (`docker.io/library/nginx:latest`) and is what the store knows; the *familiar* form leaves out what
//! Docker's users leave out (`nginx:latest`) and is what people see. The grammar is the one that registries enforce.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// Docker Hub's name in references; its API answers at [`HUB_HOST`].
pub const HUB: &str = "docker.io";
/// Where Docker Hub's registry API is.
pub const HUB_HOST: &str = "registry-1.docker.io";
/// A former name of [`HUB`] that still stands in old references.
const HUB_LEGACY: &str = "index.docker.io";
/// The namespace of Docker Hub's own images.
const HUB_LIBRARY: &str = "library/";
/// The tag that is meant where neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";

/// Most bytes of domain and path together, as registries enforce.
const NAME_MAX: usize = 255;
/// Most bytes of a tag.
const TAG_MAX: usize = 128;

/// A well-formed reference in canonical form. It has a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as written in the reference, with its port if it has one: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one; it wins over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The host (and port) that answers for the registry.
    pub fn host(&self) -> &str {
        if self.domain == HUB { HUB_HOST } else { &self.domain }
    }

    /// The same repository, named by `digest` alone.
    #[must_use]
    pub fn by_digest(&self, digest: Digest) -> Reference {
        Reference { domain: self.domain.clone(), path: self.path.clone(), tag: None, digest: Some(digest) }
    }

    /// As Docker's users write the repository: without what is implied.
    pub fn familiar_name(&self) -> String {
        if self.domain != HUB {
            return self.name();
        }
        match self.path.strip_prefix(HUB_LIBRARY) {
            // `docker.io/library/a/b` must keep its prefix: `a/b` would be another repository.
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            // So must `docker.io/a.b/c`: `a.b/c` would be in another registry.
            _ if split_domain(&self.path).0 != HUB => self.name(),
            _ => self.path.clone(),
        }
    }

    /// As Docker's users write the reference: `nginx:latest`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    /// The canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { text: shown(text), problem })
    }
}

/// A text that is no reference, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceError {
    text: String,
    problem: ReferenceProblem,
}

impl ReferenceError {
    /// What is wrong with it.
    pub fn problem(&self) -> &ReferenceProblem {
        &self.problem
    }
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image reference {:?} is not well formed", self.text)
    }
}

impl std::error::Error for ReferenceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.problem)
    }
}

/// What is wrong with a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReferenceProblem {
    /// Nothing was given.
    Empty,
    /// A URL.
    Scheme,
    /// Longer than registries accept.
    NameTooLong,
    /// Sixty-four hex digits are an image id, and would be taken for one.
    LooksLikeId,
    /// The registry's name.
    Domain(String),
    /// The registry's port.
    Port(String),
    /// The path has upper-case letters.
    UpperCase(String),
    /// A part of the path.
    Component(String),
    /// What follows the colon.
    Tag(String),
    /// What follows the `@`.
    Digest(DigestError),
}

impl fmt::Display for ReferenceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ReferenceProblem::*;
        match self {
            Empty => f.write_str("it is empty"),
            Scheme => f.write_str("it is a URL: leave out the part up to \"://\""),
            NameTooLong => write!(f, "registry and repository have more than {NAME_MAX} characters"),
            LooksLikeId => f.write_str("64 hex digits are an image id, not a repository"),
            Domain(part) => {
                write!(f, "registry {part:?} is no host name (letters, digits, inner hyphens, dots; or [IPv6])")
            }
            Port(port) => write!(f, "{port:?} is no port (1 to 65535)"),
            UpperCase(part) => write!(f, "repository {part:?} must be lower case"),
            Component(part) => write!(
                f,
                "repository part {part:?} must be of a-z and 0-9, joined by single dots, one or two underscores, or hyphens"
            ),
            Tag(tag) => write!(
                f,
                "tag {tag:?} must be 1 to {TAG_MAX} of letters, digits, underscores, dots and hyphens, and not begin with a dot or hyphen"
            ),
            Digest(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ReferenceProblem {}

fn parse(text: &str) -> Result<Reference, ReferenceProblem> {
    if text.is_empty() {
        return Err(ReferenceProblem::Empty);
    }
    if text.contains("://") {
        return Err(ReferenceProblem::Scheme);
    }
    if is_id(text) {
        return Err(ReferenceProblem::LooksLikeId);
    }
    let (rest, digest) = split_digest(text)?;
    let (name, tag) = split_tag(rest)?;
    let (domain, path) = split_domain(name);
    check_domain(domain)?;
    let (domain, path) = normalized(domain, path);
    check_path(&path)?;
    if domain.len() + 1 + path.len() > NAME_MAX {
        return Err(ReferenceProblem::NameTooLong);
    }
    let tag = tag.or_else(|| digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
    Ok(Reference { domain, path, tag, digest })
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceProblem> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((rest, digest)) => Ok((rest, Some(digest.parse().map_err(ReferenceProblem::Digest)?))),
    }
}

/// A colon after the last slash begins the tag; one before it begins a port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>), ReferenceProblem> {
    let path_start = text.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = text[path_start..].find(':') else { return Ok((text, None)) };
    let (name, tag) = (&text[..path_start + colon], &text[path_start + colon + 1..]);
    if is_tag(tag) { Ok((name, Some(tag))) } else { Err(ReferenceProblem::Tag(shown(tag))) }
}

/// The first part is a registry if it cannot be a part of a Docker Hub path: it has a dot, a port or an upper-case
/// letter, or it is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if is_domain_like(first) => (first, rest),
        _ => (HUB, name),
    }
}

fn is_domain_like(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':', '[']) || part.chars().any(|c| c.is_ascii_uppercase())
}

fn normalized(domain: &str, path: &str) -> (String, String) {
    let domain = if domain == HUB_LEGACY { HUB } else { domain };
    let library = if domain == HUB && !path.contains('/') { HUB_LIBRARY } else { "" };
    (domain.to_owned(), format!("{library}{path}"))
}

fn check_domain(domain: &str) -> Result<(), ReferenceProblem> {
    let (host, port) = split_port(domain);
    if let Some(port) = port
        && !is_port(port)
    {
        return Err(ReferenceProblem::Port(shown(port)));
    }
    let good = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.split('.').all(is_label),
    };
    if good { Ok(()) } else { Err(ReferenceProblem::Domain(shown(domain))) }
}

/// `u16`'s parser alone would take a plus sign.
fn is_port(port: &str) -> bool {
    port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|number| number != 0)
}

/// Host and port; the colons inside of brackets belong to the host.
fn split_port(domain: &str) -> (&str, Option<&str>) {
    let from = domain.rfind(']').unwrap_or(0);
    match domain[from..].find(':') {
        Some(colon) => (&domain[..from + colon], Some(&domain[from + colon + 1..])),
        None => (domain, None),
    }
}

fn is_label(label: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(label.bytes().next())
        && edge(label.bytes().next_back())
        && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_path(path: &str) -> Result<(), ReferenceProblem> {
    if path.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(ReferenceProblem::UpperCase(shown(path)));
    }
    match path.split('/').find(|part| !is_component(part)) {
        Some(part) => Err(ReferenceProblem::Component(shown(part))),
        None => Ok(()),
    }
}

/// Runs of `[a-z0-9]`, joined by one dot, one or two underscores, or any number of hyphens.
fn is_component(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let joint = |joint: &str| matches!(joint, "." | "_" | "__") || joint.bytes().all(|c| c == b'-');
    part.starts_with(word) && part.ends_with(word) && part.split(word).filter(|between| !between.is_empty()).all(joint)
}

fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

/// What a person typed, bounded for an error's text.
fn shown(text: &str) -> String {
    text.chars().take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn canonical_and_familiar_forms() {
        let cases = [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25"),
            ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/team/app:1.2", "localhost:5000/team/app:1.2", "localhost:5000/team/app:1.2"),
            ("ghcr.io/a/b__c.d--e", "ghcr.io/a/b__c.d--e:latest", "ghcr.io/a/b__c.d--e:latest"),
            ("[::1]:5000/app:t", "[::1]:5000/app:t", "[::1]:5000/app:t"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest", "127.0.0.1:5000/app:latest"),
            ("UPPER/app", "UPPER/app:latest", "UPPER/app:latest"),
        ];
        for (written, canonical, familiar) in cases {
            let reference: Reference = written.parse().unwrap_or_else(|e| panic!("{written}: {e:?}"));
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (canonical, familiar));
        }
    }

    #[test]
    fn digests_stand_alone_or_beside_a_tag() {
        let alone: Reference = format!("app@{DIGEST}").parse().unwrap();
        assert_eq!((alone.tag(), alone.digest().map(Digest::as_str)), (None, Some(DIGEST)));
        let both: Reference = format!("h:1/app:t@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("h:1/app:t@{DIGEST}"));
        assert_eq!(both.by_digest(both.digest().unwrap().clone()).to_string(), format!("h:1/app@{DIGEST}"));
    }

    #[test]
    fn docker_hub_answers_elsewhere() {
        assert_eq!("nginx".parse::<Reference>().unwrap().host(), HUB_HOST);
        assert_eq!("localhost:5000/x".parse::<Reference>().unwrap().host(), "localhost:5000");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        use ReferenceProblem::*;
        let id = "a".repeat(64);
        let cases = [
            ("", Empty),
            ("https://ghcr.io/a", Scheme),
            (id.as_str(), LooksLikeId),
            ("Nginx", UpperCase("library/Nginx".into())),
            ("nginx:", Tag("".into())),
            ("nginx:.a", Tag(".a".into())),
            ("nginx:a/b:c:d", Tag("c:d".into())),
            ("a//b", Component("".into())),
            ("a/../b", Component("..".into())),
            ("a/b/", Component("".into())),
            ("a._b", Component("a._b".into())),
            ("a___b", Component("a___b".into())),
            ("-a", Component("-a".into())),
            ("a b", Component("a b".into())),
            ("ex_ample.com/a", Domain("ex_ample.com".into())),
            ("-a.com/a", Domain("-a.com".into())),
            ("[::zz]/a", Domain("[::zz]".into())),
            ("host:/a", Port("".into())),
            ("host:99999/a", Port("99999".into())),
            ("host:+80/a", Port("+80".into())),
            ("a@sha256:1", Digest("sha256:1".parse::<crate::Digest>().unwrap_err())),
            ("a@", Digest(DigestError::NoAlgorithm)),
        ];
        for (text, problem) in cases {
            assert_eq!(text.parse::<Reference>().unwrap_err().problem, problem, "{text:?}");
        }
        let long = format!("h.io/{}", "a".repeat(251));
        assert_eq!(long.parse::<Reference>().unwrap_err().problem, NameTooLong);
        assert!(long[..255].parse::<Reference>().is_ok());
    }

    proptest! {
        #[test]
        fn the_canonical_form_means_itself(
            domain in "docker\\.io|(localhost|[a-z0-9]{1,8}\\.[a-zA-Z]{2,5}|\\[::1\\])(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in prop::option::of("[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,40}"),
            digest in prop::option::of("[0-9a-f]{64}"),
        ) {
            let tag = tag.map(|t| format!(":{t}")).unwrap_or_default();
            let digest = digest.map(|d| format!("@sha256:{d}")).unwrap_or_default();
            let reference: Reference = format!("{domain}/{path}{tag}{digest}").parse().unwrap();
            let canonical: Reference = reference.to_string().parse().unwrap();
            prop_assert_eq!(&canonical, &reference);
            let familiar: Reference = reference.familiar().parse().unwrap();
            prop_assert_eq!(&familiar, &reference);
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
        }

        #[test]
        fn no_text_panics_and_what_is_accepted_is_safe_in_a_url(text in "[a-zA-Z0-9:/@._\\[\\]# %?\\\\-]{0,80}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(reference.path().split('/').all(is_component));
                prop_assert!(!reference.to_string().contains([' ', '?', '#', '%', '\\']));
                let uri = format!("https://{}/v2/", reference.host());
                prop_assert!(uri.parse::<http::Uri>().is_ok(), "{}", uri);
            }
        }
    }
}
