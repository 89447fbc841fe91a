//! What lists and streams leave out: Docker's filters. Values of one key are alternatives, but for labels, of which all
//! must be there.

use std::collections::BTreeMap;

use regex_lite::Regex;

use super::container::View;
use super::container::state::Phase;
use super::error::{Error, Field};
use super::event::Event;
use super::image::Summary;

/// A key and its values, as they were given.
pub(crate) type Given = (String, Vec<String>);

/// Largest pattern that is compiled, in bytes.
const PATTERN_MAX: usize = 1024;

/// The phases in Docker's words.
const PHASES: [&str; 7] = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];

/// Docker's word for a phase.
pub(crate) fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Created | Phase::Starting => "created",
        Phase::Running { .. } => "running",
        Phase::Restarting => "restarting",
        Phase::Exited => "exited",
        Phase::Removing => "removing",
    }
}

/// A label that must be there, perhaps with a value.
#[derive(Clone, Debug)]
struct Label {
    key: String,
    value: Option<String>,
}

impl Label {
    fn parse(text: &str) -> Label {
        match text.split_once('=') {
            Some((key, value)) => Label { key: key.to_owned(), value: Some(value.to_owned()) },
            None => Label { key: text.to_owned(), value: None },
        }
    }

    fn is_in(&self, value: Option<&str>) -> bool {
        value.is_some_and(|value| self.value.as_deref().is_none_or(|wanted| wanted == value))
    }
}

/// Which containers are listed.
#[derive(Debug, Default)]
pub(crate) struct ContainerFilter {
    /// Also those that do not run.
    all: bool,
    ids: Vec<String>,
    names: Vec<Regex>,
    labels: Vec<Label>,
    phases: Vec<String>,
    ancestors: Vec<String>,
    exit_codes: Vec<u32>,
}

impl ContainerFilter {
    pub(crate) fn parse(all: bool, given: Vec<Given>) -> Result<ContainerFilter, Error> {
        let mut filter = ContainerFilter { all, ..ContainerFilter::default() };
        for (key, values) in given {
            for value in values {
                filter.add(&key, value)?;
            }
        }
        // Who asks for states asks for those that do not run, too.
        filter.all |= !filter.phases.is_empty() || !filter.exit_codes.is_empty();
        Ok(filter)
    }

    fn add(&mut self, key: &str, value: String) -> Result<(), Error> {
        match key {
            "id" => self.ids.push(value),
            "name" => self.names.push(pattern(&value)?),
            "label" => self.labels.push(Label::parse(&value)),
            "status" if PHASES.contains(&value.as_str()) => self.phases.push(value),
            "status" => {
                let accepted = "created, restarting, running, removing, paused, exited or dead";
                return Err(Error::invalid(Field::Filters, value, accepted));
            }
            "ancestor" => self.ancestors.push(value),
            "exited" => {
                self.exit_codes.push(value.parse().map_err(|_| Error::invalid(Field::Filters, value, "an exit code"))?)
            }
            _ => return Err(unknown(key, "id, name, label, status, ancestor or exited")),
        }
        Ok(())
    }

    pub(crate) fn lets_through(&self, view: &View) -> bool {
        let (fixed, life) = (&view.fixed, &view.life);
        let labels = fixed.labels();
        let exit_code = life.exit.as_ref().filter(|_| life.phase == Phase::Exited).map(|exit| exit.code);
        (self.all || life.phase.is_up())
            && any_of(&self.ids, |id| fixed.id.as_str().starts_with(id.as_str()))
            && any_of(&self.names, |name| {
                name.is_match(fixed.name.as_str()) || name.is_match(&format!("/{}", fixed.name))
            })
            && self.labels.iter().all(|label| label.is_in(labels.get(label.key.as_str()).copied()))
            && any_of(&self.phases, |phase| phase == phase_word(life.phase))
            && any_of(&self.ancestors, |image| is_image(view, image))
            && any_of(&self.exit_codes, |code| exit_code == Some(*code))
    }
}

fn is_image(view: &View, wanted: &str) -> bool {
    let image = &view.fixed.image;
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let bare = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let is_named = [view.fixed.wanted.image.as_str(), image.reference.as_str()].iter().any(|name| {
        *name == wanted || name.strip_suffix(wanted).is_some_and(|before| before.ends_with('/')) || {
            let tagged = format!("{wanted}:latest");
            *name == tagged || name.strip_suffix(tagged.as_str()).is_some_and(|before| before.ends_with('/'))
        }
    });
    is_named || (bare.len() >= 12 && id.starts_with(bare))
}

