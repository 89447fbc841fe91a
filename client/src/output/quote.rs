//! Words as Go's `%q` quotes them (the COMMAND column), and words cut to a width.

/// `text` in double quotes, with Go's escapes.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            low if low < ' ' || low == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", low as u32)),
            high if high.is_control() => quoted.push_str(&format!("\\u{:04x}", high as u32)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// `text` in at most `width` characters, the last one an ellipsis when something was cut.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// The first 12 digits of an id or digest, without its algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    digits.get(..12).unwrap_or(digits)
}

/// A command as docker's daemon joins it for lists: arguments with a space stand in single quotes.
pub(crate) fn joined(command: &[String]) -> String {
    let mut words = command.iter();
    let mut text = words.next().cloned().unwrap_or_default();
    for word in words {
        text.push(' ');
        if word.contains(' ') {
            text.push_str(&format!("'{word}'"));
        } else {
            text.push_str(word);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go() {
        assert_eq!(quoted("sh -c \"a\\b\n\u{1}é…\""), "\"sh -c \\\"a\\\\b\\n\\x01é…\\\"\"");
    }

    #[test]
    fn cuts_at_the_width() {
        assert_eq!(ellipsis("/docker-entrypoint.sh nginx -g", 20), "/docker-entrypoint.…");
        assert_eq!(ellipsis("sh", 20), "sh");
    }

    #[test]
    fn ids_are_shortened() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("0123"), "0123");
    }

    #[test]
    fn commands_are_joined_as_dockerd_does() {
        let words = ["sh", "-c", "exit 7"].map(str::to_owned);
        assert_eq!(joined(&words), "sh -c 'exit 7'");
    }
}
