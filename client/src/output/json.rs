//! JSON as docker prints it: `json` of templates in one line, `inspect` indented by four spaces, and the rows of
//! `--format json`, where Go's encoder escapes `<`, `>` and `&`.

use super::value::Value;

/// One line, nothing escaped that need not be.
pub(crate) fn compact(value: &Value) -> String {
    let mut writer = Writer { text: String::new(), indent: None, escape_html: false };
    writer.value(value, 0);
    writer.text
}

/// One line, with `<`, `>` and `&` escaped, as Go's json.Marshal does.
pub(crate) fn compact_escaped(value: &Value) -> String {
    let mut writer = Writer { text: String::new(), indent: None, escape_html: true };
    writer.value(value, 0);
    writer.text
}

/// Indented by four spaces.
pub(crate) fn pretty(value: &Value) -> String {
    let mut writer = Writer { text: String::new(), indent: Some("    "), escape_html: false };
    writer.value(value, 0);
    writer.text
}

struct Writer {
    text: String,
    indent: Option<&'static str>,
    escape_html: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null | Value::Lookup(_) => self.text.push_str("null"),
            Value::Bool(yes) => self.text.push_str(if *yes { "true" } else { "false" }),
            Value::Int(number) => self.text.push_str(&number.to_string()),
            Value::Float(number) => self.text.push_str(&number.to_string()),
            Value::Text(text) => self.string(text),
            Value::List(items) => self.sequence(('[', ']'), items.iter(), depth, Self::value),
            Value::Struct(fields) => {
                let shown = fields.iter().filter(|(_, value)| !matches!(value, Value::Lookup(_)));
                self.sequence(('{', '}'), shown, depth, |writer, (name, value), depth| {
                    writer.field(name, value, depth)
                });
            }
            Value::Map(entries) => {
                self.sequence(('{', '}'), entries.iter(), depth, |writer, (name, value), depth| {
                    writer.field(name, value, depth);
                });
            }
        }
    }

    fn field(&mut self, name: &str, value: &Value, depth: usize) {
        self.string(name);
        self.text.push_str(if self.indent.is_some() { ": " } else { ":" });
        self.value(value, depth);
    }

    fn sequence<T>(
        &mut self,
        (open, close): (char, char),
        items: impl Iterator<Item = T>,
        depth: usize,
        each: impl Fn(&mut Self, T, usize),
    ) {
        self.text.push(open);
        let mut any = false;
        for item in items {
            if any {
                self.text.push(',');
            }
            any = true;
            self.new_line(depth + 1);
            each(self, item, depth + 1);
        }
        if any {
            self.new_line(depth);
        }
        self.text.push(close);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            for _ in 0..depth {
                self.text.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                // Go escapes the two separators always, so that the text is also JavaScript.
                '\u{2028}' | '\u{2029}' => self.unicode_escape(character),
                '<' | '>' | '&' if self.escape_html => self.unicode_escape(character),
                low if low < ' ' => self.unicode_escape(low),
                other => self.text.push(other),
            }
        }
        self.text.push('"');
    }

    fn unicode_escape(&mut self, character: char) {
        self.text.push_str(&format!("\\u{:04x}", character as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        Value::structure([
            ("Name", "a<b>\"\n\u{1}".into()),
            ("None", Value::Null),
            ("Empty", Value::list([])),
            ("Ports", Value::map([("80/tcp".to_owned(), Value::list([true.into(), 7i64.into()]))])),
        ])
    }

    #[test]
    fn one_line_with_and_without_gos_escapes() {
        assert_eq!(
            compact(&sample()),
            r#"{"Name":"a<b>\"\n\u0001","None":null,"Empty":[],"Ports":{"80/tcp":[true,7]}}"#
        );
        assert_eq!(compact_escaped(&"a<b>&".into()), r#""a\u003cb\u003e\u0026""#);
    }

    #[test]
    fn indented_by_four() {
        assert_eq!(
            pretty(&sample()),
            "{\n    \"Name\": \"a<b>\\\"\\n\\u0001\",\n    \"None\": null,\n    \"Empty\": [],\n    \"Ports\": {\n        \
             \"80/tcp\": [\n            true,\n            7\n        ]\n    }\n}"
        );
    }
}
