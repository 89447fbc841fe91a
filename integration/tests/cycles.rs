//! Containers that come and go by the thousand leave nothing: no mount, cgroup, process, descriptor, thread or file, and
//! the supervisor's memory does not grow. `STRATA_CYCLES` says how many (`make test-cycles`: 10,000).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use integration::{Subject, Supervised, supervisor, wait};

/// Cycles of the short form.
const CYCLES: usize = 60;
/// Loops that run beside each other.
const LOOPS: usize = 2;
/// How much memory may differ without a reason that returns: an allocator's arenas.
const MEMORY_SLACK_KIB: usize = 3072;

/// What one can count of a supervisor and its containers.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    descriptors: usize,
    mounts: usize,
    cgroups: usize,
    files: usize,
    shims: usize,
}

#[test]
fn ten_thousand_containers_leave_nothing() {
    supervisor(|s| {
        if Subject::chosen() == Subject::Theirs {
            return integration::skip("it looks into the directories of shimd");
        }
        let cycles = std::env::var("STRATA_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(CYCLES);
        // What is made once and kept: threads, arenas, the parent of the cgroups.
        run(s, "warm", cycles.min(CYCLES) / 2);
        let before = settled(s);
        let memory_before = resident_kib(s);
        assert_a_rest_is_seen(s, &before);
        let start = Instant::now();
        run(s, "c", cycles);
        let took = start.elapsed();
        let memory_after = resident_kib(s);
        let after = wait::poll(Duration::from_secs(10), || Some(look(s)).filter(|look| *look == before));
        eprintln!(
            "{cycles} cycles in {took:?}; resident {memory_before} KiB before, {memory_after} KiB after; {before:?}"
        );
        let left = integration::process::descendants(std::process::id() as i32);
        assert!(after.is_some(), "before: {before:?}\nafter:  {:?}\n{left:#?}", look(s));
        assert!(memory_after < memory_before + MEMORY_SLACK_KIB, "{memory_before} KiB became {memory_after} KiB");
    });
}

/// `count` times create, start, wait and remove, by some loops beside each other.
fn run(s: &Supervised, name: &str, count: usize) {
    let ctr = s.ctr(&[]).into_command();
    let words: Vec<_> =
        std::iter::once(ctr.get_program()).chain(ctr.get_args()).map(|word| word.display().to_string()).collect();
    let (ctr, image, share) = (words.join(" "), s.busybox(), count / LOOPS);
    let body = |index: usize| {
        format!(
            "for n in $(seq {share}); do {ctr} run --rm --runtime io.containerd.strata.v1 {image} {name}-{index}-$n sh -c 'exit 7'; [ $? = 7 ] || exit 1; done"
        )
    };
    let running: Vec<_> = (0..LOOPS).map(|index| s.shell(&body(index)).start()).collect();
    for one in running {
        let outcome = one.end_within(Duration::from_secs(2 * 3600));
        let out = outcome.unwrap_or_else(|out| panic!("not over: {}", out.errors()));
        out.ok();
    }
}

/// A container that is left is seen, and no longer when it is gone.
fn assert_a_rest_is_seen(s: &mut Supervised, before: &Look) {
    s.run(&["run", "-d", "--runtime", "io.containerd.strata.v1", s.busybox(), "rest", "sleep", "600"]).ok();
    let with = look(s);
    // Its mount is not looked for: the shim takes it off the host's table when it has been quiet for a while.
    let all = with.cgroups > before.cgroups && with.files > before.files;
    assert!(all && with.shims > before.shims && with.descriptors > before.descriptors, "{before:?} {with:?}");
    s.run(&["tasks", "kill", "-s", "KILL", "rest"]).ok();
    s.wait_for_status("rest", "STOPPED");
    s.run(&["tasks", "delete", "rest"]);
    s.run(&["containers", "delete", "rest"]).ok();
    wait::until_true("nothing is left of the rest", || look(s) == *before);
}

/// The counts, once two looks in a row agree.
fn settled(s: &mut Supervised) -> Look {
    wait::until("the counts settle", || {
        let first = look(s);
        std::thread::sleep(Duration::from_secs(1));
        (look(s) == first).then_some(first)
    })
}

fn look(s: &mut Supervised) -> Look {
    let process = format!("/proc/{}", s.daemon().pid());
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default().lines().count();
    let cgroups = ["memory", "pids", "devices", "."]
        .iter()
        .map(|one| directories(Path::new(&format!("/sys/fs/cgroup/{one}/{}", s.namespace()))));
    let me = std::process::id() as i32;
    // A shim that has ended is this process's orphan, and there until it is fetched.
    integration::process::reap_orphans();
    let descendants = integration::process::descendants(me);
    Look {
        descriptors: fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count),
        mounts,
        cgroups: cgroups.sum(),
        files: files(&s.path("lib/shimd")) + files(&s.path("run/shimd")),
        shims: descendants.len(),
    }
}

fn directories(path: &Path) -> usize {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).count()
}

/// Everything below a directory.
fn files(path: &Path) -> usize {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| 1 + if entry.file_type().is_ok_and(|kind| kind.is_dir()) { files(&entry.path()) } else { 0 })
        .sum()
}

fn resident_kib(s: &mut Supervised) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/status", s.daemon().pid())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("the daemon lives")
}
