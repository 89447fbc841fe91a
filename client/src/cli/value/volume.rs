//! `--volume`: `host:container[:options]`. Named and anonymous volumes are refused with a hint.

use std::path::Path;

use proto_engine::{Mount, mount::Kind};

use super::Parsed;

pub(super) const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// A bind mount. `here` is the directory that a source beginning with `.` is relative to.
pub(crate) fn bind(text: &str, here: &Path) -> Parsed<Mount> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => return Err(anonymous(target)),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(format!("invalid volume specification: '{text}'")),
    };
    if source.is_empty() || target.is_empty() {
        return Err(format!("invalid volume specification: '{text}': empty section between colons"));
    }
    if !target.starts_with('/') {
        return Err(format!("invalid mount path: '{target}' mount path must be absolute"));
    }
    if target.trim_end_matches('/').is_empty() {
        return Err("invalid volume specification: destination can't be '/'".to_owned());
    }
    let mount = Mount {
        kind: Kind::Bind.into(),
        source: host_path(source, here)?,
        target: target.to_owned(),
        create_source: true,
        ..Mount::default()
    };
    with_options(mount, options)
}

fn anonymous(target: &str) -> String {
    format!("'{target}' alone asks for an anonymous volume, which is not supported: write /path/on/host:{target}")
}

/// An absolute path; one that begins with a dot is made so.
fn host_path(source: &str, here: &Path) -> Parsed<String> {
    if source.starts_with('/') {
        return Ok(source.to_owned());
    }
    if source.starts_with('.') {
        return absolute(source, here);
    }
    Err(format!("'{source}' names a volume, and named volumes are not supported: give an absolute path on the host"))
}

/// `source`, which begins with a dot, below `here`, its `.` and `..` taken away by name as docker's client does.
pub(super) fn absolute(source: &str, here: &Path) -> Parsed<String> {
    let mut path = here.to_path_buf();
    for part in source.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            name => path.push(name),
        }
    }
    path.into_os_string().into_string().map_err(|_| "the current directory's name is not UTF-8".to_owned())
}

fn with_options(mut mount: Mount, options: &str) -> Parsed<Mount> {
    let mut access_said = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "rw" if access_said => return Err(format!("invalid mode: {options}")),
            "ro" | "rw" => {
                access_said = true;
                mount.read_only = option == "ro";
            }
            propagation if PROPAGATIONS.contains(&propagation) => {
                if !mount.propagation.is_empty() {
                    return Err(format!("invalid mode: {options}"));
                }
                propagation.clone_into(&mut mount.propagation);
            }
            // Hints to Docker Desktop; on Linux they mean nothing, to docker either.
            "consistent" | "cached" | "delegated" => {}
            "z" | "Z" => return Err(format!("mode '{option}' (SELinux relabelling) is not supported")),
            _ => return Err(format!("invalid mode: {options} (ro, rw and a propagation are accepted)")),
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        let mount = bind(text, Path::new("/here/now"))?;
        Ok(format!("{}|{}|{}|{}", mount.source, mount.target, mount.read_only, mount.propagation))
    }

    #[test]
    fn accepted_as_docker_does() {
        for (text, mount) in [
            ("/a:/b", "/a|/b|false|"),
            ("/a:/b:ro", "/a|/b|true|"),
            ("/a:/b:rw", "/a|/b|false|"),
            ("/a:/b:ro,rslave", "/a|/b|true|rslave"),
            ("/a:/b:rshared", "/a|/b|false|rshared"),
            ("/a:/b:cached", "/a|/b|false|"),
            ("./x:/b", "/here/now/x|/b|false|"),
            (".:/b", "/here/now|/b|false|"),
            ("../x/./y:/b", "/here/x/y|/b|false|"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(mount), "{text}");
        }
        assert!(bind("/a:/b", Path::new("/")).unwrap().create_source);
    }

    #[test]
    fn refused() {
        for (text, words) in [
            ("/b", "anonymous volume"),
            ("data:/b", "named volumes are not supported"),
            ("/a:b", "mount path must be absolute"),
            ("/a:/", "destination can't be '/'"),
            ("/a:/b:rw,ro", "invalid mode"),
            ("/a:/b:shared,slave", "invalid mode"),
            ("/a:/b:nope", "invalid mode: nope"),
            ("/a:/b:Z", "SELinux"),
            ("/a:/b:ro:x", "invalid volume specification"),
            (":/b", "empty section"),
            ("/a:", "empty section"),
        ] {
            let error = shown(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
