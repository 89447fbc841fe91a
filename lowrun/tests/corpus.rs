//! The kept inputs of the fuzz targets, through the same functions: what once failed or reached something new stays
//! looked at without a fuzzer.

#[path = "../fuzz/targets.rs"]
mod targets;

/// A target of `fuzz/fuzz_targets`.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("channel", targets::channel),
    ("config", targets::config),
    ("devices", targets::devices),
    ("mounts", targets::mounts),
    ("seccomp", targets::seccomp),
    ("state", targets::state),
    ("user", targets::user),
];

#[test]
fn every_kept_input_holds_its_promises() {
    for (name, target) in TARGETS {
        let corpus = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let inputs: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{corpus} is empty");
        for input in inputs {
            eprintln!("{}", input.display());
            target(&std::fs::read(&input).unwrap());
        }
    }
}

#[test]
fn every_fuzz_target_is_replayed() {
    let folder = format!("{}/fuzz/fuzz_targets", env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, TARGETS.map(|(name, _)| name));
}
