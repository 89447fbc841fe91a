//! The harness itself: what is left behind is found, each kind of it, and taken away.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use integration::lab::Lab;
use integration::leak::{self, Kind, Leak};
use integration::skip::{obstacle, skip};
use integration::{process, theirs};

/// Runs `leave`, which leaves something behind in a new lab, and returns what the lab found. Afterwards the lab is
/// removed, and nothing of it may be there.
fn found_after(leave: impl FnOnce(&Lab)) -> Option<Vec<Leak>> {
    if let Some(reason) = obstacle() {
        skip(reason);
        return None;
    }
    let lab = Lab::enter();
    let clean = lab.leaks(|_| false);
    assert!(clean.is_empty(), "a new lab is not clean:\n{}", leak::report(&clean));
    leave(&lab);
    // Nothing goes away by itself: there is nothing to wait for.
    let found = lab.look(&[], &[]);
    let found = lab.before().grown_to(&found);
    let (root, instance) = (lab.site().root().to_path_buf(), lab.site().instance().to_owned());
    lab.remove();
    assert!(!root.exists(), "{} is still there", root.display());
    assert_eq!(leak::cgroups_named(&instance), Vec::<String>::new());
    Some(found)
}

fn run(program: &str, arguments: &[&str]) {
    let status =
        Command::new(program).args(arguments).status().unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

#[track_caller]
fn assert_only(found: Option<Vec<Leak>>, kind: Kind, text: &str) {
    let Some(found) = found else { return };
    assert!(!found.is_empty(), "nothing was found");
    for leak in &found {
        assert!(leak.kind == kind && leak.what.contains(text), "{leak} is not a {kind} with {text:?}");
    }
}

#[test]
fn a_mount_is_found() {
    let found = found_after(|lab| {
        let place = lab.site().path("tmp/mounted");
        fs::create_dir(&place).expect("a directory");
        run("mount", &["-t", "tmpfs", "none", &place.display().to_string()]);
    });
    assert_only(found, Kind::Mount, "/tmp/mounted");
}

#[test]
fn a_second_mount_on_the_same_place_is_found() {
    let found = found_after(|_| run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"]));
    assert_only(found, Kind::Mount, "/run");
}

#[test]
fn a_cgroup_is_found_also_a_deep_one() {
    let found = found_after(|lab| {
        let hierarchy = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .into_iter()
            .find(|path| Path::new(path).join("cgroup.procs").exists());
        let group =
            Path::new(hierarchy.expect("a cgroup hierarchy")).join(format!("strata-{}/a/b", lab.site().instance()));
        fs::create_dir_all(group).expect("a cgroup");
    });
    assert_only(found, Kind::Cgroup, "/strata-t");
}

#[test]
fn a_link_is_found() {
    let found = found_after(|_| run("ip", &["link", "add", "left0", "type", "bridge"]));
    assert_only(found, Kind::Link, "left0");
}

#[test]
fn a_table_is_found_and_so_is_an_element_of_a_set() {
    let found = found_after(|_| {
        run(
            "nft",
            &["add table ip left; add set ip left ports { type inet_service; }; add element ip left ports { 80 }"],
        );
    });
    assert_only(found, Kind::Nftables, "left");
}

#[test]
fn an_orphan_is_found_also_in_a_session_of_its_own() {
    let found = found_after(|_| run("sh", &["-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null &"]));
    assert_only(found, Kind::Process, "sleep 1000");
}

#[test]
fn a_pinned_network_namespace_is_found() {
    let found = found_after(|lab| {
        let pin = lab.site().path("run/pin");
        fs::write(&pin, "").expect("a file");
        run("unshare", &["--net", "mount", "--bind", "/proc/self/ns/net", &pin.display().to_string()]);
    });
    assert_only(found, Kind::Mount, "net:[");
}

#[test]
fn files_and_descriptors_are_found() {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    let lab = Lab::enter();
    let directory = lab.site().path("lib");
    let mut shell = Command::new("sh");
    shell.args(["-c", "read go; exec 5>left-open; read end"]).current_dir(&directory);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    let pid = child.id() as i32;
    let before = lab.look(&[pid], &[&directory]);
    let stdin = child.stdin.as_mut().expect("a pipe");
    std::io::Write::write_all(stdin, b"go\n").expect("write");
    integration::wait::until_true("the file is open", || directory.join("left-open").exists());
    let found = before.grown_to(&lab.look(&[pid], &[&directory]));
    let kinds: Vec<Kind> = found.iter().map(|leak| leak.kind).collect();
    assert_eq!(kinds, [Kind::Descriptor, Kind::File], "{}", leak::report(&found));
    child.kill().and_then(|()| child.wait()).expect("end the shell");
    lab.remove();
}

#[test]
fn a_lab_does_not_show_outside() {
    if found_after(|_| run("ip", &["link", "add", "inside0", "type", "bridge"])).is_some() {
        let machine = fs::read_to_string(format!("/proc/{}/net/dev", std::process::id())).expect("the machine's links");
        assert!(!machine.contains("inside0"));
    }
}

#[test]
fn a_lab_whose_process_was_killed_is_swept_away() {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    let mut ended = Command::new("true").spawn().expect("a process");
    ended.wait().expect("its end");
    let instance = format!("tdead{}", std::process::id() % 1000);
    let root = std::env::temp_dir().join(format!("strata-lab-{instance}"));
    fs::create_dir(&root).expect("a lab's directory");
    fs::write(root.join("owner"), ended.id().to_string()).expect("its owner");
    let lab = Lab::enter();
    assert!(!root.exists());
    lab.remove();
}

#[test]
fn a_test_that_leaves_a_mount_in_a_stack_fails() {
    let outcome = std::panic::catch_unwind(|| {
        theirs(|stack| run("mount", &["-t", "tmpfs", "left-behind", &stack.site().path("tmp").display().to_string()]));
    });
    let Err(panic) = outcome else {
        assert!(obstacle().is_some() || integration::programs::peer("dockerd").is_none(), "the leak was not found");
        return;
    };
    let text = panic.downcast_ref::<String>().expect("a message");
    assert!(text.contains("mount: ") && text.contains("left-behind"), "{text}");
    let mine = process::descendants(std::process::id() as i32);
    assert!(mine.iter().all(|process| process.state == 'Z'), "{mine:?}");
}
