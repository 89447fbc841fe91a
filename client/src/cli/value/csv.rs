//! One line of comma-separated values, as `--mount` is: a field in double quotes may hold commas, and two quotes in it
//! are one.

use super::Parsed;

/// The fields of `line`.
pub(crate) fn fields(line: &str) -> Parsed<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, after) = if rest.starts_with('"') { quoted(rest)? } else { bare(rest)? };
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

fn bare(rest: &str) -> Parsed<(String, Option<&str>)> {
    let (field, after) = match rest.split_once(',') {
        Some((field, after)) => (field, Some(after)),
        None => (rest, None),
    };
    if field.contains('"') {
        return Err(format!("bare \" in non-quoted-field: {field}"));
    }
    Ok((field.to_owned(), after))
}

fn quoted(rest: &str) -> Parsed<(String, Option<&str>)> {
    let mut field = String::new();
    let mut inside = &rest[1..];
    loop {
        let (text, after) = inside.split_once('"').ok_or("a field's closing \" is missing")?;
        field.push_str(text);
        match after.chars().next() {
            None => return Ok((field, None)),
            Some(',') => return Ok((field, Some(&after[1..]))),
            Some('"') => {
                field.push('"');
                inside = &after[1..];
            }
            Some(_) => return Err("text after a field's closing \"".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_quoted() {
        for (line, expected) in [
            ("a,b", vec!["a", "b"]),
            ("\"a,b\",c", vec!["a,b", "c"]),
            ("\"a\"\"b\"", vec!["a\"b"]),
            ("a,", vec!["a", ""]),
            ("", vec![""]),
        ] {
            assert_eq!(fields(line).unwrap(), expected, "{line}");
        }
        for line in ["\"a", "\"a\"b", "a\"b"] {
            assert!(fields(line).is_err(), "{line}");
        }
    }
}
