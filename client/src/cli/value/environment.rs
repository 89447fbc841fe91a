//! `--env`: `NAME=value`, or `NAME` with the value it has here.

use super::Parsed;

/// The variable as the container gets it; `None` when it is named only and not set here.
pub(crate) fn variable(text: &str, look_up: impl Fn(&str) -> Option<String>) -> Parsed<Option<String>> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("invalid environment variable: {text}")),
        None if text.is_empty() => Err("invalid environment variable: ".to_owned()),
        Some(_) => Ok(Some(text.to_owned())),
        None => Ok(look_up(text).map(|value| format!("{text}={value}"))),
    }
}

/// A variable of this process.
pub(crate) fn of_process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn as_docker_does() {
        let look_up = |name: &str| (name == "KNOWN").then(|| "v".to_owned());
        for (text, variable) in [
            ("a=b", Ok(Some("a=b".to_owned()))),
            ("a=", Ok(Some("a=".to_owned()))),
            ("a=b=c", Ok(Some("a=b=c".to_owned()))),
            ("KNOWN", Ok(Some("KNOWN=v".to_owned()))),
            ("UNKNOWN", Ok(None)),
            ("some space=x", Ok(Some("some space=x".to_owned()))),
            ("=a", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(super::variable(text, look_up).map_err(drop), variable, "{text}");
        }
    }
}
