//! JSON whose keys may be written in any case: `"CPU": {"Cpus": "0"}` is `"cpu": {"cpus": "0"}`. So runc reads every document,
//! as Go does, and configurations are about that it alone has read; a key passed over in silence would be a limit that is not set.
//!
//! Wrapped around serde_json's own deserializer: where a struct is read, a key that is none of its fields but for the case
//! becomes that field's name. The keys of maps stay as they are. Of a struct that comes twice so, or just twice, all fields
//! count (see `joined.rs`). What else comes twice is refused, where Go puts the two together by rules of its own (null changes
//! a number never and a pointer always, lists are joined element by element): what two readers understand differently is
//! no order to follow.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{joined, place};

/// Reads a document; an error is told by its field.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    match read(text) {
        Err(error) if error.to_string().starts_with("duplicate field") => {
            let joined = joined::joined(text)?;
            read(&joined).map_err(|error| Error::custom(place::explain_without_line(&joined, &error)))
        }
        result => result.map_err(|error| Error::custom(place::explain(text, &error))),
    }
}

fn read<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(AnyCase(&mut json))?;
    json.end().map(|()| value)
}

/// As [`from_slice`].
pub fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    from_slice(text.as_bytes())
}

/// The names of a struct's fields.
type Fields = &'static [&'static str];

