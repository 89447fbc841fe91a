//! `--mount`: `type=bind,source=/host,target=/container,readonly` or `type=tmpfs,target=/t,tmpfs-size=64m`.

use std::path::Path;

use proto_engine::{Mount, mount::Kind};

use super::volume::{PROPAGATIONS, absolute};
use super::{Parsed, csv, number, size};

/// What was said so far.
#[derive(Default)]
struct Said {
    kind: Option<String>,
    mount: Mount,
    /// Keys that only a bind mount, or only a tmpfs, has.
    bind_key: Option<String>,
    tmpfs_key: Option<String>,
}

/// The mount that one `--mount` stands for. `here` is what a source beginning with `.` is relative to.
pub(crate) fn mount(text: &str, here: &Path) -> Parsed<Mount> {
    let text = text.trim();
    if text.is_empty() {
        return Err("value is empty".to_owned());
    }
    let mut said = Said::default();
    for field in csv::fields(text)? {
        take_field(&mut said, &field, here)?;
    }
    finish(said)
}

fn take_field(said: &mut Said, field: &str, here: &Path) -> Parsed<()> {
    let (key, value) = match field.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (field, None),
    };
    if key.trim() != key {
        return Err(format!("invalid option '{}' in '{field}': option should not have whitespace", key.trim()));
    }
    match value {
        Some(value) if value.trim().is_empty() => return Err(format!("invalid value for '{key}': value is empty")),
        Some(value) if value.trim() != value => {
            return Err(format!("invalid value for '{key}' in '{field}': value should not have whitespace"));
        }
        _ => {}
    }
    let key = key.to_ascii_lowercase();
    if value.is_none() && !matches!(key.as_str(), "readonly" | "ro" | "bind-create-src" | "bind-nonrecursive") {
        return Err(format!("invalid field '{field}' must be a key=value pair"));
    }
    if key.starts_with("bind-") {
        said.bind_key.get_or_insert_with(|| key.clone());
    }
    if key.starts_with("tmpfs-") {
        said.tmpfs_key.get_or_insert_with(|| key.clone());
    }
    set(said, &key, value, field, here)
}

fn set(said: &mut Said, key: &str, value: Option<&str>, field: &str, here: &Path) -> Parsed<()> {
    let mount = &mut said.mount;
    let text = value.unwrap_or_default();
    match key {
        "type" => said.kind = Some(text.to_ascii_lowercase()),
        "source" | "src" => mount.source = if text.starts_with('.') { absolute(text, here)? } else { text.to_owned() },
        "target" | "dst" | "destination" => text.clone_into(&mut mount.target),
        "readonly" | "ro" => mount.read_only = flag(key, value)?,
        "bind-propagation" => {
            let propagation = text.to_ascii_lowercase();
            if !PROPAGATIONS.contains(&propagation.as_str()) {
                return Err(format!("invalid propagation mode: {text} ({} are accepted)", PROPAGATIONS.join(", ")));
            }
            mount.propagation = propagation;
        }
        "bind-nonrecursive" => mount.non_recursive = flag(key, value)?,
        "bind-recursive" => match text {
            "enabled" => mount.non_recursive = false,
            "disabled" => mount.non_recursive = true,
            _ => return Err(format!("invalid value for {key}: {text} (enabled and disabled are supported)")),
        },
        "bind-create-src" => mount.create_source = flag(key, value)?,
        "tmpfs-size" => mount.tmpfs_size = size::bytes(text).map_err(|_| format!("invalid value for {key}: {text}"))?,
        "tmpfs-mode" => mount.tmpfs_mode = mode(text).ok_or_else(|| format!("invalid value for {key}: {text}"))?,
        // As for --volume: it means nothing on Linux.
        "consistency" => {}
        _ if key.starts_with("volume-") || key.starts_with("image-") => {
            return Err(format!("option '{key}' in '{field}' is not supported: bind and tmpfs mounts are"));
        }
        _ => return Err(format!("unknown option '{key}' in '{field}'")),
    }
    Ok(())
}

fn flag(key: &str, value: Option<&str>) -> Parsed<bool> {
    match value {
        None => Ok(true),
        Some(value) => number::boolean(value).map_err(|_| {
            format!("invalid value for '{key}': invalid boolean value (\"{value}\"): must be one of \"true\", \"1\", \"false\", or \"0\"")
        }),
    }
}

/// Permission bits in octal.
pub(super) fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

