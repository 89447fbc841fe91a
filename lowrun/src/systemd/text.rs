//! Values as annotations write them: the text form of GLib's variants, which systemd properties in annotations have had
//! since crun and runc introduced them: `'kill'`, `true`, `uint64 5`, `@au [1, 2]`, `['a', 'b']`.

use super::wire::Value;

/// Reads a value; the error says what is wrong with it.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let value = parser.value(None)?;
    parser.skip_blanks();
    match parser.rest() {
        "" => Ok(value),
        rest => Err(format!("unexpected {rest:?} after the value")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Of values in values.
    depth: usize,
}

/// Deepest values, as of D-Bus itself, and longest signatures.
const DEPTH_MAX: usize = 32;

/// Words for types, and their signatures.
const TYPES: [(&str, &str); 11] = [
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
];

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn takes(&mut self, letter: char) -> bool {
        self.skip_blanks();
        let has = self.rest().starts_with(letter);
        self.at += if has { letter.len_utf8() } else { 0 };
        has
    }

    /// A word of letters, digits and what numbers are made of.
    fn word(&mut self) -> &'a str {
        self.skip_blanks();
        let rest = self.rest();
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || "+-._".contains(letter);
        let word = &rest[..rest.find(|letter| !is_part(letter)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// `wanted` is the signature that a type in front of the value asked for.
    fn value(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        if self.depth == DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} values in each other"));
        }
        self.depth += 1;
        let value = self.inner_value(wanted);
        self.depth -= 1;
        value
    }

    fn inner_value(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        self.skip_blanks();
        match self.rest().chars().next() {
            None => Err("is empty".to_owned()),
            Some('@') => {
                self.at += 1;
                let rest = self.rest();
                let signature = &rest[..rest.find(char::is_whitespace).unwrap_or(rest.len())];
                self.at += signature.len();
                check_signature(signature)?;
                self.value(Some(signature))
            }
            Some('[') => self.array(wanted),
            Some(quote @ ('\'' | '"')) => self.quoted(quote).and_then(|text| as_text(text, wanted)),
            Some(_) => match self.word() {
                "" => Err(format!("{:?} begins no value", self.rest())),
                word => match TYPES.iter().find(|(name, _)| *name == word) {
                    Some((_, signature)) => self.value(Some(signature)),
                    None => scalar(word, wanted),
                },
            },
        }
    }

    fn array(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        let mut element = match wanted {
            Some(signature) => {
                Some(signature.strip_prefix('a').ok_or_else(|| format!("a list is no {signature:?}"))?.to_owned())
            }
            None => None,
        };
        let mut items = Vec::new();
        self.takes('[');
        while !self.takes(']') {
            if !items.is_empty() && !self.takes(',') {
                return Err("a list has commas between its values and ends with ]".to_owned());
            }
            let item = self.value(element.as_deref())?;
            // The first one decides for all.
            element.get_or_insert_with(|| item.signature());
            items.push(item);
        }
        element
            .map(|element| Value::Array(element, items))
            .ok_or_else(|| "an empty list needs a type: @as []".to_owned())
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut letters = self.rest().char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                _ if letter == quote => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, letter)) => text.push(letter),
                    None => break,
                },
                _ => text.push(letter),
            }
        }
        Err("a string without its end".to_owned())
    }
}

/// Lists and what they are of: more is not read here, and what is no signature would be read as what follows it.
fn check_signature(text: &str) -> Result<(), String> {
    let element = text.trim_start_matches('a');
    let is_known = TYPES.iter().map(|(_, letter)| *letter).chain(["g"]).any(|letter| letter == element);
    if is_known && text.len() <= DEPTH_MAX { Ok(()) } else { Err(format!("{text:?} is no type")) }
}

fn as_text(text: String, wanted: Option<&str>) -> Result<Value, String> {
    if text.contains('\0') {
        return Err("a string with a NUL".to_owned());
    }
    match wanted {
        None | Some("s") => Ok(Value::Str(text)),
        Some("o") => Ok(Value::ObjectPath(text)),
        Some("g") => check_signature(&text).map(|()| Value::Signature(text)),
        Some(other) => Err(format!("a string is no {other:?}")),
    }
}

/// A number or a truth; a number without a type is an int32, or a double where it looks like one.
fn scalar(word: &str, wanted: Option<&str>) -> Result<Value, String> {
    if let Some(truth) = [("true", true), ("false", false)].iter().find(|(name, _)| *name == word) {
        return match wanted {
            None | Some("b") => Ok(Value::Bool(truth.1)),
            Some(other) => Err(format!("{word} is no {other:?}")),
        };
    }
    let is_whole = integer(word).is_some();
    match wanted.unwrap_or(if is_whole { "i" } else { "d" }) {
        "y" => whole(word).map(Value::Byte),
        "n" => whole(word).map(Value::I16),
        "q" => whole(word).map(Value::U16),
        "i" => whole(word).map(Value::I32),
        "u" => whole(word).map(Value::U32),
        "x" => whole(word).map(Value::I64),
        "t" => whole(word).map(Value::U64),
        "d" => word.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::F64),
        _ => None,
    }
    .ok_or_else(|| format!("{word:?} is no value{}", wanted.map(|of| format!(" of type {of:?}")).unwrap_or_default()))
}

fn whole<T: TryFrom<i128>>(word: &str) -> Option<T> {
    integer(word).and_then(|number| T::try_from(number).ok())
}

/// Decimal, `0x` hexadecimal or `0` octal.
fn integer(word: &str) -> Option<i128> {
    let (negative, digits) = match word.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    let magnitude = match digits.as_bytes() {
        [b'0', b'x', ..] => i128::from_str_radix(&digits[2..], 16).ok()?,
        [b'0', _, ..] => i128::from_str_radix(&digits[1..], 8).ok()?,
        _ if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    Some(if negative { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_and_without_types() {
        for (text, value) in [
            ("'kill'", Value::text("kill")),
            (r#" "it's" "#, Value::text("it's")),
            (r"'a\'b'", Value::text("a'b")),
            ("true", Value::Bool(true)),
            ("17", Value::I32(17)),
            ("-0x10", Value::I32(-16)),
            ("010", Value::I32(8)),
            ("1.5", Value::F64(1.5)),
            ("uint64 5000000", Value::U64(5_000_000)),
            ("@t 5", Value::U64(5)),
            ("byte 255", Value::Byte(255)),
            ("objectpath '/a'", Value::ObjectPath("/a".to_owned())),
            ("@as []", Value::texts::<String>([])),
            ("['a', 'b']", Value::texts(["a", "b"])),
            ("@au [1,2]", Value::Array("u".to_owned(), vec![Value::U32(1), Value::U32(2)])),
            ("[uint32 1, 2]", Value::Array("u".to_owned(), vec![Value::U32(1), Value::U32(2)])),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "'open",
            "[1, 'a']",
            "[]",
            "byte 256",
            "uint32 -1",
            "@s 5",
            "true x",
            "moon",
            "(1)",
            "@as 'a'",
            "[1 2]",
            "'a\0b'",
            "@a\0 []",
            "@a []",
            "@av []",
            "@a{sv} []",
            "@g 'a(s'",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn depth_and_signatures_have_bounds() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(31)).is_ok() && parse(&nested(32)).is_err());
        for text in [nested(1_000_000), "@s ".repeat(1_000_000), "string ".repeat(1_000_000)] {
            assert!(parse(&text).is_err());
        }
        assert!(parse(&format!("@{}s []", "a".repeat(31))).is_ok());
        assert!(parse(&format!("@{}s []", "a".repeat(256))).is_err());
    }
}
