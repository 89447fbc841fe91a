//! A document in which a field comes as two objects, written anew with one: `"cpu": {"shares": 1}, "CPU": {"cpus": "0"}`
//! is a configuration that a tool of another case has amended, and runc reads both parts.
//!
//! Only what has one meaning is put together: fields of a struct, each of them once. What else comes twice stays so, and the
//! reader refuses it. Lists hold no such fields, and are copied as they are.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields that are maps, in lower case: their keys are names, of which each case is another, and the last counts.
const MAPS: [&str; 6] = ["annotations", "sysctl", "netdevices", "timeoffsets", "rdma", "unified"];

/// Most objects one in the other that are looked into: the deepest struct of the spec lies less deep.
const DEPTH_MAX: usize = 16;

/// The document with the objects of each field put together.
pub(super) fn joined(text: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut document = String::new();
    write_objects(&mut document, &[serde_json::from_slice(text)?], 0)?;
    Ok(document.into_bytes())
}

/// One object with the fields of all of these.
fn write_objects(document: &mut String, objects: &[&RawValue], depth: usize) -> serde_json::Result<()> {
    document.push('{');
    let mut separator = "";
    for (key, values) in by_field(objects)? {
        let is_struct = depth < DEPTH_MAX && !MAPS.contains(&key.as_str());
        if is_struct && values.iter().all(|(_, value)| value.get().starts_with('{')) {
            write_key(document, &mut separator, &values[0].0)?;
            let objects: Vec<_> = values.iter().map(|(_, value)| *value).collect();
            write_objects(document, &objects, depth + 1)?;
            continue;
        }
        for (key, value) in values {
            write_key(document, &mut separator, &key)?;
            document.push_str(value.get());
        }
    }
    document.push('}');
    Ok(())
}

/// The keys of some objects as they are written and their values, by the key in lower case.
type Fields<'a> = BTreeMap<String, Vec<(String, &'a RawValue)>>;

fn by_field<'a>(objects: &[&'a RawValue]) -> serde_json::Result<Fields<'a>> {
    let mut fields = Fields::new();
    for object in objects {
        for (key, value) in Entries::deserialize(*object)?.0 {
            fields.entry(key.to_ascii_lowercase()).or_default().push((key, value));
        }
    }
    Ok(fields)
}

fn write_key(document: &mut String, separator: &mut &str, key: &str) -> serde_json::Result<()> {
    document.push_str(separator);
    document.push_str(&serde_json::to_string(key)?);
    document.push(':');
    *separator = ",";
    Ok(())
}

/// An object's keys and values in their order, each as often as it comes.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Entries<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = values.next_entry()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}
