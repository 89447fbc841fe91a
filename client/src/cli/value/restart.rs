//! `--restart`: `no`, `always`, `unless-stopped`, `on-failure[:max-retries]`.

use proto_engine::{RestartPolicy, restart_policy::Kind};

use super::Parsed;

/// The policy.
pub(crate) fn policy(text: &str) -> Parsed<RestartPolicy> {
    let (name, retries) = text.split_once(':').map_or((text, None), |(name, retries)| (name, Some(retries)));
    let kind = match name {
        "no" | "" if retries.is_none() => Kind::No,
        "always" => Kind::Always,
        "unless-stopped" => Kind::UnlessStopped,
        "on-failure" => Kind::OnFailure,
        _ => {
            return Err(format!(
                "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
            ));
        }
    };
    let max_retries = match retries {
        None => 0,
        Some(_) if kind != Kind::OnFailure => {
            return Err("invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned());
        }
        Some(digits) => {
            digits.parse().map_err(|_| "invalid restart policy: maximum retry count must be an integer".to_owned())?
        }
    };
    Ok(RestartPolicy { kind: kind.into(), max_retries })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_does() {
        let accepted = |text: &str| policy(text).map(|policy| (policy.kind(), policy.max_retries)).map_err(drop);
        assert_eq!(accepted("no"), Ok((Kind::No, 0)));
        assert_eq!(accepted(""), Ok((Kind::No, 0)));
        assert_eq!(accepted("always"), Ok((Kind::Always, 0)));
        assert_eq!(accepted("unless-stopped"), Ok((Kind::UnlessStopped, 0)));
        assert_eq!(accepted("on-failure"), Ok((Kind::OnFailure, 0)));
        assert_eq!(accepted("on-failure:3"), Ok((Kind::OnFailure, 3)));
        for text in ["something", "always:2", "on-failure:a", "on-failure:-1", "on-failure:1:2", ":1", "no:1"] {
            assert!(policy(text).is_err(), "{text}");
        }
    }
}
