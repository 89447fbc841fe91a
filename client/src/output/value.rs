//! A value that a person can print as JSON or take apart with a Go template.
//!
//! serde_json's own value forgets the order of fields or, with a feature, makes every crate of the workspace remember
//! it; docker's answers have an order, and templates tell a struct (whose fields must exist) from a map.

use std::collections::HashMap;

/// What a template and the JSON writer work on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// Fields in the order of their declaration; a template that names another one is in error.
    Struct(Vec<(&'static str, Value)>),
    /// Keys in sorted order, as Go prints them.
    Map(Vec<(String, Value)>),
    /// A method with one argument that looks a word up (`.Label "name"`); no part of the JSON.
    Lookup(HashMap<String, String>),
}

impl Value {
    pub(crate) fn structure<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
        Value::Struct(fields.into())
    }

    pub(crate) fn list(items: impl IntoIterator<Item = Value>) -> Value {
        Value::List(items.into_iter().collect())
    }

    /// A list of words, or null when there are none, as Go shows a nil slice.
    pub(crate) fn words_or_null(words: &[String]) -> Value {
        if words.is_empty() { Value::Null } else { Value::words(words) }
    }

    pub(crate) fn words(words: &[String]) -> Value {
        Value::list(words.iter().map(|word| Value::from(word.as_str())))
    }

    pub(crate) fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        Value::Map(entries)
    }

    pub(crate) fn word_map(entries: &HashMap<String, String>) -> Value {
        Value::map(entries.iter().map(|(key, word)| (key.clone(), Value::from(word.as_str()))))
    }

    /// The field or key of that name.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Struct(fields) => fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value),
            Value::Map(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Go's notion of an empty value, which `if`, `and`, `or` and `not` go by. A struct is never empty.
    pub(crate) fn is_truthy(&self) -> bool {
        match self {
            Value::Null => false,
            Value::Bool(yes) => *yes,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(items) => !items.is_empty(),
            Value::Map(entries) => !entries.is_empty(),
            Value::Struct(_) | Value::Lookup(_) => true,
        }
    }

    /// The word that errors use for this kind of value.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::List(_) => "list",
            Value::Struct(_) => "struct",
            Value::Map(_) => "map",
            Value::Lookup(_) => "method",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Value {
        Value::Bool(yes)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Int(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Value {
        match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(yes) => Value::Bool(yes),
            serde_json::Value::Number(number) => {
                number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(0.0)), Value::Int)
            }
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(items) => Value::list(items.into_iter().map(Value::from)),
            serde_json::Value::Object(fields) => {
                Value::map(fields.into_iter().map(|(key, value)| (key, Value::from(value))))
            }
        }
    }
}
