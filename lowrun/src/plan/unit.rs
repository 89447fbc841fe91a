//! The systemd unit of a container: its name and place from `cgroupsPath`, and the properties that annotations ask for.

use std::path::{Path, PathBuf};

use crate::fault::{Code, Fault, Result};
use crate::spec::Spec;
use crate::systemd::text;
use crate::systemd::wire::Value;

/// What stands before the name of a property in an annotation.
pub const ANNOTATION_PREFIX: &str = "org.systemd.property.";
/// What stands for the prefix where nobody chose one.
const DEFAULT_PREFIX: &str = "lowrun";

/// A unit to make.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitPlan {
    /// `NAME.scope`; or a slice, for callers that make pods.
    pub name: String,
    /// The slice that it is in.
    pub slice: String,
    /// From the manager's own cgroup.
    pub path: PathBuf,
    /// Whether the user's own manager makes it.
    pub of_user: bool,
    /// Properties from annotations.
    pub properties: Vec<(String, Value)>,
}

impl UnitPlan {
    /// Plans the unit of the container `id`.
    pub fn parse(id: &str, spec: &Spec, of_user: bool) -> Result<UnitPlan> {
        let asked = spec.linux.as_ref().map_or("", |linux| linux.cgroups_path.as_str());
        let invalid = |cause: String| Fault::new(Code::SpecInvalid, "linux.cgroupsPath").cause(cause);
        let (slice, prefix, name) = match asked.split(':').collect::<Vec<_>>()[..] {
            [""] => ("", DEFAULT_PREFIX, id),
            [slice, prefix, name] => (slice, prefix, name),
            _ => {
                let form = "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups";
                return Err(invalid(format!("{form}, got {asked:?} instead")));
            }
        };
        let slice = match slice {
            "" if of_user => "user.slice",
            "" => "system.slice",
            slice => slice,
        };
        let name = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
        if name.contains('/') {
            return Err(invalid(format!("invalid unit name: {name}")));
        }
        let below = expand_slice(slice).ok_or_else(|| invalid(format!("invalid slice name: {slice}")))?;
        let properties = properties(spec)?;
        Ok(UnitPlan { path: below.join(&name), name, slice: slice.to_owned(), of_user, properties })
    }
}

/// The path of a slice: `a-b.slice` is in `a.slice`.
fn expand_slice(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.is_empty() && !name.contains('/'))?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let ends = name.char_indices().filter(|(_, letter)| *letter == '-').map(|(at, _)| at);
    for end in ends.chain([name.len()]) {
        if name[..end].is_empty() || name[..end].ends_with('-') {
            return None;
        }
        path.push(format!("{}.slice", &name[..end]));
    }
    Some(path)
}

fn properties(spec: &Spec) -> Result<Vec<(String, Value)>> {
    let asked =
        spec.annotations.iter().filter_map(|(key, value)| Some((key, key.strip_prefix(ANNOTATION_PREFIX)?, value)));
    asked
        .map(|(key, name, value)| {
            let invalid = |cause: String| Fault::new(Code::SpecInvalid, format!("annotations {key:?}")).cause(cause);
            if name.len() < 3 || !name.bytes().all(|letter| letter.is_ascii_alphabetic()) {
                return Err(invalid(
                    "is no name of a property: three letters or more, and nothing but letters".to_owned(),
                ));
            }
            let value = text::parse(value).map_err(|cause| invalid(format!("{value}: {cause}")))?;
            in_microseconds(name, value).map_err(invalid)
        })
        .collect()
}

