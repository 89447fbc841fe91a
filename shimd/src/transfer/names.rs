//! Under which names an image is stored.

use std::collections::BTreeMap;

use proto_containerd::types::transfer::ImageReference;

use super::document::Descriptor;

/// containerd's annotation with an image's whole name, in archives.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// The OCI image layout's annotation, usually a tag alone.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The names of an image that came in an archive: as its annotations say, where a reference's prefix fits.
pub(crate) fn imported(descriptor: &Descriptor, references: &[ImageReference]) -> Vec<String> {
    let mut names = Vec::new();
    for reference in references.iter().filter(|reference| reference.is_prefix) {
        let by_digest = format!("{}@{}", reference.name, descriptor.digest);
        match annotated(&descriptor.annotations, reference) {
            Some(name) => {
                names.push(name);
                if reference.add_digest && !reference.skip_named_digest {
                    names.push(by_digest);
                }
            }
            None if reference.add_digest => names.push(by_digest),
            None => {}
        }
    }
    names
}

/// The names of an image that was pulled, tagged, or is the index of an archive. Prefixes are for what is in an
/// archive.
pub(crate) fn stored(name: &str, descriptor: &Descriptor, references: &[ImageReference]) -> Vec<String> {
    let mut names: Vec<String> = Some(name.to_owned()).filter(|name| !name.is_empty()).into_iter().collect();
    for reference in references.iter().filter(|reference| !reference.is_prefix) {
        names.push(match reference.add_digest {
            true => format!("{}@{}", reference.name, descriptor.digest),
            false => reference.name.clone(),
        });
    }
    names
}

fn annotated(annotations: &BTreeMap<String, String>, reference: &ImageReference) -> Option<String> {
    // A whole name is kept as it is, or not at all.
    if let Some(name) = annotations.get(IMAGE_NAME).filter(|name| !name.is_empty()) {
        return translated(name, reference).filter(|translated| translated == name);
    }
    translated(annotations.get(REF_NAME).filter(|name| !name.is_empty())?, reference)
}

/// A tag behind the prefix; a whole name if it has the prefix or may be another.
fn translated(name: &str, reference: &ImageReference) -> Option<String> {
    let prefix = reference.name.as_str();
    if prefix.is_empty() {
        return None;
    }
    if !name.contains(['/', ':', '@']) {
        return Some(format!("{prefix}:{name}"));
    }
    (reference.allow_overwrite || has_prefix(name, prefix)).then(|| name.to_owned())
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    // `example.org/a` is no prefix of `example.org/ab`.
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// The tag of a name, for the OCI layout; the whole name where it has none.
pub(crate) fn tag(name: &str) -> &str {
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split('@').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    tag.filter(|tag| !tag.is_empty()).unwrap_or(name)
}

/// As Docker's users write it: without what is implied.
pub(crate) fn familiar(name: &str) -> &str {
    let Some(rest) = name.strip_prefix("docker.io/") else { return name };
    match rest.strip_prefix("library/") {
        Some(short) if !short.contains('/') => short,
        _ => rest,
    }
}

/// A name of Docker's archives, made whole.
pub(crate) fn normalized(name: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    let has_domain = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let mut whole = match (has_domain, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    let last = whole.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '@']) {
        whole.push_str(":latest");
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Digest;

    fn descriptor(annotations: &[(&str, &str)]) -> Descriptor {
        let digest = Digest::from_sha256(&[0xab; 32]);
        let mut descriptor = Descriptor::new("", digest, 1);
        descriptor.annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        descriptor
    }

    fn prefix(name: &str) -> ImageReference {
        ImageReference { name: name.to_owned(), is_prefix: true, ..ImageReference::default() }
    }

    #[test]
    fn a_tag_goes_behind_the_prefix() {
        assert_eq!(imported(&descriptor(&[(REF_NAME, "v1")]), &[prefix("e.org/a")]), ["e.org/a:v1"]);
        assert!(imported(&descriptor(&[]), &[prefix("e.org/a")]).is_empty());
    }

    #[test]
    fn a_whole_name_needs_the_prefix_or_leave() {
        let named = descriptor(&[(IMAGE_NAME, "e.org/ab:v1"), (REF_NAME, "v1")]);
        assert!(imported(&named, &[prefix("e.org/a")]).is_empty());
        assert_eq!(imported(&named, &[prefix("e.org/ab")]), ["e.org/ab:v1"]);
        let overwriting = ImageReference { allow_overwrite: true, ..prefix("import-2026") };
        assert_eq!(imported(&named, &[overwriting]), ["e.org/ab:v1"]);
    }

    #[test]
    fn digests_are_added() {
        let digest = format!("e.org/a@sha256:{}", "ab".repeat(32));
        let reference = ImageReference { add_digest: true, ..prefix("e.org/a") };
        let named = descriptor(&[(REF_NAME, "v1")]);
        assert_eq!(imported(&named, std::slice::from_ref(&reference)), ["e.org/a:v1", &digest]);
        assert_eq!(imported(&descriptor(&[]), std::slice::from_ref(&reference)), [digest.as_str()]);
        let skipping = ImageReference { skip_named_digest: true, ..reference.clone() };
        assert_eq!(imported(&named, &[skipping]), ["e.org/a:v1"]);
        // The index of an archive gets none from a prefix.
        assert_eq!(stored("n", &named, &[reference.clone(), prefix("x")]), ["n"]);
        let whole = ImageReference { is_prefix: false, ..reference };
        assert_eq!(stored("n", &named, &[whole]), ["n", &digest]);
    }

    #[test]
    fn names_of_docker() {
        assert_eq!(normalized("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normalized("a/b:1"), "docker.io/a/b:1");
        assert_eq!(normalized("localhost:5000/b"), "localhost:5000/b:latest");
        assert_eq!(familiar("docker.io/library/busybox:1"), "busybox:1");
        assert_eq!(familiar("example.org/a:1"), "example.org/a:1");
        assert_eq!((tag("localhost:5000/a"), tag("e.org/a:v1")), ("localhost:5000/a", "v1"));
    }
}
