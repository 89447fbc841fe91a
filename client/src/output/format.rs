//! `--format` of the commands that list: docker's tables, `table TEMPLATE`, `json`, or a template for each row.

use super::template::Template;
use super::value::Value;
use super::{json, table};
use crate::error::Error;

/// How a list is shown.
pub(crate) struct Listing<'a> {
    /// What `--format` said.
    pub(crate) format: Option<&'a str>,
    pub(crate) quiet: bool,
    /// The template of the table when nothing was said.
    pub(crate) default_table: &'a str,
    /// The columns' headings, by field.
    pub(crate) headings: Value,
}

impl Listing<'_> {
    /// The whole text for `rows`, each a struct with the fields of `headings`.
    pub(crate) fn text(&self, rows: &[Value]) -> Result<String, Error> {
        match self.format {
            _ if self.quiet => lines("{{.ID}}", rows),
            Some("json") => Ok(rows.iter().map(|row| format!("{}\n", json::compact_escaped(row))).collect()),
            None | Some("" | "table") => self.table(self.default_table, rows),
            Some(format) => match format.strip_prefix("table") {
                Some(template) => self.table(template, rows),
                None => lines(format, rows),
            },
        }
    }

    fn table(&self, template: &str, rows: &[Value]) -> Result<String, Error> {
        let template = Template::parse(&unescaped(template))?;
        let mut text = template.apply_to_headings(&self.headings)?;
        for row in rows {
            text.push('\n');
            text.push_str(&template.apply(row)?);
        }
        text.push('\n');
        Ok(table::align(&text))
    }
}

/// One object shown by a template (or as `json`), with a line end.
pub(crate) fn object(format: &str, object: &Value) -> Result<String, Error> {
    if format == "json" {
        return Ok(format!("{}\n", json::compact(object)));
    }
    lines(format, std::slice::from_ref(object))
}

fn lines(template: &str, rows: &[Value]) -> Result<String, Error> {
    let template = Template::parse(&unescaped(template))?;
    let mut text = String::new();
    for row in rows {
        text.push_str(&template.apply(row)?);
        text.push('\n');
    }
    Ok(text)
}

/// A shell hands over `\t` and `\n` as two characters; docker means a tab and a line end by them.
fn unescaped(template: &str) -> String {
    template.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: Option<&str>, quiet: bool) -> String {
        let listing = Listing {
            format,
            quiet,
            default_table: "{{.ID}}\\t{{.Name}}",
            headings: Value::structure([("ID", "CONTAINER ID".into()), ("Name", "NAMES".into())]),
        };
        let rows = [Value::structure([("ID", "0123".into()), ("Name", "<web>".into())])];
        listing.text(&rows).unwrap()
    }

    #[test]
    fn every_form() {
        assert_eq!(shown(None, false), "CONTAINER ID   NAMES\n0123           <web>\n");
        assert_eq!(shown(Some("table {{.Name}}\\t{{.ID}}"), false), "NAMES     CONTAINER ID\n<web>     0123\n");
        assert_eq!(shown(Some("{{.ID}}={{.Name}}"), false), "0123=<web>\n");
        assert_eq!(shown(Some("json"), false), "{\"ID\":\"0123\",\"Name\":\"\\u003cweb\\u003e\"}\n");
        assert_eq!(shown(None, true), "0123\n");
    }
}
