//! The part of process 1: who is left by a parent that was killed comes here, and is fetched when it has ended. A PID
//! namespace does not end before, and process 1 of some machines takes its time.

use std::sync::Once;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// From now on orphans come to this process.
pub(crate) fn adopt() {
    static ADOPTED: Once = Once::new();
    ADOPTED.call_once(|| {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        std::thread::spawn(|| {
            loop {
                fetch();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    });
}

/// Fetches the dead, but for those that are waited for by who started them: a shimd, a tracer.
fn fetch() {
    let me = std::process::id().to_string();
    let tasks = std::fs::read_dir(format!("/proc/{me}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    });
    for child in children {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let is_own = ["(shimd)", "(crashes"].iter().any(|name| stat.contains(name));
        if stat.contains(") Z ") && !is_own {
            let _ = waitpid(Pid::from_raw(child), Some(WaitPidFlag::WNOHANG));
        }
    }
}
