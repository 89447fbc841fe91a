//! `--ulimit`: `name=soft[:hard]`.

use proto_engine::Ulimit;

use super::Parsed;

/// The limits Linux knows, as docker names them.
const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// One limit; -1 is none, and without a hard one the soft one is both.
pub(crate) fn ulimit(text: &str) -> Parsed<Ulimit> {
    let (name, limits) = text.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    if !NAMES.contains(&name) {
        return Err(format!("invalid ulimit type: {name} ({} are known)", NAMES.join(", ")));
    }
    let (soft, hard) = limits.split_once(':').map_or((limits, None), |(soft, hard)| (soft, Some(hard)));
    let number = |digits: &str| match digits.parse::<i64>() {
        Ok(limit) if limit >= -1 => Ok(limit),
        _ => Err(format!("invalid ulimit value '{digits}' in '{text}': want a number, or -1 for none")),
    };
    let soft = number(soft)?;
    let hard = hard.map_or(Ok(soft), number)?;
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_as_docker_does() {
        for (text, soft, hard) in [
            ("nofile=512:1024", 512, 1024),
            ("nofile=1024", 1024, 1024),
            ("cpu=2:4", 2, 4),
            ("core=-1", -1, -1),
            ("core=0:-1", 0, -1),
            ("memlock=-1:-1", -1, -1),
        ] {
            let limit = ulimit(text).unwrap();
            assert_eq!((limit.soft, limit.hard), (soft, hard), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "nofile",
            "notarealtype=1024:1024",
            "nofile=ten",
            "nofile=1024:",
            "nofile=:1",
            "nofile=2:1",
            "core=-1:5",
            "nofile=1:2:3",
            "core=-2",
        ] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }
}
