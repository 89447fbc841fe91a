//! `WWW-Authenticate`: what a registry wants to see (RFC 9110, section 11.6.1).

use http::HeaderValue;

/// One way to get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from a token server.
    Bearer {
        /// Its URL.
        realm: String,
        /// What it knows the registry as.
        service: Option<String>,
    },
    /// Name and password.
    Basic,
    /// A scheme that is not known here.
    Other,
}

impl Challenge {
    /// Of several, the one with the highest is answered: a token says less than a password.
    pub(crate) fn strength(&self) -> u8 {
        match self {
            Challenge::Bearer { .. } => 2,
            Challenge::Basic => 1,
            Challenge::Other => 0,
        }
    }
}

/// The challenges of all `WWW-Authenticate` headers; what is not well formed is left out.
pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<Challenge> {
    headers.into_iter().filter_map(|value| value.to_str().ok()).flat_map(parse_one).collect()
}

/// A header is a list of challenges and a challenge has a list of parameters, both separated by commas: a word that no
/// equals sign follows begins the next challenge.
fn parse_one(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scheme: Option<(&str, Parameters)> = None;
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = split_word(rest);
        if word.is_empty() {
            break;
        }
        match (after.trim_start().strip_prefix('='), &mut scheme) {
            (Some(value), Some((_, parameters))) => {
                let Some((value, after)) = split_value(value.trim_start()) else { break };
                parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                challenges.extend(scheme.take().map(challenge));
                scheme = Some((word, Vec::new()));
                rest = after;
            }
        }
    }
    challenges.extend(scheme.map(challenge));
    challenges
}

type Parameters = Vec<(String, String)>;

fn challenge((scheme, parameters): (&str, Parameters)) -> Challenge {
    let value = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match (scheme.to_ascii_lowercase().as_str(), value("realm")) {
        ("bearer", Some(realm)) => Challenge::Bearer { realm, service: value("service") },
        ("basic", _) => Challenge::Basic,
        _ => Challenge::Other,
    }
}

fn split_word(text: &str) -> (&str, &str) {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !token(c)).unwrap_or(text.len()))
}

/// A token or a quoted string, and what follows it; `None` when the quote is not closed.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) }
    }

    #[test]
    fn forms_that_registries_send() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        let cases = [
            (hub, vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"))]),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (r#"BEARER Realm = "x" , Service=y"#, vec![bearer("x", Some("y"))]),
            (r#"Basic realm="a, b", Bearer realm="c\"d""#, vec![Challenge::Basic, bearer("c\"d", None)]),
            (r#"Negotiate, Basic"#, vec![Challenge::Other, Challenge::Basic]),
            (r#"Bearer service="no realm""#, vec![Challenge::Other]),
            (r#"Bearer realm="open"#, vec![Challenge::Other]),
            ("", vec![]),
            ("=x", vec![]),
        ];
        for (header, challenges) in cases {
            assert_eq!(parse_one(header), challenges, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_or_hangs(header in "\\PC{0,200}") {
            let _ = parse_one(&header);
        }
    }
}
