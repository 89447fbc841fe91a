//! What one call does while another is half done: each stopped by strace after one of its system calls.

mod stage;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use stage::{Stage, eventually, stage};

/// A system call, and which of that name it is in its process.
type Place = (String, usize);

/// A call of lowrun whose processes strace stops after certain system calls.
struct Slow {
    strace: Child,
    /// What strace writes.
    trace: PathBuf,
}

impl Slow {
    /// Begins the call, and waits until one of its processes has stopped, or all have ended.
    fn begin(stage: &Stage, places: &[Place], words: &[&str]) -> Slow {
        Slow::begin_with(stage, places, &[], words)
    }

    /// As [`Slow::begin`], with more options of strace's.
    fn begin_with(stage: &Stage, places: &[Place], options: &[&str], words: &[&str]) -> Slow {
        let trace = stage.dir.path().join(format!("trace-{}", words[0]));
        let _ = std::fs::remove_file(&trace);
        let mut command = Command::new("strace");
        command.arg("-f").arg("-o").arg(&trace).args(options);
        for (name, count) in places {
            command.arg("-e").arg(format!("inject={name}:signal=SIGSTOP:when={count}"));
        }
        command.arg(stage.command().get_program()).arg("--root").arg(stage.root()).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(stage.bundle());
        let slow = Slow { strace: command.spawn().unwrap(), trace };
        eventually("it stops", || !slow.stopped().is_empty() || slow.status().is_some());
        slow
    }

    /// lowrun's own process.
    fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(&self.trace).unwrap();
        text.split_once(' ').unwrap().0.parse().unwrap()
    }

    /// The processes that have stopped.
    fn stopped(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(&self.trace).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.strip_suffix("--- stopped by SIGSTOP ---"));
        lines.map(|pid| pid.trim().parse().unwrap()).collect()
    }

    /// The exit status of lowrun's own process, once it has ended; -1 if it was killed. What it has made may live on.
    fn status(&self) -> Option<i32> {
        let text = std::fs::read_to_string(&self.trace).unwrap_or_default();
        let pid = text.split_once(' ')?.0;
        let mut ends = text.lines().filter_map(|line| line.strip_prefix(pid)?.trim_start().strip_prefix("+++ "));
        let end = ends.next()?;
        let status = end.strip_prefix("exited with ").and_then(|rest| rest.split(' ').next());
        Some(status.map_or(-1, |status| status.parse().unwrap()))
    }

    /// Lets all go on that have stopped, and waits for the end; the exit status.
    fn end(&self) -> i32 {
        eventually("it ends", || {
            // Others may come to a call of that number later.
            self.stopped().into_iter().for_each(|pid| send(pid, Signal::CONT));
            self.status().is_some()
        });
        self.status().unwrap()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stopped().into_iter().for_each(|pid| send(pid, Signal::CONT));
        // What still runs goes on without it.
        send(self.strace.id().cast_signed(), Signal::KILL);
        let _ = self.strace.wait();
    }
}

