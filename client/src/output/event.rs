//! Events as docker prints them: a line each, or the JSON that its API sends.

use proto_engine::Event;

use super::time;
use super::value::Value;

/// `TIME TYPE ACTION ID (name=value, …)`.
pub(crate) fn line(event: &Event) -> String {
    let at = event.at.as_ref().map(time::local_fixed).unwrap_or_default();
    let mut attributes: Vec<String> = event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    attributes.sort();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!("{at} {} {} {}{attributes}", event.r#type, event.action, event.id)
}

/// The event with docker's keys.
pub(crate) fn object(event: &Event) -> Value {
    let at = event.at.unwrap_or_default();
    let nanos = at.seconds.saturating_mul(1_000_000_000).saturating_add(at.nanos.into());
    let actor =
        Value::structure([("ID", event.id.as_str().into()), ("Attributes", Value::word_map(&event.attributes))]);
    let mut fields = Vec::new();
    // Older names of the same facts, which docker sends for containers and images only.
    if event.r#type == "container" || event.r#type == "image" {
        fields.push(("status", Value::from(event.action.as_str())));
        fields.push(("id", event.id.as_str().into()));
    }
    if let Some(image) = event.attributes.get("image").filter(|_| event.r#type == "container") {
        fields.push(("from", image.as_str().into()));
    }
    fields.extend([
        ("Type", Value::from(event.r#type.as_str())),
        ("Action", event.action.as_str().into()),
        ("Actor", actor),
        ("scope", "local".into()),
        ("time", Value::Int(at.seconds)),
        ("timeNano", Value::Int(nanos)),
    ]);
    Value::Struct(fields)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::super::json;
    use super::*;

    fn start() -> Event {
        Event {
            r#type: "container".to_owned(),
            action: "start".to_owned(),
            id: "0123".to_owned(),
            attributes: [("name".to_owned(), "web".to_owned()), ("image".to_owned(), "nginx".to_owned())].into(),
            at: Some(Timestamp { seconds: 1_700_000_000, nanos: 5 }),
        }
    }

    #[test]
    fn a_line_has_sorted_attributes() {
        let line = line(&start());
        assert!(line.ends_with(" container start 0123 (image=nginx, name=web)"), "{line}");
    }

    #[test]
    fn the_object_has_dockers_keys() {
        assert_eq!(
            json::compact(&object(&start())),
            r#"{"status":"start","id":"0123","from":"nginx","Type":"container","Action":"start","Actor":{"ID":"0123","Attributes":{"image":"nginx","name":"web"}},"scope":"local","time":1700000000,"timeNano":1700000000000000005}"#
        );
    }
}
