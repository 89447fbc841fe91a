//! Go's text/template, in the part that docker's `--format` is used with: field chains, pipelines, variables, if, else,
//! with, range, break, continue, trimming, and docker's functions. What is not supported is an error that names it.
//!
//! lex → parse → eval; a [`Template`] is parsed once and applied to each row.

mod eval;
mod functions;
mod lex;
mod parse;

pub(crate) use eval::Mode;

use super::value::Value;
use crate::error::Error;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template(Vec<parse::Node>);

impl Template {
    /// Parses `source`; the error says what is wrong with it.
    pub(crate) fn parse(source: &str) -> Result<Template, Error> {
        parse::parse(source).map(Template).map_err(Error::Template)
    }

    /// Applies it to `data`.
    pub(crate) fn apply(&self, data: &Value) -> Result<String, Error> {
        eval::apply(&self.0, data, Mode::Rows).map_err(Error::Template)
    }

    /// Applies it to an event: a key that a map of it lacks is shown as `<no value>`.
    pub(crate) fn apply_to_event(&self, event: &Value) -> Result<String, Error> {
        eval::apply(&self.0, event, Mode::Events).map_err(Error::Template)
    }

    /// Applies it to the names of columns: functions that change a word leave a heading as it is.
    pub(crate) fn apply_to_headings(&self, headings: &Value) -> Result<String, Error> {
        eval::apply(&self.0, headings, Mode::Headings).map_err(Error::Template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Value {
        Value::structure([
            ("ID", "0123456789ab".into()),
            ("Pid", Value::Int(42)),
            ("State", Value::structure([("Running", true.into()), ("ExitCode", Value::Int(0)), ("Error", "".into())])),
            ("Env", Value::words(&["A=1".to_owned(), "B=2".to_owned()])),
            ("Labels", Value::map([("b".to_owned(), "2".into()), ("a.x".to_owned(), "1".into())])),
            (
                "Ports",
                Value::map([(
                    "80/tcp".to_owned(),
                    Value::list([Value::map([("HostPort".to_owned(), "8080".into())])]),
                )]),
            ),
            ("Nothing", Value::Null),
            ("Label", Value::Lookup([("name".to_owned(), "web".to_owned())].into())),
        ])
    }

    fn applied(source: &str) -> String {
        match Template::parse(source).and_then(|template| template.apply(&data())) {
            Ok(text) => text,
            Err(error) => format!("error: {}", error.fault().causes.join(": ")),
        }
    }

    #[test]
    fn what_docker_users_write() {
        for (source, shown) in [
            ("{{.ID}}", "0123456789ab"),
            ("{{ .State.Running }} {{.Pid}}", "true 42"),
            ("{{json .State}}", r#"{"Running":true,"ExitCode":0,"Error":""}"#),
            ("{{.State}}", "{true 0 }"),
            ("{{json .Nothing}} {{.Nothing}}", "null <no value>"),
            ("{{.Env}} {{.Labels}}", "[A=1 B=2] map[a.x:1 b:2]"),
            ("{{range .Env}}{{println .}}{{end}}", "A=1\nB=2\n"),
            ("{{range $i, $e := .Env}}{{$i}}:{{$e}};{{end}}", "0:A=1;1:B=2;"),
            ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a.x=1 b=2 "),
            ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{index .Labels \"a.x\"}}[{{index .Labels \"missing\"}}]", "1[]"),
            ("{{range $p, $c := .Ports}}{{$p}} -> {{(index $c 0).HostPort}}{{end}}", "80/tcp -> 8080"),
            ("{{if .State.Running}}up{{else if .Pid}}pid{{else}}down{{end}}", "up"),
            ("{{if not .State.Running}}a{{else if eq .Pid 41 42}}b{{end}}", "b"),
            ("{{if and .State.Running (gt .Pid 40)}}yes{{end}}", "yes"),
            ("{{with .State}}{{.ExitCode}}{{$.Pid}}{{end}}", "042"),
            ("{{with .State.Error}}{{.}}{{else}}fine{{end}}", "fine"),
            ("{{.ID | upper | printf \"<%s>\"}}", "<0123456789AB>"),
            ("{{join .Env \",\"}} {{truncate .ID 4}} {{split \"a,b\" \",\"}}", "A=1,B=2 0123 [a b]"),
            ("{{pad \"x\" 1 2}}|{{title \"a b\"}}|{{lower \"ABC\"}}|{{len .Env}}", " x  |A B|abc|2"),
            ("{{.Label \"name\"}}/{{.Label \"none\"}}", "web/"),
            ("a {{- .Pid -}} b", "a42b"),
            ("{{/* a comment */}}x", "x"),
            ("{{$x := .Pid}}{{$x = 7}}{{$x}}", "7"),
            ("{{print \"a\" 1 2 \"b\"}}", "a1 2b"),
            ("{{printf \"%-5s|%05d|%q|%v|%x\" \"ab\" 42 \"c\" true 255}}", "ab   |00042|\"c\"|true|ff"),
            ("{{slice .ID 2 4}}{{slice .Env 1}}", "23[B=2]"),
            ("{{range .Env}}{{if eq . \"B=2\"}}{{break}}{{end}}{{.}}{{end}}", "A=1"),
            ("{{`raw\\n`}}{{\"esc\\t\"}}{{1.5}}{{true}}", "raw\\nesc\t1.5true"),
            ("{{len .ID}}", "12"),
        ] {
            assert_eq!(applied(source), shown, "{source}");
        }
    }

    #[test]
    fn a_key_that_an_event_lacks_is_no_error() {
        let applied = |source| Template::parse(source).unwrap().apply_to_event(&data());
        assert_eq!(applied("{{.Labels.zzz}} {{.Labels.b}}").unwrap(), "<no value> 2");
        assert!(applied("{{.Foo}}").is_err());
    }

    #[test]
    fn errors_name_what_is_wrong() {
        for (source, part) in [
            ("{{.Foo}}", "no field \"Foo\""),
            ("{{.State.Foo}}", "no field \"Foo\""),
            ("{{.Labels.zzz}}", "map has no entry for key \"zzz\""),
            ("{{.ID.Foo}}", "string has no field \"Foo\""),
            ("{{frobnicate .ID}}", "function \"frobnicate\" not defined"),
            ("{{if .ID}}", "{{if}} without {{end}}"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{.ID", "unclosed action"),
            ("{{template \"x\"}}", "{{template}} is not supported"),
            ("{{$x}}", "undefined variable \"$x\""),
            ("{{index .Env 7}}", "out of range"),
            ("{{\"x}}", "unterminated"),
            ("{{html .ID}}", "function \"html\" is not supported"),
            ("{{}}", "missing value"),
            ("{{lt .ID .Pid}}", "compare"),
        ] {
            let error = applied(source);
            assert!(error.starts_with("error: ") && error.contains(part), "{source}: {error}");
        }
    }

    #[test]
    fn headings_stay_as_they_are() {
        let headings = Value::structure([("ID", "CONTAINER ID".into()), ("Names", "NAMES".into())]);
        let template = Template::parse("{{lower .ID}}\t{{json .Names}}").unwrap();
        assert_eq!(template.apply_to_headings(&headings).unwrap(), "CONTAINER ID\tNAMES");
    }

    proptest::proptest! {
        #[test]
        fn no_template_makes_it_panic(source in "(\\{\\{|\\}\\}|[ .$a-zA-Z0-9\"`|()=:,-]|if|end|range|else|with|index){0,24}") {
            if let Ok(template) = Template::parse(&source) {
                let _ = template.apply(&data());
            }
        }
    }
}