/// `TimeoutStopSec` in a unit file is `TimeoutStopUSec` on the bus.
fn in_microseconds(name: &str, value: Value) -> std::result::Result<(String, Value), String> {
    const MICROSECONDS: u64 = 1_000_000;
    let Some(stem) = name.strip_suffix("Sec").filter(|stem| stem.ends_with(|letter: char| letter.is_ascii_lowercase()))
    else {
        return Ok((name.to_owned(), value));
    };
    let seconds = match value {
        Value::Byte(number) => Some(u64::from(number)),
        Value::U16(number) => Some(u64::from(number)),
        Value::U32(number) => Some(u64::from(number)),
        Value::U64(number) => Some(number),
        Value::I16(number) => u64::try_from(number).ok(),
        Value::I32(number) => u64::try_from(number).ok(),
        Value::I64(number) => u64::try_from(number).ok(),
        Value::F64(number) if number >= 0.0 => {
            return Ok((format!("{stem}USec"), Value::U64((number * MICROSECONDS as f64) as u64)));
        }
        _ => None,
    };
    let microseconds = seconds.and_then(|seconds| seconds.checked_mul(MICROSECONDS));
    microseconds
        .map(|number| (format!("{stem}USec"), Value::U64(number)))
        .ok_or_else(|| "not a number of seconds".to_owned())
}

/// Whether the own user's manager is to be asked: root of the machine asks the system's.
pub fn is_of_user() -> bool {
    !rustix::process::geteuid().is_root() || is_in_user_namespace()
}

fn is_in_user_namespace() -> bool {
    // The first namespace maps every id to itself.
    std::fs::read_to_string(Path::new("/proc/self/uid_map"))
        .is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str, annotations: &[(&str, &str)]) -> Spec {
        let mut spec = Spec::default();
        spec.linux.get_or_insert_default().cgroups_path = path.to_owned();
        spec.annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        spec
    }

    #[test]
    fn a_unit_is_named_by_slice_prefix_and_name() {
        let unit = UnitPlan::parse("id", &spec("a-b.slice:docker:1234", &[]), false).unwrap();
        assert_eq!((unit.name.as_str(), unit.slice.as_str()), ("docker-1234.scope", "a-b.slice"));
        assert_eq!(unit.path, Path::new("a.slice/a-b.slice/docker-1234.scope"));
        let unit = UnitPlan::parse("id", &spec("", &[]), false).unwrap();
        assert_eq!(unit.path, Path::new("system.slice/lowrun-id.scope"));
        assert_eq!(UnitPlan::parse("id", &spec("", &[]), true).unwrap().slice, "user.slice");
        let unit = UnitPlan::parse("id", &spec(":x:pod.slice", &[]), false).unwrap();
        assert_eq!(unit.name, "pod.slice");
        assert_eq!(UnitPlan::parse("id", &spec("-.slice:p:n", &[]), false).unwrap().path, Path::new("p-n.scope"));
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for path in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a--b.slice:p:n",
            "-a.slice:p:n",
            ".slice:p:n",
            "a/b.slice:p:n",
            "a.slice:p:n/../x",
        ] {
            let fault = UnitPlan::parse("id", &spec(path, &[]), false).unwrap_err();
            assert_eq!((fault.code, fault.message.as_str()), (Code::SpecInvalid, "linux.cgroupsPath"), "{path}");
        }
    }

    #[test]
    fn annotations_are_properties_and_seconds_are_microseconds() {
        let parsed = |key: &str, value: &str| {
            let key = format!("{ANNOTATION_PREFIX}{key}");
            UnitPlan::parse("id", &spec("", &[(&key, value), ("other", "x")]), false).map(|unit| unit.properties)
        };
        assert_eq!(
            parsed("TimeoutStopSec", "uint64 5").unwrap(),
            [("TimeoutStopUSec".to_owned(), Value::U64(5_000_000))]
        );
        assert_eq!(parsed("TimeoutStopSec", "0.5").unwrap()[0].1, Value::U64(500_000));
        assert_eq!(parsed("CollectMode", "'inactive'").unwrap()[0].1, Value::text("inactive"));
        // No unit of time: the letter before is none.
        assert_eq!(parsed("FOOSec", "1").unwrap()[0].0, "FOOSec");
        for (key, value) in
            [("Ab", "1"), ("Not-So", "1"), ("A1b", "1"), ("CollectMode", "inactive or"), ("TimeoutStopSec", "'5'")]
        {
            assert!(parsed(key, value).unwrap_err().message.contains(ANNOTATION_PREFIX), "{key}={value}");
        }
    }
}
