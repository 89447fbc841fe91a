//! Rows of `images`: one for each name that an image has.

use std::time::SystemTime;

use proto_engine::ImageSummary;

use super::value::Value;
use super::{human, quote, time};

/// docker's table.
pub(crate) const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
/// docker's table with `--digests`.
pub(crate) const TABLE_WITH_DIGESTS: &str =
    "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const NONE: &str = "<none>";

/// The columns' headings.
pub(crate) fn headings() -> Value {
    Value::structure([
        ("CreatedAt", "CREATED AT".into()),
        ("CreatedSince", "CREATED".into()),
        ("Digest", "DIGEST".into()),
        ("ID", "IMAGE ID".into()),
        ("Repository", "REPOSITORY".into()),
        ("Size", "SIZE".into()),
        ("Tag", "TAG".into()),
    ])
}

/// What the rows tell of an image.
#[derive(Clone, Copy)]
pub(crate) struct Detail {
    pub(crate) digests: bool,
    pub(crate) truncate: bool,
}

/// The rows of one image.
pub(crate) fn rows(image: &ImageSummary, detail: Detail, now: SystemTime) -> Vec<Value> {
    let mut rows = Vec::new();
    for reference in &image.references {
        let (repository, tag) = split_tag(reference);
        let digests: Vec<&str> = digests_of(image, repository).collect();
        if !detail.digests || digests.is_empty() {
            let digest = digests.first().copied().unwrap_or(NONE);
            rows.push(row(image, (repository, tag, digest), detail, now));
            continue;
        }
        rows.extend(digests.iter().map(|digest| row(image, (repository, tag, digest), detail, now)));
    }
    let named = |repository: &str| image.references.iter().any(|reference| split_tag(reference).0 == repository);
    for reference in &image.digests {
        if let Some((repository, digest)) = reference.split_once('@').filter(|(repository, _)| !named(repository)) {
            rows.push(row(image, (repository, NONE, digest), detail, now));
        }
    }
    if rows.is_empty() {
        rows.push(row(image, (NONE, NONE, NONE), detail, now));
    }
    rows
}

/// The digests under which an image is known in `repository`.
fn digests_of<'a>(image: &'a ImageSummary, repository: &str) -> impl Iterator<Item = &'a str> {
    let repository = repository.to_owned();
    image.digests.iter().filter_map(move |reference| {
        reference.split_once('@').filter(|(name, _)| *name == repository).map(|(_, digest)| digest)
    })
}

fn row(image: &ImageSummary, (repository, tag, digest): (&str, &str, &str), detail: Detail, now: SystemTime) -> Value {
    let id = if detail.truncate { quote::short_id(&image.id) } else { &image.id };
    let created = image.created.as_ref();
    Value::structure([
        ("CreatedAt", created.map_or_else(|| "N/A".to_owned(), time::go_string).into()),
        ("CreatedSince", created.map_or_else(|| "N/A".to_owned(), |at| format!("{} ago", time::age(at, now))).into()),
        ("Digest", digest.into()),
        ("ID", id.into()),
        ("Repository", repository.into()),
        ("Size", human::size(image.size).into()),
        ("Tag", tag.into()),
    ])
}

/// A reference's repository and tag; a colon before the last slash is a registry's port.
pub(crate) fn split_tag(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (reference, NONE),
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Listing;
    use super::*;

    fn nginx() -> ImageSummary {
        ImageSummary {
            id: format!("sha256:{}", "ab".repeat(32)),
            references: vec!["localhost:5000/nginx:latest".to_owned(), "localhost:5000/nginx:1".to_owned()],
            digests: vec!["localhost:5000/nginx@sha256:00".to_owned(), "other@sha256:00".to_owned()],
            created: None,
            size: 142_000_000,
        }
    }

    fn shown(image: &ImageSummary, digests: bool, default_table: &str) -> String {
        let listing = Listing { format: None, quiet: false, default_table, headings: headings() };
        let detail = Detail { digests, truncate: true };
        listing.text(&rows(image, detail, SystemTime::UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn a_row_for_each_name() {
        assert_eq!(
            shown(&nginx(), false, TABLE),
            "REPOSITORY             TAG       IMAGE ID       CREATED   SIZE\n\
             localhost:5000/nginx   latest    abababababab   N/A       142MB\n\
             localhost:5000/nginx   1         abababababab   N/A       142MB\n\
             other                  <none>    abababababab   N/A       142MB\n"
        );
    }

    #[test]
    fn digests_have_their_column() {
        let nameless = ImageSummary { references: Vec::new(), digests: Vec::new(), ..nginx() };
        assert_eq!(
            shown(&nameless, true, TABLE_WITH_DIGESTS),
            "REPOSITORY   TAG       DIGEST    IMAGE ID       CREATED   SIZE\n\
             <none>       <none>    <none>    abababababab   N/A       142MB\n"
        );
    }

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split_tag("localhost:5000/nginx"), ("localhost:5000/nginx", "<none>"));
        assert_eq!(split_tag("localhost:5000/nginx:1"), ("localhost:5000/nginx", "1"));
    }
}
