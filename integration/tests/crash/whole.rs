//! What must be true after something was killed.

use std::time::Duration;

use integration::stack::ours::{Supervisor, supervisor_socket};
use integration::{Call, Output, Stack, leak, process, programs, wait};

/// How long what goes on after a restart may take to settle.
const SETTLE: Duration = Duration::from_secs(10);

/// What the client of `run -d` or `stop` was told holds.
#[track_caller]
pub(crate) fn assert_promise(s: &Stack, name: &str, promised: &str, told: &Output, point: &str) {
    if told.code == 0 {
        let status = || s.run(&["inspect", "--format", "{{.State.Status}}", name]).text();
        assert_eq!(status(), promised, "{point}: the client was told that all is well");
    }
}

/// Whatever the container's state is now, it is true, it can be removed, and then nothing of it is left.
#[track_caller]
pub(crate) fn assert_whole(s: &mut Stack, name: &str, point: &str) {
    if is_listed(s, name) {
        assert_state_is_true(s, name, point);
        let removed = s.run(&["rm", "-f", name]);
        assert_eq!(removed.code, 0, "{point}: rm -f: {}", removed.errors());
    }
    assert_eq!(s.text(&["ps", "-aq"]), "", "{point}");
    s.assert_nothing_left(point);
    let next = s.run(&["run", "--rm", "--name", name, s.busybox(), "echo", "next"]);
    assert_eq!((next.code, next.text().as_str()), (0, "next"), "{point}: {}", next.errors());
}

fn is_listed(s: &Stack, name: &str) -> bool {
    !s.text(&["ps", "-a", "--filter", &format!("name={name}"), "--format", "{{.Names}}"]).is_empty()
}

/// What is said to run has a process, and can be entered; what is said not to run has neither process nor cgroup.
#[track_caller]
fn assert_state_is_true(s: &Stack, name: &str, point: &str) {
    let settled = wait::poll(SETTLE, || {
        process::reap_orphans();
        let said = s.inspect(name, "{{.State.Status}} {{.State.Pid}} {{.Id}}");
        let words: Vec<&str> = said.split(' ').collect();
        let [status, pid, id] = words.as_slice() else { return None };
        let is_true = match *status {
            "running" => lives(pid) && s.run(&["exec", name, "true"]).code == 0,
            _ => leak::cgroups_named(id).is_empty(),
        };
        is_true.then_some(())
    });
    assert!(settled.is_some(), "{point}: it is said to be {}", s.inspect(name, "{{.State.Status}} {{.State.Pid}}"));
}

fn lives(pid: &str) -> bool {
    let found = pid.parse().ok().and_then(process::find);
    found.is_some_and(|process| process.state != 'Z')
}

/// The supervisor's own lists, as `ctr` shows them: what belonged to a removed container is on none of them.
pub(crate) struct Lists(Vec<String>);

impl Lists {
    /// `None` where there is no `ctr`.
    pub(crate) fn look(s: &Stack) -> Option<Lists> {
        let ctr = programs::peer("ctr")?;
        let lists: [&[&str]; 5] = [
            &["containers", "ls", "-q"],
            &["tasks", "ls", "-q"],
            &["snapshots", "ls"],
            &["leases", "ls", "-q"],
            &["content", "active"],
        ];
        let ask = |list: &&[&str]| {
            let mut command = s.site().command(&ctr);
            command.arg("--address").arg(supervisor_socket(s.site(), Supervisor::Shimd));
            Call::new(command).args(&["--namespace", "strata"]).args(list).output().ok().text()
        };
        let lines = lists.iter().map(ask).flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        Some(Lists(lines.collect()))
    }

    /// Now, with no container left, there is nothing more on them than there was.
    #[track_caller]
    pub(crate) fn assert_not_grown(before: Option<&Lists>, s: &Stack) {
        let Some(before) = before else { return };
        let mut more = Vec::new();
        wait::poll(SETTLE, || {
            more = Lists::look(s).expect("ctr was there").0;
            more.retain(|line| !before.0.contains(line));
            more.is_empty().then_some(())
        });
        assert!(more.is_empty(), "on the supervisor's lists: {more:?}");
    }
}
