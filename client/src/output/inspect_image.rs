//! An image in docker's `inspect` shape. What the image's own config document says is shown as it says it.

use proto_engine::InspectImageResponse;

use super::time;
use super::value::Value;

/// docker's order of the keys of `Config`; others follow.
const CONFIG_KEYS: [&str; 12] = [
    "Hostname",
    "User",
    "ExposedPorts",
    "Env",
    "Cmd",
    "Healthcheck",
    "Image",
    "Volumes",
    "WorkingDir",
    "Entrypoint",
    "Labels",
    "StopSignal",
];

/// The whole object; the error says why the config document cannot be read.
pub(crate) fn object(image: &InspectImageResponse) -> Result<Value, serde_json::Error> {
    let summary = image.summary.clone().unwrap_or_default();
    let mut document: serde_json::Value = serde_json::from_slice(&image.config)?;
    let mut text = |key: &str| match document.get_mut(key).map(serde_json::Value::take) {
        Some(serde_json::Value::String(text)) => text,
        _ => String::new(),
    };
    let (created, author) = (text("created"), text("author"));
    let created = if created.is_empty() { time::utc(summary.created.as_ref()) } else { created };
    let config = document.get_mut("config").map(serde_json::Value::take).unwrap_or_default();
    let layers = Value::structure([("Type", "layers".into()), ("Layers", Value::words(&image.diff_ids))]);
    Ok(Value::structure([
        ("Id", summary.id.as_str().into()),
        ("RepoTags", Value::words(&summary.references)),
        ("RepoDigests", Value::words(&summary.digests)),
        ("Created", created.into()),
        ("Author", author.into()),
        ("Config", in_dockers_order(config)),
        ("Architecture", image.architecture.as_str().into()),
        ("Variant", image.variant.as_str().into()),
        ("Os", image.os.as_str().into()),
        ("Size", summary.size.into()),
        ("RootFS", layers),
    ]))
}

fn in_dockers_order(config: serde_json::Value) -> Value {
    let serde_json::Value::Object(mut fields) = config else { return Value::from(config) };
    let mut ordered = Vec::new();
    for key in CONFIG_KEYS {
        // docker shows these also when the image does not say them.
        let always = matches!(key, "User" | "Env" | "Cmd" | "WorkingDir" | "Entrypoint" | "Labels");
        match fields.remove(key) {
            Some(value) => ordered.push((key, Value::from(value))),
            None if matches!(key, "User" | "WorkingDir") => ordered.push((key, Value::from(""))),
            None if always => ordered.push((key, Value::Null)),
            None => {}
        }
    }
    Value::Struct(ordered)
}

#[cfg(test)]
mod tests {
    use super::super::format::object as formatted;
    use super::*;

    fn nginx() -> InspectImageResponse {
        InspectImageResponse {
            config: br#"{"created":"2026-01-02T03:04:05Z","architecture":"amd64","config":{"Env":["A=1"],"Cmd":["sh"],
                "Labels":{"x":"y"},"ExposedPorts":{"80/tcp":{}}}}"#
                .to_vec(),
            os: "linux".to_owned(),
            diff_ids: vec!["sha256:00".to_owned()],
            ..InspectImageResponse::default()
        }
    }

    #[test]
    fn templates_that_people_use() {
        let object = object(&nginx()).unwrap();
        for (template, shown) in [
            ("{{.Created}} {{.Os}}", "2026-01-02T03:04:05Z linux\n"),
            ("{{json .Config.Cmd}} {{.Config.Env}} {{json .Config.Entrypoint}}", "[\"sh\"] [A=1] null\n"),
            ("{{.Config.Labels.x}} {{json .Config.ExposedPorts}}", "y {\"80/tcp\":{}}\n"),
            ("{{len .RootFS.Layers}}", "1\n"),
        ] {
            assert_eq!(formatted(template, &object).unwrap(), shown);
        }
    }

    #[test]
    fn a_config_that_is_no_json_is_an_error() {
        assert!(object(&InspectImageResponse::default()).is_err());
    }
}