struct AnyCase<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for AnyCase<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(Eyes { visitor, fields: &[] })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_option(Eyes { visitor, fields: &[] })
    }

    /// By this name serde_json knows the text that is to stay as it is.
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, Eyes { visitor, fields: &[] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: Fields,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_struct(name, fields, Eyes { visitor, fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: Fields,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier
    }
}

/// Reads what is below in the same way.
struct Eyes<V> {
    visitor: V,
    fields: Fields,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Eyes<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(formatter)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<V::Value, E> {
        self.visitor.visit_bool(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        self.visitor.visit_i64(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        self.visitor.visit_u64(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        self.visitor.visit_f64(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        self.visitor.visit_str(value)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        self.visitor.visit_borrowed_str(value)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(AnyCase(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(AnyCase(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        // A struct could be read from the list of its fields' values, too.
        if !self.fields.is_empty() {
            return Err(Error::invalid_type(Unexpected::Seq, &self));
        }
        self.visitor.visit_seq(Below { values, fields: &[] })
    }

    fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Below { values, fields: self.fields })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, value: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(value)
    }
}

/// The elements of a list, or the keys and values of an object.
struct Below<A> {
    values: A,
    fields: Fields,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Below<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.values.next_element_seed(Seed(seed))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Below<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        match self.fields {
            [] => self.values.next_key_seed(seed),
            fields => self.values.next_key_seed(Key { seed, fields }),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.values.next_value_seed(Seed(seed))
    }
}

struct Seed<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(AnyCase(value))
    }
}

/// The field that a key of an object names.
struct Key<S> {
    seed: S,
    fields: Fields,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Key<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<S::Value, D::Error> {
        let key: Cow<'de, str> = Name::deserialize(key)?.0;
        self.seed.deserialize(field(&key, self.fields).into_deserializer())
    }
}

fn field(key: &str, fields: Fields) -> &str {
    if fields.contains(&key) {
        return key;
    }
    fields.iter().find(|field| field.eq_ignore_ascii_case(key)).copied().unwrap_or(key)
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    fn canonical(text: &str) -> serde_json::Value {
        serde_json::to_value(from_str::<Spec>(text).unwrap()).unwrap()
    }

    #[test]
    fn a_key_in_another_case_is_the_same_field() {
        let odd = r#"{"OCIVERSION":"1.2.0","Linux":{"RESOURCES":{"CPU":{"Cpus":"0","quota":1},"hugepageLimits":[{"pagesize":"2MB"}]},
            "Namespaces":[{"Type":"pid"}]},"process":{"User":{"UID":7},"args":["A"]}}"#;
        let usual = r#"{"ociVersion":"1.2.0","linux":{"resources":{"cpu":{"cpus":"0","quota":1},"hugepageLimits":[{"pageSize":"2MB"}]},
            "namespaces":[{"type":"pid"}]},"process":{"user":{"uid":7},"args":["A"]}}"#;
        assert_eq!(canonical(odd), canonical(usual));
        assert_ne!(canonical(odd), canonical("{}"));
    }

    #[test]
    fn the_keys_of_maps_stay_and_so_does_what_is_raw() {
        let text =
            r#"{"annotations":{"Process":"a","process":"b"},"Linux":{"unified":{},"seccomp":{ "DefaultAction" : 1 }}}"#;
        let spec: Spec = from_str(text).unwrap();
        assert_eq!(spec.annotations.len(), 2);
        assert_eq!(spec.linux.unwrap().seccomp.unwrap().get(), r#"{ "DefaultAction" : 1 }"#);
    }

    #[test]
    fn a_field_that_comes_twice_is_refused() {
        for (text, told) in [
            (r#"{"process":{"user":{"uid":1000,"UID":null}}}"#, "process.user.UID: duplicate field `uid`"),
            (r#"{"root":{"readonly":true,"readonly":null}}"#, "root.readonly: duplicate field `readonly`"),
            (
                r#"{"linux":{"seccomp":{}},"Linux":{"resources":{"cpu":{"mems":"0"},"CPU":null}}}"#,
                "linux.resources.CPU: ",
            ),
            (r#"{"linux":{},"linux":{},"process":{"args":["a"]},"Process":{"args":["b"]}}"#, "process.args: "),
            (r#"{"linux":{},"linux":{},"mounts":[{"type":"a","Type":"b"}]}"#, "mounts[0].Type: "),
            (r#"{"annotations":{"a":"1"},"Annotations":{"b":"2"}}"#, "Annotations: "),
        ] {
            let error = from_str::<Spec>(text).err().unwrap().to_string();
            assert!(error.starts_with(told), "{error}");
            assert!(!error.contains(" at line "), "of a text that nobody has written: {error}");
        }
        assert!(from_str::<Spec>(r#"{"annotations":{"a":"1","a":"2"}}"#).is_ok(), "what a map holds twice is no error");
    }

    #[test]
    fn of_a_struct_that_comes_twice_all_fields_count() {
        let twice = r#"{"linux":{"resources":{"cpu":{"shares":1},"CPU":{"Cpus":"0"},"unified":{"a":"1","A":"2"}}},
            "process":{"args":["a"]},"Linux":{"Namespaces":[{"type":"pid"}],"Resources":{"pids":{"limit":5}}}}"#;
        let once = r#"{"linux":{"resources":{"cpu":{"shares":1,"cpus":"0"},"unified":{"a":"1","A":"2"},"pids":{"limit":5}},
            "namespaces":[{"type":"pid"}]},"process":{"args":["a"]}}"#;
        assert_eq!(canonical(twice), canonical(once));
        let seccomp = r#"{"linux":{"seccomp":{"a":[1]}},"LINUX":{"seccomp":{"b":2}}}"#;
        assert_eq!(canonical(seccomp)["linux"]["seccomp"], serde_json::json!({ "a": [1], "b": 2 }));
    }

    #[test]
    fn however_deep_what_comes_twice_lies_there_is_an_answer() {
        let (open, close) = (r#"{"x":"#.repeat(100_000), "}".repeat(100_000));
        let text = format!(r#"{{"linux":{{}},"linux":{{}},"x":{open}1{close}}}"#);
        assert!(from_str::<Spec>(&text).is_ok());
    }

    #[test]
    fn an_object_is_no_list() {
        let error = from_str::<Spec>(r#"{"process":{"user":[7,7]}}"#).err().unwrap().to_string();
        assert!(error.starts_with("process.user: invalid type: sequence"), "{error}");
    }

    #[test]
    fn a_key_that_is_none_is_passed_over_and_an_end_is_an_end() {
        assert_eq!(canonical(r#"{"ociVersio":"1","x":{"y":[1,"z",{}]}}"#), canonical("{}"));
        assert!(from_str::<Spec>("{} {}").unwrap_err().to_string().contains("trailing"));
    }
}
