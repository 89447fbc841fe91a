//! Parsers take anything: no text makes them panic, and what they let through holds their promises.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use lowrun::plan::mounts::MountPlan;
use lowrun::plan::namespaces::Namespaces;
use lowrun::plan::{cpu_list, plan, sysctl};
use lowrun::spec::{self, Spec};
use proptest::prelude::*;

fn network() -> Namespaces {
    let kinds = ["network", "ipc", "uts", "user"];
    let section = kinds.map(|kind| spec::Namespace { kind: kind.to_owned(), path: String::new() });
    Namespaces::parse(&section).unwrap()
}

proptest! {
    #[test]
    fn a_cleaned_path_never_climbs(text in ".*") {
        let cleaned = lowrun::path::clean(&text);
        prop_assert!(cleaned.is_absolute());
        prop_assert!(cleaned.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_))));
    }

    #[test]
    fn a_sysctl_stays_below_proc_sys(name in "(net|kernel|user|fs.mqueue)[./][a-z./ ]{0,20}", value in ".*") {
        let section = BTreeMap::from([(name, value)]);
        if let Ok(parameters) = sysctl::parse(&section, &network()) {
            for (path, _) in parameters {
                prop_assert!(path.starts_with("sys/"));
                prop_assert!(Path::new(&path).components().all(|c| matches!(c, Component::Normal(_))), "{}", path);
            }
        }
    }

    #[test]
    fn mount_options_are_read_or_refused(options in prop::collection::vec("r?(no)?[a-z=,0-9]{0,12}", 0..8), kind in "[a-z]{0,8}") {
        let mount = spec::Mount { destination: "/x".to_owned(), kind, options, ..spec::Mount::default() };
        if let Ok(plan) = MountPlan::parse(0, &mount, Path::new("/b")) {
            let attr = plan.attr.to_attr();
            // Setting and clearing the same attribute at once is refused by the kernel, but for the access times.
            prop_assert_eq!(attr.set & attr.clear & !lowrun::sys::mount::MOUNT_ATTR_ATIME_MASK, 0);
        }
    }

    #[test]
    fn lists_of_cpus_hold_what_they_name(first in 0_usize..8192, length in 0_usize..64) {
        let last = (first + length).min(8191);
        let mask = cpu_list(&format!("{first}-{last}")).unwrap();
        let count: u32 = mask.iter().map(|word| word.count_ones()).sum();
        prop_assert_eq!(count as usize, last - first + 1);
    }

    #[test]
    fn any_text_is_a_list_of_cpus_or_none(text in "[0-9,\\- ]{0,24}") {
        let _ = cpu_list(&text);
    }

    #[test]
    fn any_object_is_planned_or_refused(text in config()) {
        if let Ok(spec) = spec::any_case::from_str::<Spec>(&text) {
            let _ = plan("c", Path::new("/b"), &spec);
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = lowrun::channel::decode(&bytes);
    }
}

/// Something like a config.json: right and wrong values in right and wrong places.
fn config() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        "[a-z/.]{0,8}".prop_map(|text| format!("{text:?}")),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just(r#"[{"type":"pid"},{"path":"/x"}]"#.to_owned()),
        Just(r#"{"path":"x","cwd":"/","args":["a"],"user":{"uid":1}}"#.to_owned()),
    ];
    let field = prop_oneof![
        Just("ociVersion"),
        Just("process"),
        Just("root"),
        Just("mounts"),
        Just("hooks"),
        Just("linux"),
        Just("hostname"),
        Just("annotations"),
    ];
    prop::collection::btree_map(field, value, 0..8).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        format!("{{{}}}", fields.join(","))
    })
}
