//! Containers of one group: whoever starts first is their shim, however many start at once.

#![expect(dead_code, reason = "the harness is shared with the tests of tasks")]

mod harness;

use std::fs;
use std::process::Output;

use harness::Stage;

const AT_ONCE: usize = 6;
const ROUNDS: usize = 12;

/// Starts a shim for each of the bundles at the same moment.
fn start_all(stage: &Stage, bundles: &[String]) -> Vec<Output> {
    let children: Vec<_> = bundles
        .iter()
        .map(|bundle| {
            let mut command = stage.command_of(bundle, bundle, "start");
            command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn end(pid: &str) {
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn those_that_start_at_once_share_one_shim() {
    let Some(stage) = Stage::new("group").await else { return };
    for round in 0..ROUNDS {
        let group = format!("g{round}");
        let config = serde_json::json!({ "annotations": { "io.containerd.runc.v2.group": group } }).to_string();
        let bundles: Vec<String> = (0..AT_ONCE).map(|at| format!("{group}-{at}")).collect();
        for bundle in &bundles {
            fs::create_dir(stage.path(bundle)).unwrap();
            fs::write(stage.path(bundle).join("config.json"), &config).unwrap();
        }
        // A socket that a dead shim left makes them all look whether somebody serves.
        let left = start_all(&stage, &bundles[..1]);
        end(&fs::read_to_string(stage.path(&bundles[0]).join("shim.pid")).unwrap());
        let socket = String::from_utf8(left[0].stdout.clone()).unwrap();
        fs::remove_file(stage.path(&bundles[0]).join("shim.pid")).unwrap();
        let begun = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(socket.trim_start_matches("unix://")).is_ok() {
            assert!(begun.elapsed() < harness::PATIENCE, "a dead shim serves");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let outputs = start_all(&stage, &bundles);
        let addresses: Vec<_> = outputs.iter().map(|output| output.stdout.clone()).collect();
        assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
        assert!(addresses.iter().all(|address| *address == left[0].stdout), "{outputs:?}");
        let pids = bundles.iter().filter_map(|bundle| fs::read_to_string(stage.path(bundle).join("shim.pid")).ok());
        let pids: Vec<String> = pids.collect();
        pids.iter().for_each(|pid| end(pid));
        assert_eq!(pids.len(), 1, "several shims serve one group");
    }
}
