//! `--filter name=value`: several values of one name are alternatives.

use proto_engine::Filter;

use super::Parsed;

/// Adds one `--filter` to those before it.
pub(crate) fn add(filters: &mut Vec<Filter>, text: &str) -> Parsed<()> {
    let text = text.trim();
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("invalid filter '{text}': bad format of filter (expected name=value)"))?;
    let (key, value) = (key.trim().to_lowercase(), value.trim().to_owned());
    match filters.iter_mut().find(|filter| filter.key == key) {
        Some(filter) => filter.values.push(value),
        None => filters.push(Filter { key, values: vec![value] }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_name_are_gathered() {
        let mut filters = Vec::new();
        for text in ["status=running", " Label = a=b ", "status=exited"] {
            add(&mut filters, text).unwrap();
        }
        assert_eq!(filters[0].values, ["running", "exited"]);
        assert_eq!((filters[1].key.as_str(), filters[1].values[0].as_str()), ("label", "a=b"));
        assert!(add(&mut filters, "status").is_err());
    }
}
