//! Amounts of memory: `512m`, `1.5g`, `2GiB`, `1024`.

use super::Parsed;

/// Reads an amount in binary units; without a unit it is bytes. Letters are taken in either case, with or without `b`
/// and `ib`, and one space may stand before them.
pub(crate) fn bytes(text: &str) -> Parsed<u64> {
    let invalid = || format!("invalid size: '{text}'");
    let digits_end = text.rfind(|c: char| c.is_ascii_digit() || c == '.').map(|at| at + 1).ok_or_else(invalid)?;
    let (digits, unit) = text.split_at(digits_end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    if digits.starts_with(['+', '.'])
        || digits.ends_with('.')
        || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        return Err(invalid());
    }
    let factor = factor(&unit.to_ascii_lowercase())
        .ok_or_else(|| format!("invalid size: '{text}': unknown unit '{unit}' (b, k, m, g, t and p are accepted)"))?;
    let amount: f64 = digits.parse().map_err(|_| invalid())?;
    let exact = digits.parse::<u64>().ok().and_then(|whole| whole.checked_mul(factor));
    match exact {
        Some(bytes) => Ok(bytes),
        None if amount * factor as f64 >= u64::MAX as f64 => Err(format!("invalid size: '{text}': too large")),
        None => Ok((amount * factor as f64) as u64),
    }
}

fn factor(unit: &str) -> Option<u64> {
    let letter = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    match letter {
        "" if unit == "ib" => None,
        "" => Some(1),
        "k" => Some(1 << 10),
        "m" => Some(1 << 20),
        "g" => Some(1 << 30),
        "t" => Some(1 << 40),
        "p" => Some(1 << 50),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_as_docker_does() {
        for (text, amount) in [
            ("32", 32),
            ("32b", 32),
            ("32B", 32),
            ("32k", 32 << 10),
            ("32K", 32 << 10),
            ("32kb", 32 << 10),
            ("32Kib", 32 << 10),
            ("32 kB", 32 << 10),
            ("6m", 6 << 20),
            ("1.5g", 3 << 29),
            ("0.5g", 1 << 29),
            ("2GiB", 2 << 30),
            ("1t", 1 << 40),
            ("1P", 1 << 50),
            ("0", 0),
            ("32.5kB", 33_280),
        ] {
            assert_eq!(bytes(text), Ok(amount), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "hello",
            "-32",
            "-1",
            " 32 ",
            "32  mb",
            "32m b",
            ".3kB",
            "3.",
            "1e3",
            "10x",
            "ib",
            "+5",
            "1.2.3",
            "99999999p",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.kKmMiIbB ]{0,12}") {
            let _ = bytes(&text);
        }
    }
}
