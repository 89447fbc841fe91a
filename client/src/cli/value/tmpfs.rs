//! `--tmpfs`: `/path[:options]`.

use proto_engine::{Mount, mount::Kind};

use super::{Parsed, mount, size};

/// The mount that one `--tmpfs` stands for.
pub(crate) fn tmpfs(text: &str) -> Parsed<Mount> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        return Err(format!("invalid mount path: '{target}' mount path must be absolute"));
    }
    let mut mount = Mount { kind: Kind::Tmpfs.into(), target: target.to_owned(), ..Mount::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", amount)) => mount.tmpfs_size = size::bytes(amount)?,
            Some(("mode", bits)) => {
                mount.tmpfs_mode = mount::mode(bits).ok_or_else(|| format!("invalid mode: {bits}"))?;
            }
            None if option == "ro" => mount.read_only = true,
            // A tmpfs has these anyway.
            None if matches!(option, "rw" | "noexec" | "nosuid" | "nodev") => {}
            _ => {
                return Err(format!(
                    "tmpfs option '{option}' is not supported (ro, rw, size=, mode= and the default noexec, nosuid, nodev are)"
                ));
            }
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        let mount = tmpfs("/run:rw,noexec,nosuid,size=65536k,mode=1777").unwrap();
        assert_eq!((&*mount.target, mount.tmpfs_size, mount.tmpfs_mode), ("/run", 64 << 20, 0o1777));
        assert!(tmpfs("/run:ro").unwrap().read_only);
        assert_eq!(tmpfs("/run").unwrap().tmpfs_size, 0);
    }

    #[test]
    fn refused() {
        for text in ["run", "/run:exec", "/run:size=x", "/run:mode=9", "/run:uid=3"] {
            assert!(tmpfs(text).is_err(), "{text}");
        }
    }
}
