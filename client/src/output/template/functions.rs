//! The functions of templates: Go's own and docker's.

use std::cmp::Ordering;

use super::super::value::Value;
use super::super::{json, quote};
use super::eval::Mode;

/// Widest field that `printf` pads to.
const WIDTH_MAX: usize = 4096;

const NAMES: [&str; 23] = [
    "and", "eq", "ge", "gt", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not", "or", "pad", "print",
    "printf", "println", "slice", "split", "title", "truncate", "upper",
];

/// Whether there is a function of that name.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Calls the function `name`.
pub(super) fn call(name: &str, arguments: &[Value], mode: Mode) -> Result<Value, String> {
    if mode == Mode::Headings && matches!(name, "json" | "split" | "join" | "title" | "lower" | "upper" | "truncate") {
        return arguments.first().cloned().ok_or_else(|| wants(name, "an argument"));
    }
    match name {
        "json" => one(name, arguments).map(|value| Value::Text(json::compact(value))),
        "not" => one(name, arguments).map(|value| Value::Bool(!value.is_truthy())),
        "len" => length(one(name, arguments)?),
        "lower" => text(name, arguments).map(|text| Value::Text(text.to_lowercase())),
        "upper" => text(name, arguments).map(|text| Value::Text(text.to_uppercase())),
        "title" => text(name, arguments).map(|text| Value::Text(title(text))),
        "split" => split(arguments),
        "join" => join(arguments),
        "pad" => pad(arguments),
        "truncate" => truncate(arguments),
        "index" => index(arguments),
        "slice" => slice(arguments),
        "eq" | "ne" | "lt" | "le" | "gt" | "ge" => compare(name, arguments),
        "print" => Ok(Value::Text(print(arguments))),
        "println" => Ok(Value::Text(println(arguments))),
        "printf" => printf(arguments),
        _ => Err(format!("function \"{name}\" not defined")),
    }
}

/// A value as `{{.}}` prints it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        other => inner(other),
    }
}

fn inner(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(yes) => yes.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::List(items) => format!("[{}]", spaced(items.iter().map(inner))),
        Value::Struct(fields) => format!("{{{}}}", spaced(fields.iter().map(|(_, value)| inner(value)))),
        Value::Map(entries) => {
            format!("map[{}]", spaced(entries.iter().map(|(key, value)| format!("{key}:{}", inner(value)))))
        }
        Value::Lookup(_) => "<method>".to_owned(),
    }
}

fn spaced(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

fn wants(name: &str, what: &str) -> String {
    format!("wrong arguments for {name}: want {what}")
}

fn one<'a>(name: &str, arguments: &'a [Value]) -> Result<&'a Value, String> {
    match arguments {
        [value] => Ok(value),
        _ => Err(wants(name, "one argument")),
    }
}

fn text<'a>(name: &str, arguments: &'a [Value]) -> Result<&'a str, String> {
    match arguments {
        [Value::Text(text)] => Ok(text),
        _ => Err(wants(name, "a string")),
    }
}

fn length(value: &Value) -> Result<Value, String> {
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.len(),
        Value::Map(entries) => entries.len(),
        other => return Err(format!("len of a {}", other.kind())),
    };
    Ok(Value::Int(length as i64))
}

fn title(text: &str) -> String {
    let mut at_start = true;
    text.chars()
        .map(|character| {
            let upper = at_start && character.is_alphabetic();
            at_start = !(character.is_alphanumeric() || character == '_' || character == '\'');
            if upper { character.to_uppercase().next().unwrap_or(character) } else { character }
        })
        .collect()
}

fn split(arguments: &[Value]) -> Result<Value, String> {
    match arguments {
        [Value::Text(text), Value::Text(separator)] if separator.is_empty() => {
            Ok(Value::list(text.chars().map(|character| Value::Text(character.to_string()))))
        }
        [Value::Text(text), Value::Text(separator)] => Ok(Value::list(text.split(separator.as_str()).map(Value::from))),
        _ => Err(wants("split", "a string and a separator")),
    }
}

fn join(arguments: &[Value]) -> Result<Value, String> {
    let words: Vec<String> = match arguments {
        [Value::Null, Value::Text(_)] => Vec::new(),
        [Value::List(items), Value::Text(_)] => items.iter().map(inner).collect(),
        [Value::Map(entries), Value::Text(_)] => {
            let mut words: Vec<String> = entries.iter().map(|(_, value)| inner(value)).collect();
            words.sort();
            words
        }
        _ => return Err(wants("join", "a list and a separator")),
    };
    let [_, Value::Text(separator)] = arguments else { return Err(wants("join", "a list and a separator")) };
    Ok(Value::Text(words.join(separator)))
}

fn pad(arguments: &[Value]) -> Result<Value, String> {
    match arguments {
        [Value::Text(text), ..] if text.is_empty() => Ok(Value::from("")),
        [Value::Text(text), Value::Int(before), Value::Int(after)] => {
            let spaces = |count: i64| " ".repeat(usize::try_from(count).unwrap_or(0).min(WIDTH_MAX));
            Ok(Value::Text(format!("{}{text}{}", spaces(*before), spaces(*after))))
        }
        _ => Err(wants("pad", "a string and two numbers")),
    }
}

