//! Files of `KEY=value` lines: `--env-file` and `--label-file`.

use super::Parsed;

/// The lines of a file: comments and empty lines left out, white space before a name taken away. A name without a value
/// is looked up and, when it has none, left out.
pub(crate) fn key_values(content: &[u8], look_up: impl Fn(&str) -> Option<String>) -> Parsed<Vec<String>> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    let mut entries = Vec::new();
    for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| format!("invalid utf8 bytes at line {}", at + 1))?;
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value)));
        if key.is_empty() {
            return Err(format!("no variable name on line '{line}'"));
        }
        if key.contains([' ', '\t']) {
            return Err(format!("variable '{key}' contains whitespaces"));
        }
        match value {
            Some(_) => entries.push(line.to_owned()),
            None => entries.extend(look_up(key).map(|value| format!("{key}={value}"))),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(content: &[u8]) -> Parsed<Vec<String>> {
        key_values(content, |name| (name == "KNOWN").then(|| "value".to_owned()))
    }

    #[test]
    fn accepted_as_docker_does() {
        let content = b"\xef\xbb\xbfA=1\n# comment\n\n  B=two words \nC=\nKNOWN\nUNKNOWN\n\tD=x=y\r\n_e.f-g=#h";
        assert_eq!(parsed(content).unwrap(), ["A=1", "B=two words ", "C=", "KNOWN=value", "D=x=y", "_e.f-g=#h"]);
        assert!(parsed(b"").unwrap().is_empty());
    }

    #[test]
    fn refused_in_dockers_words() {
        for (content, words) in [
            (&b"=x"[..], "no variable name on line '=x'"),
            (b"A B=1", "variable 'A B' contains whitespaces"),
            (b"A =1", "variable 'A ' contains whitespaces"),
            (b"OK=1\nA=\xff", "invalid utf8 bytes at line 2"),
        ] {
            assert!(parsed(content).unwrap_err().contains(words));
        }
    }
}
