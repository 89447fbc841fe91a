//! containerd's filter language, in which listing and event subscription are narrowed.
//!
//! ```text
//! selectors := selector ("," selector)*            all must match
//! selector  := fieldpath [operator value]          without operator: the field is there
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="                  "~=" takes a regular expression, also between // or ||
//! value     := quoted | [^\s,]+
//! ```
//! Of several filters one must match. Field names of an object are told by [`Fields`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use regex_lite::Regex;

use crate::error::{Error, Result};

/// Longest filter, in bytes, and most filters of a request: both come from a peer.
const FILTER_MAX: usize = 16 << 10;
const FILTERS_MAX: usize = 1024;

/// What a filter can ask about an object.
pub(crate) trait Fields {
    /// The value at `path`; `None` when there is none.
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>>;
}

/// Filters of a request: any of them must match; none at all match everything.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<Filter>);

#[derive(Debug)]
struct Filter(Vec<Selector>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None`: not a regular expression. Nothing matches it, as in containerd.
    Matches(Option<Regex>),
}

impl Filters {
    pub(crate) fn parse(texts: &[String]) -> Result<Filters> {
        if texts.len() > FILTERS_MAX {
            return Err(Error::invalid("filters", format!("there are more than {FILTERS_MAX}")));
        }
        texts.iter().map(|text| Filter::parse(text)).collect::<Result<_>>().map(Filters)
    }

    pub(crate) fn matches(&self, object: &impl Fields) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.0.iter().all(|selector| selector.matches(object)))
    }
}

impl Filters {
    /// The values of which `field` must have one, where each filter says which: then only what has these need be looked
    /// at.
    pub(crate) fn pinned(&self, field: &str) -> Option<BTreeSet<&str>> {
        let values = self.0.iter().map(|filter| filter.0.iter().find_map(|selector| selector.pins(field)));
        values.collect::<Option<BTreeSet<&str>>>().filter(|values| !values.is_empty())
    }
}

impl Selector {
    fn pins(&self, field: &str) -> Option<&str> {
        match &self.test {
            Test::Equal(value) if self.path == [field] => Some(value),
            _ => None,
        }
    }

    fn matches(&self, object: &impl Fields) -> bool {
        let value = object.field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.as_deref() == Some(wanted),
            // A field that is not there is unlike any value but the empty one.
            Test::NotEqual(unwanted) => value.as_deref().unwrap_or_default() != unwanted,
            Test::Matches(None) => false,
            Test::Matches(Some(regex)) => regex.is_match(value.as_deref().unwrap_or_default()),
        }
    }
}

/// A label by the rest of a path: keys may contain dots.
pub(crate) fn label<'a>(labels: &'a BTreeMap<String, String>, path: &[String]) -> Option<Cow<'a, str>> {
    labels.get(&path.join(".")).map(|value| Cow::Borrowed(value.as_str()))
}

/// `text` if it is not empty.
pub(crate) fn present(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

impl Filter {
    fn parse(text: &str) -> Result<Filter> {
        if text.is_empty() {
            return Ok(Filter(Vec::new()));
        }
        if text.len() > FILTER_MAX {
            return Err(Error::invalid("filter", format!("it is longer than {FILTER_MAX} bytes")));
        }
        let mut parser = Parser { text, at: 0 };
        parser.selectors().map(Filter).map_err(|why| {
            Error::invalid(format!("filter {text:?}"), format!("{why}, at byte {}", parser.at.min(text.len())))
        })
    }
}

type Why = &'static str;

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>, Why> {
        let mut selectors = vec![self.selector()?];
        while let Some(next) = self.peek() {
            if next != ',' {
                return Err("expected a comma");
            }
            self.advance(next);
            selectors.push(self.selector()?);
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, Why> {
        let path = self.path()?;
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let test = match self.operator()? {
            "==" => Test::Equal(self.value(&['"'])?),
            "!=" => Test::NotEqual(self.value(&['"'])?),
            "~=" => Test::Matches(Regex::new(&self.value(&['"', '/', '|'])?).ok()),
            _ => return Err("expected one of the operators ==, != and ~="),
        };
        self.skip_space();
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>, Why> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.advance('.');
            path.push(self.field()?);
        }
        Ok(path)
    }

    fn field(&mut self) -> Result<String, Why> {
        self.skip_space();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let field = self.run(|c| c.is_ascii_alphanumeric() || c == '_');
        self.skip_space();
        if field.is_empty() { Err("expected a field name") } else { Ok(field) }
    }

    fn operator(&mut self) -> Result<&'static str, Why> {
        let written = self.run(|c| matches!(c, '=' | '!' | '~'));
        ["==", "!=", "~="].into_iter().find(|known| *known == written).ok_or("expected one of ==, != and ~=")
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, Why> {
        self.skip_space();
        match self.peek() {
            Some(quote) if quotes.contains(&quote) => self.quoted(quote),
            Some('"' | '/' | '|') => Err("this quote is for regular expressions only"),
            None | Some(',' | '.' | '=' | '!' | '~') => Err("expected a value"),
            Some(_) => Ok(self.run(|c| c != ',' && !c.is_whitespace() && !c.is_control())),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, Why> {
        self.advance(quote);
        let mut out = Vec::new();
        loop {
            match self.peek().ok_or("the quote is not closed")? {
                '\n' => return Err("the quote is not closed"),
                '\\' => self.escape(quote, &mut out)?,
                c => {
                    self.advance(c);
                    if c == quote {
                        return String::from_utf8(out).map_err(|_| "the quoted bytes are not UTF-8");
                    }
                    out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }

    /// One escape of Go's string syntax.
    fn escape(&mut self, quote: char, out: &mut Vec<u8>) -> Result<(), Why> {
        self.advance('\\');
        let c = self.peek().ok_or("the quote is not closed")?;
        if c.is_digit(8) {
            return self
                .number(8, 3)
                .and_then(|n| u8::try_from(n).map_err(|_| "octal escape out of range"))
                .map(|n| out.push(n));
        }
        self.advance(c);
        match c {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            'x' => out.push(self.number(16, 2)? as u8),
            'u' => self.unicode(4, out)?,
            'U' => self.unicode(8, out)?,
            '\\' => out.push(b'\\'),
            c if c == quote => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return Err("illegal escape sequence"),
        }
        Ok(())
    }

    fn unicode(&mut self, digits: usize, out: &mut Vec<u8>) -> Result<(), Why> {
        let c = char::from_u32(self.number(16, digits)?).ok_or("the escape is no character")?;
        out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    fn number(&mut self, base: u32, digits: usize) -> Result<u32, Why> {
        let text = self.text.get(self.at..self.at + digits).ok_or("illegal numeric escape")?;
        if !text.chars().all(|c| c.is_digit(base)) {
            return Err("illegal numeric escape");
        }
        self.at += digits;
        u32::from_str_radix(text, base).map_err(|_| "illegal numeric escape")
    }

    fn run(&mut self, accept: impl Fn(char) -> bool) -> String {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    fn skip_space(&mut self) {
        self.run(char::is_whitespace);
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn advance(&mut self, over: char) {
        self.at += over.len_utf8();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Thing(BTreeMap<String, String>);

    impl Fields for Thing {
        fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
            match path.first().map(String::as_str) {
                Some("name") => Some("docker.io/library/busybox:latest".into()),
                Some("labels") => label(&self.0, &path[1..]),
                _ => None,
            }
        }
    }

    fn matches(filters: &[&str]) -> bool {
        let labels = BTreeMap::from([("a.b/c".to_owned(), "x, y".to_owned()), ("plain".to_owned(), String::new())]);
        let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        Filters::parse(&texts).unwrap().matches(&Thing(labels))
    }

    #[test]
    fn selectors() {
        assert!(matches(&[]));
        assert!(matches(&[""]));
        assert!(matches(&["name"]));
        assert!(matches(&["name==docker.io/library/busybox:latest"]));
        assert!(!matches(&["name==busybox"]));
        assert!(matches(&["name!=busybox"]));
        assert!(matches(&["gone!=busybox"]));
        assert!(!matches(&["gone==busybox"]));
        assert!(matches(&["name~=busy", "gone"]));
        assert!(matches(&[r#"labels."a.b/c"=="x, y""#]));
        assert!(matches(&[r#"labels."a.b/c"~=|^x|, name"#]));
        assert!(matches(&["labels.plain"]));
        assert!(!matches(&["labels.other,name"]));
        assert!(!matches(&["name~=["]));
    }

    #[test]
    fn what_a_field_must_be() {
        let pinned = |filters: &[&str]| {
            let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            let filters = Filters::parse(&texts).unwrap();
            filters.pinned("id").map(|values| values.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(pinned(&["id==b", "image==x,id==a"]), Some(vec!["a".to_owned(), "b".to_owned()]));
        for open in [&[][..], &[""], &["id"], &["id!=a"], &["id~=a"], &["id==a", "image==x"], &["id.x==a"]] {
            assert_eq!(pinned(open), None, "{open:?}");
        }
    }

    #[test]
    fn what_does_not_parse() {
        for bad in
            ["name=", "name===x", "==x", "name==", "a..b", "a,", "name==\"x", "name==/x/", "a b", "\"\\q\"", "a.é"]
        {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn escapes_are_gos() {
        let mut parser = Parser { text: r#""\x41\101\u00e4\n\"""#, at: 0 };
        assert_eq!(parser.quoted('"').unwrap(), "AAä\n\"");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,60}") {
            let _ = Filters::parse(&[text]);
        }

        #[test]
        fn a_quoted_value_is_found(value in "[a-zA-Z0-9 ,.=/ä]{0,20}") {
            let filters = Filters::parse(&[format!("labels.k==\"{value}\"")]).unwrap();
            prop_assert!(filters.matches(&Thing(BTreeMap::from([("k".to_owned(), value)]))));
        }
    }
}