fn send(pid: i32, signal: Signal) {
    let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// The system calls of lowrun's own process in an undisturbed call, with the line of each.
fn calls_of(stage: &Stage, words: &[&str]) -> Vec<(Place, String)> {
    number(traced(stage, &[], words).lines())
}

/// As [`calls_of`], of the container side, which does what is traced only.
fn calls_of_container_side(stage: &Stage, words: &[&str]) -> Vec<(Place, String)> {
    let trace = traced(stage, &["-f"], words);
    let ready = trace.lines().find(|line| line.contains("\"\\\"Ready")).unwrap();
    let pid = ready.split_once(' ').unwrap().0;
    number(trace.lines().filter_map(|line| line.strip_prefix(pid)).map(str::trim_start))
}

/// What strace writes of an undisturbed call.
fn traced(stage: &Stage, options: &[&str], words: &[&str]) -> String {
    let trace = stage.dir.path().join("trace");
    let _ = std::fs::remove_file(&trace);
    let mut command = Command::new("strace");
    command.args(options).arg("-o").arg(&trace).arg(stage.command().get_program()).arg("--root").arg(stage.root());
    command.args(words).current_dir(stage.bundle());
    command.stdin(Stdio::null());
    let (begun, mut strace) = (std::time::Instant::now(), command.spawn().unwrap());
    let is_whole = || std::fs::read_to_string(&trace).is_ok_and(|text| text.contains("+++ exited with"));
    while !is_whole() {
        assert!(begun.elapsed() < stage::PATIENCE, "{words:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    // It would wait for the container, too.
    send(strace.id().cast_signed(), Signal::KILL);
    strace.wait().unwrap();
    std::fs::read_to_string(&trace).unwrap()
}

/// Each call of a trace, and which of its name it is.
fn number<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(Place, String)> {
    let mut counts = std::collections::BTreeMap::new();
    let mut calls = Vec::new();
    for line in lines {
        let Some((name, _)) = line.split_once('(').filter(|_| line.starts_with(|c: char| c.is_ascii_lowercase()))
        else {
            continue;
        };
        let count = counts.entry(name.to_owned()).or_insert(0);
        *count += 1;
        calls.push(((name.to_owned(), *count), line.to_owned()));
    }
    calls
}

/// Those from the first whose line has one word to the last whose line has another.
fn between(calls: &[(Place, String)], first: &str, last: &str) -> Vec<Place> {
    let begin = calls.iter().position(|(_, line)| line.contains(first)).expect(first);
    let end = calls.iter().rposition(|(_, line)| line.contains(last)).expect(last);
    // Stopped with a lock, it would hold up the others for as long.
    let calls = calls[begin..=end].iter().filter(|(_, line)| !line.contains("LOCK_SH"));
    calls.map(|(place, _)| place.clone()).collect()
}

/// The calls of a creation from the one that makes the state directory to the one that makes the state file; the container
/// is made.
fn beginning_of(stage: &Stage, create: &[&str]) -> Vec<Place> {
    stage.write_config();
    // The first one makes what later ones find.
    stage.call(create).ok();
    stage.delete();
    between(&calls_of(stage, create), &making_dir(stage), "state.json")
}

/// What the lines have that are about the state directory itself.
fn making_dir(stage: &Stage) -> String {
    format!("root/{}\"", stage.id())
}

/// Whether a call may change the state directory.
fn changes_files((name, _): &Place) -> bool {
    matches!(
        name.as_str(),
        "mkdir" | "mkdirat" | "flock" | "openat" | "linkat" | "write" | "rename" | "renameat" | "unlinkat"
    )
}

/// A stage for lowrun alone, where its calls can be stopped.
fn watched() -> Option<Stage> {
    let stage = stage()?;
    let is_watched = !stage.differs("where it stops is lowrun's") && has_strace();
    is_watched.then_some(stage)
}

fn has_strace() -> bool {
    let is_there = Path::new("/usr/bin/strace").exists();
    if !is_there {
        eprintln!("skipped: needs strace");
    }
    is_there
}

fn is_named(stage: &Stage) -> bool {
    let state = std::fs::read_to_string(stage.root().join(stage.id()).join("state.json"));
    state.is_ok_and(|text| text.lines().count() > 1)
}

/// Where the container side stops: in its namespaces, which show the host's root still.
fn before_mounts() -> Place {
    ("sethostname".to_owned(), 1)
}

#[test]
fn a_program_does_not_enter_what_began_to_be_made_while_it_looked() {
    let Some(mut stage) = watched() else { return };
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    let exec = ["exec", stage.id(), "true"];
    let create = ["create", stage.id()];
    // After the directory is made, before it is locked.
    let making = beginning_of(&stage, &create);
    let locked = making.iter().position(|(name, _)| name == "flock").unwrap();
    let unlocked = &making[locked - 1];
    stage.call(&["start", stage.id()]).ok();
    let looking = between(&calls_of(&stage, &exec), &format!("{}\", O_RDONLY", stage.id()), "flock(");
    stage.delete();
    assert!(looking.len() > 1, "{looking:?}");
    for place in &looking {
        let creation = Slow::begin(&stage, &[unlocked.clone(), before_mounts()], &create);
        let entry = Slow::begin(&stage, std::slice::from_ref(place), &exec);
        send(creation.pid(), Signal::CONT);
        eventually("the process is named, and stops", || is_named(&stage) && creation.stopped().len() == 2);
        assert_ne!(entry.status(), Some(0), "{place:?}");
        assert_eq!(entry.end(), 255, "it entered after {place:?}");
        assert_eq!(creation.end(), 0, "{place:?}");
        stage.delete();
        stage.is_clean();
    }
}

#[test]
fn a_program_does_not_enter_what_its_maker_left_half_made() {
    let Some(mut stage) = watched() else { return };
    stage.script("while :; do sleep 0.05; done");
    for words in [["create", stage.id()].as_slice(), &["run", "--detach", stage.id()]] {
        stage.write_config();
        let creation = Slow::begin(&stage, &[before_mounts()], words);
        eventually("the process is named", || is_named(&stage));
        send(creation.pid(), Signal::KILL);
        eventually("its maker is gone", || !Path::new(&format!("/proc/{}", creation.pid())).exists());
        stage.call(&["exec", stage.id(), "true"]).fails(255, "still being made");
        stage.call(&["start", stage.id()]).fails(1, "in the creating state");
        // It finds nobody whom it could tell that it is done.
        assert_eq!(creation.end(), -1);
        eventually("it ends", || stage.status() == "stopped");
        stage.call(&["exec", stage.id(), "true"]).fails(255, "stopped");
        stage.delete();
        stage.is_clean();
    }
}

/// The last calls of the container side before it waits for `start`: after each of them its maker is killed.
#[test]
fn what_its_maker_left_is_started_whole_or_not_at_all() {
    let Some(mut stage) = watched() else { return };
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    let create = ["create", stage.id()];
    let mut last = between(&calls_of_container_side(&stage, &create), "close_range(", "Ready");
    // After that one its maker is done.
    last.pop();
    let middle = 1..last.len().saturating_sub(10);
    last.drain(middle);
    stage.delete();
    let started: Vec<bool> = last.iter().map(|place| is_started_half_made(&stage, place)).collect();
    // Not before it is whole, and then always.
    assert!(!started[0] && started.is_sorted() && started[started.len() - 1], "{last:?}: {started:?}");
}

/// Whether `start` succeeds on what waits at a place when its maker is killed. Then it becomes the program.
fn is_started_half_made(stage: &Stage, place: &Place) -> bool {
    let creation = Slow::begin(stage, std::slice::from_ref(place), &["create", stage.id()]);
    eventually("the container side stops", || {
        // Its maker may do such a call, too.
        send(creation.pid(), Signal::CONT);
        creation.stopped().into_iter().any(|pid| pid != creation.pid())
    });
    send(creation.pid(), Signal::KILL);
    eventually("its maker is gone", || !Path::new(&format!("/proc/{}", creation.pid())).exists());
    let is_whole = stage.status() == "created";
    let start = stage.call(&["start", stage.id()]);
    let is_started = start.status == 0;
    if !is_started {
        start.fails(1, "in the creating state");
    }
    assert_eq!(is_started, is_whole, "{place:?}");
    assert_eq!(creation.end(), -1);
    eventually("it is done", || matches!(stage.status().as_str(), "running" | "stopped"));
    // What is not whole ends by itself.
    let status = if is_started { "running" } else { "stopped" };
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(stage.status(), status, "{place:?}");
    stage.delete();
    stage.is_clean();
    is_started
}

#[test]
fn what_its_maker_left_half_made_is_removed() {
    let Some(mut stage) = watched() else { return };
    stage.args(&["true"]);
    stage.write_config();
    for words in [["delete", stage.id()].as_slice(), &["delete", "--force", stage.id()]] {
        let creation = Slow::begin(&stage, &[("capset".to_owned(), 1)], &["create", stage.id()]);
        send(creation.pid(), Signal::KILL);
        eventually("its maker is gone", || !Path::new(&format!("/proc/{}", creation.pid())).exists());
        assert_eq!(stage.status(), "creating");
        stage.call(words).ok();
        stage.is_clean();
    }
}

#[test]
fn a_signal_that_comes_before_the_program_is_for_the_program() {
    let Some(mut stage) = watched() else { return };
    stage.script("trap 'exit 9' TERM; while :; do sleep 0.02; done");
    stage.write_config();
    // The container side stops with one call left before it becomes the program, and there the first process of a
    // namespace takes no signal. The other is delayed until the program can take it.
    let last_steps = ("umask".to_owned(), 2);
    let delay = ["-e", "inject=pidfd_send_signal:delay_enter=1000000"];
    let run = Slow::begin_with(&stage, &[last_steps], &delay, &["run", stage.id()]);
    send(run.pid(), Signal::TERM);
    // Longer than the delay: a signal that did not wait would have been sent.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(run.end(), 9);
    stage.is_clean();
}

#[test]
fn a_deletion_takes_no_directory_away_that_is_being_made() {
    let Some(mut stage) = watched() else { return };
    stage.args(&["true"]);
    stage.write_config();
    let create = ["create", stage.id()];
    let making = beginning_of(&stage, &create);
    stage.delete();
    let is_locked = |place: &Place| {
        making.iter().position(|(name, _)| name == "flock") <= making.iter().position(|one| one == place)
    };
    for place in &making {
        for force in [false, true] {
            let creation = Slow::begin(&stage, std::slice::from_ref(place), &create);
            match force {
                false => drop(stage.call(&["delete", stage.id()]).fails(1, "does not exist")),
                // Later it waits until the creation is done, and then removes what was made.
                true if !is_locked(place) => stage.delete(),
                true => {}
            }
            assert_eq!(creation.end(), 0, "after {place:?}, force: {force}");
            assert_eq!(stage.status(), "created", "{place:?}, force: {force}");
            stage.delete();
            stage.is_clean();
        }
    }
}

#[test]
fn a_deletion_frees_the_name_that_a_creation_left_at_its_beginning() {
    let Some(mut stage) = watched() else { return };
    stage.args(&["true"]);
    stage.write_config();
    let create = ["create", stage.id()];
    let making = beginning_of(&stage, &create);
    stage.delete();
    for place in &making {
        let creation = Slow::begin(&stage, std::slice::from_ref(place), &create);
        send(creation.pid(), Signal::KILL);
        assert_ne!(creation.end(), 0);
        stage.call(&["delete", stage.id()]).fails(1, "does not exist");
        stage.call(&create).ok();
        stage.delete();
        stage.is_clean();
    }
}

#[test]
fn a_deletion_frees_the_name_also_where_the_filter_was_there_already() {
    let Some(mut stage) = watched() else { return };
    stage.args(&["true"]);
    stage.config["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    stage.write_config();
    let create = ["create", stage.id()];
    let kept = stage.root().join("@seccomp");
    for is_kept in [false, true] {
        stage.call(&create).ok();
        stage.delete();
        let forget = || drop((!is_kept).then(|| std::fs::remove_dir_all(&kept)));
        forget();
        let mut making = between(&calls_of(&stage, &create), "state.json", "\"{\\\"format\\\"");
        // With that one there is a state.
        making.pop();
        stage.delete();
        for place in making.iter().filter(|place| changes_files(place)) {
            forget();
            let creation = Slow::begin(&stage, std::slice::from_ref(place), &create);
            send(creation.pid(), Signal::KILL);
            assert_ne!(creation.end(), 0);
            stage.call(&["delete", stage.id()]).fails(1, "does not exist");
            assert!(!stage.root().join(stage.id()).exists(), "{place:?}, is kept: {is_kept}");
        }
        stage.is_clean();
    }
}

#[test]
fn a_creation_that_cannot_claim_its_directory_takes_nobody_elses_away() {
    let Some(mut stage) = watched() else { return };
    stage.script("while :; do sleep 0.05; done");
    let create = ["create", stage.id()];
    let making = beginning_of(&stage, &create);
    stage.delete();
    let claim = format!("inject=openat:error=EMFILE:when={}", making.last().unwrap().1);
    let creation = Slow::begin_with(&stage, &making[..1], &["-e", &claim], &create);
    // What it has made goes, and another makes a container of that name.
    stage.call(&["delete", stage.id()]).fails(1, "does not exist");
    stage.call(&create).ok();
    assert_eq!(creation.end(), 1);
    assert_eq!(stage.status(), "created");
    stage.delete();
    stage.is_clean();
}

#[test]
fn who_finds_the_container_with_the_root_that_it_wanted_to_make_says_so() {
    let Some(mut stage) = watched() else { return };
    stage.args(&["true"]);
    stage.write_config();
    let create = ["create", stage.id()];
    let calls = calls_of(&stage, &create);
    stage.delete();
    std::fs::remove_dir_all(stage.root()).unwrap();
    let first = calls.iter().position(|(_, line)| line.contains(&making_dir(&stage))).unwrap();
    assert!(calls[first].1.contains("ENOENT"), "{}", calls[first].1);
    let creation = Slow::begin_with(&stage, std::slice::from_ref(&calls[first].0), &["-s", "200"], &create);
    stage.call(&create).ok();
    assert_eq!(creation.end(), 1);
    let told = std::fs::read_to_string(&creation.trace).unwrap();
    assert!(told.contains("container with given ID already exists"), "{told}");
    stage.delete();
    stage.is_clean();
}

#[test]
fn a_start_waits_for_the_creation_and_starts_what_was_made() {
    let Some(mut stage) = watched() else { return };
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    let create = ["create", stage.id()];
    let calls = calls_of(&stage, &create);
    stage.delete();
    let saved = calls.iter().find(|(_, line)| line.contains("\"{\\\"format\\\"")).unwrap();
    let creation = Slow::begin(&stage, std::slice::from_ref(&saved.0), &create);
    let mut start = stage.command().args(["start", stage.id()]).spawn().unwrap();
    let waits = |line: &str| line.contains("->") && line.contains(&format!(" {} ", start.id()));
    eventually("it waits", || std::fs::read_to_string("/proc/locks").unwrap().lines().any(waits));
    assert_eq!(creation.end(), 0);
    assert!(start.wait().unwrap().success());
    assert_eq!(stage.status(), "running");
    stage.delete();
    stage.is_clean();
}

#[test]
fn a_kill_that_comes_late_leaves_the_next_container_its_limit() {
    let Some(mut stage) = watched() else { return };
    stage.config["linux"]["resources"]["cpu"] = serde_json::json!({ "quota": 50_000, "period": 100_000 });
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let kill = Slow::begin(&stage, &[("pidfd_send_signal".to_owned(), 1)], &["kill", stage.id(), "KILL"]);
    eventually("it is dead", || stage.status() == "stopped");
    stage.delete();
    stage.detached();
    assert_eq!(kill.end(), 0);
    let quota = stage.cgroup_file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    stage.delete();
}

#[test]
fn a_kill_writes_no_limit_where_none_is() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("which calls it does is lowrun's") || !has_strace() {
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let calls = calls_of(&stage, &["kill", stage.id(), "KILL"]);
    let written: Vec<_> = calls.iter().filter(|((name, _), _)| name == "write").collect();
    assert!(written.is_empty(), "{written:?}");
    eventually("it is dead", || stage.status() == "stopped");
    stage.delete();
}