/// Whether one of the alternatives holds; none given is no condition.
fn any_of<T>(alternatives: &[T], holds: impl Fn(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}

fn pattern(text: &str) -> Result<Regex, Error> {
    let compiled = if text.len() <= PATTERN_MAX { Regex::new(text).ok() } else { None };
    compiled.ok_or_else(|| Error::invalid(Field::Filters, text, "a name, or a regular expression for names"))
}

fn unknown(key: &str, accepted: &'static str) -> Error {
    Error::invalid(Field::Filters, key, accepted)
}

/// Which events are told.
#[derive(Debug, Default)]
pub(crate) struct EventFilter {
    kinds: Vec<String>,
    actions: Vec<String>,
    containers: Vec<String>,
    images: Vec<String>,
    labels: Vec<Label>,
}

impl EventFilter {
    pub(crate) fn parse(given: Vec<Given>) -> Result<EventFilter, Error> {
        let mut filter = EventFilter::default();
        for (key, values) in given {
            match key.as_str() {
                "type" => filter.kinds.extend(values),
                "event" => filter.actions.extend(values),
                "container" => filter.containers.extend(values),
                "image" => filter.images.extend(values),
                "label" => filter.labels.extend(values.iter().map(|value| Label::parse(value))),
                _ => return Err(unknown(&key, "type, event, container, image or label")),
            }
        }
        Ok(filter)
    }

    pub(crate) fn lets_through(&self, event: &Event) -> bool {
        let attribute = |key: &str| event.attributes.get(key).map(String::as_str);
        let is_container = |wanted: &String| {
            event.kind == super::event::Kind::Container
                && (event.id.starts_with(wanted.as_str()) || attribute("name") == Some(wanted))
        };
        let is_image = |wanted: &String| match event.kind {
            super::event::Kind::Image => event.id == *wanted || event.id == format!("{wanted}:latest"),
            _ => attribute("image") == Some(wanted),
        };
        any_of(&self.kinds, |kind| kind == event.kind.as_str())
            && any_of(&self.actions, |action| action == event.action)
            && any_of(&self.containers, is_container)
            && any_of(&self.images, is_image)
            && self.labels.iter().all(|label| label.is_in(attribute(&label.key)))
    }
}

/// Which images are listed.
#[derive(Debug, Default)]
pub(crate) struct ImageFilter {
    references: Vec<String>,
    labels: Vec<Label>,
    dangling: Option<bool>,
}

impl ImageFilter {
    pub(crate) fn parse(given: Vec<Given>) -> Result<ImageFilter, Error> {
        let mut filter = ImageFilter::default();
        for (key, values) in given {
            match key.as_str() {
                "reference" => filter.references.extend(values),
                "label" => filter.labels.extend(values.iter().map(|value| Label::parse(value))),
                "dangling" => filter.dangling = Some(truth(values.first().map_or("", String::as_str))?),
                _ => return Err(unknown(&key, "reference, label or dangling")),
            }
        }
        Ok(filter)
    }

    pub(crate) fn lets_through(&self, image: &Summary) -> bool {
        let is_named = |wanted: &String| image.references.iter().any(|name| names(wanted, name));
        any_of(&self.references, is_named)
            && has_labels(&self.labels, &image.labels)
            && self.dangling.is_none_or(|dangling| dangling == image.references.is_empty())
    }
}

fn has_labels(wanted: &[Label], labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|label| label.is_in(labels.get(&label.key).map(String::as_str)))
}

fn truth(text: &str) -> Result<bool, Error> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Error::invalid(Field::Filters, text, "true or false")),
    }
}

/// Whether a pattern with `*` and `?` means this name, with or without its tag.
fn names(pattern: &str, name: &str) -> bool {
    let untagged = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
    matches(pattern.as_bytes(), name.as_bytes()) || matches(pattern.as_bytes(), untagged.as_bytes())
}

/// `*` is any text without a slash, `?` one character of it. In time linear in each star: the last one takes it back.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut star, mut index) = (0, None, 0);
    while index < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, index));
                at += 1;
            }
            Some(b'?') if text[index] != b'/' => {
                at += 1;
                index += 1;
            }
            Some(byte) if *byte == text[index] => {
                at += 1;
                index += 1;
            }
            _ => match star {
                Some((star_at, taken)) if text[taken] != b'/' => {
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    index = taken + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(key: &str, value: &str) -> Vec<Given> {
        vec![(key.to_owned(), vec![value.to_owned()])]
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        assert!(ContainerFilter::parse(false, given("colour", "red")).is_err());
        assert!(ContainerFilter::parse(false, given("status", "asleep")).is_err());
        assert!(ContainerFilter::parse(false, given("exited", "x")).is_err());
        assert!(ContainerFilter::parse(false, given("name", "(")).is_err());
        assert!(EventFilter::parse(given("colour", "red")).is_err());
        assert!(ImageFilter::parse(given("dangling", "maybe")).is_err());
    }

    #[test]
    fn who_asks_for_states_asks_for_all() {
        assert!(ContainerFilter::parse(false, given("status", "exited")).unwrap().all);
        assert!(!ContainerFilter::parse(false, given("name", "x")).unwrap().all);
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("busybox", "busybox:latest", true),
            ("busybox:latest", "busybox:latest", true),
            ("busy*", "busybox:latest", true),
            ("*box", "busybox:latest", true),
            ("b?sybox", "busybox:1", true),
            ("*", "a/b:1", false),
            ("*/*", "a/b:1", true),
            ("busybox", "other/busybox:latest", false),
            ("", "x", false),
        ] {
            assert_eq!(names(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn labels_with_and_without_value() {
        assert!(Label::parse("a").is_in(Some("1")));
        assert!(Label::parse("a=1").is_in(Some("1")));
        assert!(!Label::parse("a=2").is_in(Some("1")));
        assert!(!Label::parse("a").is_in(None));
    }
}
