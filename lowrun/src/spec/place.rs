//! The field that an error of JSON is about: the parser tells line and column, a person looks for the field.

use std::fmt::Write;

/// Most characters of a key that are told.
const KEY_MAX: usize = 64;

/// What the parser is in the middle of.
enum Within {
    /// An object, and the key whose value is read.
    Object(Option<String>),
    /// An array, and the number of the element, once there is one.
    Array(Option<usize>),
}

/// An error's words, behind the field that it is about: `linux.namespaces[0].type: invalid type: …`.
pub(super) fn explain(text: &[u8], error: &serde_json::Error) -> String {
    match field_at(text, error.line(), error.column()) {
        field if field.is_empty() => error.to_string(),
        field => format!("{field}: {error}"),
    }
}

/// As [`explain`], of a text that nobody has written: what the parser says of its lines is left out.
pub(super) fn explain_without_line(text: &[u8], error: &serde_json::Error) -> String {
    let words = explain(text, error);
    let line = format!(" at line {} column {}", error.line(), error.column());
    words.strip_suffix(&line).map_or_else(|| words.clone(), str::to_owned)
}

/// The field whose value is read at a place; lines and columns count from 1, in bytes. Empty for the document itself.
fn field_at(text: &[u8], line: usize, column: usize) -> String {
    let before: usize = text.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let mut rest = &text[..text.len().min(before + column)];
    let mut stack: Vec<Within> = Vec::new();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if matches!(first, b'"' | b'{' | b'[' | b'-' | b'0'..=b'9' | b'a'..=b'z')
            && let Some(Within::Array(element)) = stack.last_mut()
        {
            element.get_or_insert(0);
        }
        match first {
            b'{' => stack.push(Within::Object(None)),
            b'[' => stack.push(Within::Array(None)),
            b'}' | b']' => drop(stack.pop()),
            b',' => match stack.last_mut() {
                Some(Within::Object(key)) => *key = None,
                Some(Within::Array(element)) => *element = element.map(|element| element + 1),
                None => {}
            },
            b'"' => {
                let (string, after) = rest.split_at(end_of_string(rest));
                rest = after.get(1..).unwrap_or_default();
                if let Some(Within::Object(key @ None)) = stack.last_mut() {
                    let text = String::from_utf8_lossy(string);
                    *key = Some(text.chars().take(KEY_MAX).flat_map(char::escape_debug).collect());
                }
            }
            _ => {}
        }
    }
    path(&stack)
}

/// Where the closing quotation mark is, or the end of what there is.
fn end_of_string(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

fn path(stack: &[Within]) -> String {
    stack.iter().fold(String::new(), |mut path, within| {
        let _ = match within {
            Within::Object(Some(key)) if path.is_empty() => write!(path, "{key}"),
            Within::Object(Some(key)) => write!(path, ".{key}"),
            Within::Array(Some(element)) => write!(path, "[{element}]"),
            Within::Object(None) | Within::Array(None) => Ok(()),
        };
        path
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Spec, any_case};

    #[test]
    fn an_error_is_told_by_its_field() {
        for (text, field) in [
            (r#"{"process":{"user":{"uid":-1,"gid":0}}}"#, "process.user.uid"),
            (r#"{"process":{"user":{"uid":-1}}}"#, "process.user.uid"),
            ("{\n  \"process\": {\n    \"user\": {\n      \"uid\": \"root\"\n    }\n  }\n}\n", "process.user.uid"),
            (r#"{"hostname":"a\"b","mounts":"x"}"#, "mounts"),
            (r#"{"mounts":[{"type":"a"},7]}"#, "mounts[1]"),
            (r#"{"mounts":[{"type":"a","options":["b",{}]}]}"#, "mounts[0].options[1]"),
            (r#"{"process":{"args":{}}}"#, "process.args"),
            (r#"{"process":[1]}"#, "process"),
            (r#"{"annotations":{"a":7}}"#, "annotations.a"),
            (r#"{"linux":{"resources":{"pids":{"limit":"x"}}}}"#, "linux.resources.pids.limit"),
            (r#"{"root":{"path":nothing}}"#, "root.path"),
            (r#"{"linux":{"namespaces":[{"type":"pid"},"#, "linux.namespaces[1]"),
            ("[]", ""),
            ("", ""),
        ] {
            let Err(error) = any_case::from_str::<Spec>(text) else { continue };
            let told = error.to_string();
            assert!(field.is_empty() || told.starts_with(&format!("{field}: ")), "{text}: {told}");
        }
    }

    #[test]
    fn any_place_of_any_text_is_looked_at() {
        let text = br#"}{"a\"#;
        (0..9).for_each(|column| drop(field_at(text, 1, column)));
        assert_eq!(field_at(text, 9, 9), "a\\\\");
    }
}