fn truncate(arguments: &[Value]) -> Result<Value, String> {
    match arguments {
        [Value::Text(text), Value::Int(length)] => {
            let length = usize::try_from(*length).map_err(|_| wants("truncate", "a length that is not negative"))?;
            let end = (0..=length.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            Ok(Value::from(&text[..end]))
        }
        _ => Err(wants("truncate", "a string and a length")),
    }
}

fn index(arguments: &[Value]) -> Result<Value, String> {
    let (value, keys) = arguments.split_first().ok_or_else(|| wants("index", "a value and keys"))?;
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::List(items), Value::Int(at)) => {
                let item = usize::try_from(*at).ok().and_then(|at| items.get(at));
                item.cloned().ok_or_else(|| format!("error calling index: index out of range: {at}"))?
            }
            // A missing key is Go's zero value; all maps that docker shows hold strings or lists.
            (Value::Map(entries), Value::Text(name)) => {
                let zero = match entries.first() {
                    Some((_, Value::Text(_))) | None => Value::from(""),
                    Some(_) => Value::Null,
                };
                value.field(name).cloned().unwrap_or(zero)
            }
            (Value::Null, _) => return Err("error calling index: index of untyped nil".to_owned()),
            (other, key) => return Err(format!("error calling index: a {} by a {}", other.kind(), key.kind())),
        };
    }
    Ok(value)
}

fn slice(arguments: &[Value]) -> Result<Value, String> {
    let (value, ends) = arguments.split_first().ok_or_else(|| wants("slice", "a value and positions"))?;
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.len(),
        other => return Err(format!("error calling slice: can't slice a {}", other.kind())),
    };
    let position = |at: usize, default: usize| match ends.get(at) {
        None => Ok(default),
        Some(Value::Int(number)) => usize::try_from(*number)
            .ok()
            .filter(|number| *number <= length)
            .ok_or_else(|| format!("error calling slice: index out of range: {number}")),
        Some(other) => Err(format!("error calling slice: cannot index by a {}", other.kind())),
    };
    let (start, end) = (position(0, 0)?, position(1, length)?);
    if start > end {
        return Err(format!("error calling slice: invalid positions: {start} > {end}"));
    }
    match value {
        Value::Text(text) => {
            text.get(start..end).map(Value::from).ok_or_else(|| "error calling slice: inside a character".to_owned())
        }
        Value::List(items) => Ok(Value::list(items[start..end].iter().cloned())),
        _ => Err(wants("slice", "a string or list")),
    }
}

fn compare(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let [first, others @ ..] = arguments else { return Err(wants(name, "two arguments")) };
    if others.is_empty() || (name != "eq" && others.len() > 1) {
        return Err(wants(name, "two arguments"));
    }
    if name == "eq" || name == "ne" {
        let equal = others.iter().any(|other| order(first, other) == Some(Ordering::Equal) || first == other);
        return Ok(Value::Bool(equal == (name == "eq")));
    }
    let order = order(first, &others[0]).ok_or_else(|| {
        format!("error calling {name}: cannot compare a {} with a {}", first.kind(), others[0].kind())
    })?;
    Ok(Value::Bool(match name {
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    }))
}

fn order(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => Some(one.cmp(other)),
        (Value::Float(one), Value::Float(other)) => one.partial_cmp(other),
        (Value::Text(one), Value::Text(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

/// Go's Sprint: a space between two operands when neither is a string.
fn print(arguments: &[Value]) -> String {
    let mut text = String::new();
    for (at, value) in arguments.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if at > 0 && !is_text(value) && !is_text(&arguments[at - 1]) {
            text.push(' ');
        }
        text.push_str(&inner(value));
    }
    text
}

fn println(arguments: &[Value]) -> String {
    format!("{}\n", spaced(arguments.iter().map(inner)))
}

fn printf(arguments: &[Value]) -> Result<Value, String> {
    let Some((Value::Text(format), values)) = arguments.split_first() else {
        return Err(wants("printf", "a format and its values"));
    };
    let mut values = values.iter();
    let mut text = String::new();
    let mut rest = format.as_str();
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        rest = verb(&rest[at + 1..], &mut values, &mut text)?;
    }
    text.push_str(rest);
    Ok(Value::Text(text))
}

/// Formats one value by the verb that `rest` begins with; returns what follows it.
fn verb<'a, 'v>(
    rest: &'a str,
    values: &mut impl Iterator<Item = &'v Value>,
    text: &mut String,
) -> Result<&'a str, String> {
    let flags = rest.len() - rest.trim_start_matches(['-', '0', '+']).len();
    let width_end = flags + rest[flags..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - flags);
    let (left, zeros) = (rest[..flags].contains('-'), rest[..flags].contains('0'));
    let width = rest[flags..width_end].parse::<usize>().unwrap_or(0).min(WIDTH_MAX);
    let verb = rest[width_end..].chars().next().ok_or("printf: % at the end of the format")?;
    let after = &rest[width_end + verb.len_utf8()..];
    if verb == '%' {
        text.push('%');
        return Ok(after);
    }
    let value = values.next().ok_or_else(|| format!("printf: no value for %{verb}"))?;
    let word = match (verb, value) {
        ('s' | 'v', value) => inner(value),
        ('d', Value::Int(number)) => number.to_string(),
        ('x', Value::Int(number)) => format!("{number:x}"),
        ('x', Value::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('q', Value::Text(text)) => quote::quoted(text),
        ('t', Value::Bool(yes)) => yes.to_string(),
        (verb, value) => return Err(format!("printf: %{verb} of a {} is not supported", value.kind())),
    };
    let padding = width.saturating_sub(word.chars().count());
    match (left, zeros) {
        (true, _) => text.push_str(&format!("{word}{}", " ".repeat(padding))),
        (false, true) => text.push_str(&format!("{}{word}", "0".repeat(padding))),
        (false, false) => text.push_str(&format!("{}{word}", " ".repeat(padding))),
    }
    Ok(after)
}