fn finish(said: Said) -> Parsed<Mount> {
    let Said { kind, mut mount, bind_key, tmpfs_key } = said;
    let kind = match kind.as_deref() {
        Some("bind") => Kind::Bind,
        Some("tmpfs") => Kind::Tmpfs,
        None | Some("volume") => {
            return Err("volumes are not supported: say type=bind with an absolute source, or type=tmpfs".to_owned());
        }
        Some(other) => return Err(format!("invalid mount type '{other}': bind and tmpfs are supported")),
    };
    mount.kind = kind.into();
    match (kind, bind_key, tmpfs_key) {
        (Kind::Bind, _, Some(key)) => return Err(format!("cannot mix '{key}' with mount type 'bind'")),
        (Kind::Tmpfs, Some(key), _) => return Err(format!("cannot mix '{key}' with mount type 'tmpfs'")),
        _ => {}
    }
    if mount.target.is_empty() {
        return Err("target is required".to_owned());
    }
    if !mount.target.starts_with('/') {
        return Err(format!("invalid mount path: '{}' mount path must be absolute", mount.target));
    }
    match kind {
        Kind::Bind if mount.source.is_empty() => Err("source is required when specifying bind mounts".to_owned()),
        Kind::Bind if !mount.source.starts_with('/') => {
            Err(format!("invalid mount path: '{}' mount path must be absolute", mount.source))
        }
        Kind::Tmpfs if !mount.source.is_empty() => Err("a tmpfs mount has no source".to_owned()),
        _ => Ok(mount),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Parsed<Mount> {
        mount(text, Path::new("/here"))
    }

    #[test]
    fn bind_mounts() {
        for text in [
            "type=bind,target=/b,source=/a",
            "type=bind,src=/a,dst=/b",
            "type=BIND,source=/a,destination=/b,readonly=false",
            "TYPE=bind,Source=/a,Target=/b",
        ] {
            let mount = parsed(text).unwrap();
            assert_eq!(
                (mount.kind(), &*mount.source, &*mount.target, mount.read_only),
                (Kind::Bind, "/a", "/b", false)
            );
            assert!(!mount.create_source);
        }
        for text in ["readonly", "ro", "readonly=1", "readonly=true", "ro=true"] {
            assert!(parsed(&format!("type=bind,source=/a,target=/b,{text}")).unwrap().read_only, "{text}");
        }
        let mount =
            parsed("type=bind,\"source=/a,b\",target=/c,bind-propagation=rslave,bind-recursive=disabled").unwrap();
        assert_eq!((&*mount.source, &*mount.propagation, mount.non_recursive), ("/a,b", "rslave", true));
        assert_eq!(parsed("type=bind,source=./x,target=/c").unwrap().source, "/here/x");
    }

    #[test]
    fn tmpfs_mounts() {
        let mount = parsed("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770").unwrap();
        assert_eq!((mount.kind(), mount.tmpfs_size, mount.tmpfs_mode), (Kind::Tmpfs, 64 << 20, 0o1770));
    }

    #[test]
    fn refused() {
        for (text, words) in [
            ("", "value is empty"),
            ("bogus", "must be a key=value pair"),
            ("bogus=foo", "unknown option 'bogus' in 'bogus=foo'"),
            ("type=bind", "target is required"),
            ("type=bind,target=/b", "source is required"),
            ("type=bind,source=a,target=/b", "mount path must be absolute"),
            ("type=bind,source=/a,target=b", "mount path must be absolute"),
            ("type=bind,source=/a,target=/b,readonly=no", "invalid boolean value"),
            ("type=bind,source=/a,target=/b,bind-propagation=up", "invalid propagation mode"),
            ("type=bind,source=/a,target=/b,tmpfs-size=1m", "cannot mix 'tmpfs-size'"),
            ("type=tmpfs,target=/t,bind-propagation=shared", "cannot mix 'bind-propagation'"),
            ("type=tmpfs,target=/t,source=/a", "has no source"),
            ("type=tmpfs,target=/t,tmpfs-size=x", "invalid value for tmpfs-size: x"),
            ("type=tmpfs,target=/t,tmpfs-mode=999", "invalid value for tmpfs-mode: 999"),
            ("type=volume,source=v,target=/b", "volumes are not supported"),
            ("source=/a,target=/b", "volumes are not supported"),
            ("type=bind,source=/a,target=/b,volume-nocopy=true", "is not supported"),
            ("type=npipe,target=/b", "invalid mount type 'npipe'"),
            ("type=bind, source=/a,target=/b", "whitespace"),
            ("type=bind,source=,target=/b", "value is empty"),
        ] {
            let error = parsed(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
