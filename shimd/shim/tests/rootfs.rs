//! Where a running container's root file system is mounted: on the host only as long as somebody needs it there.

#![expect(dead_code, reason = "the harness is shared with the tests of tasks")]

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use harness::{PATIENCE, Shim, Stage};
use serde_json::Value;

fn is_mounted(stage: &Stage) -> bool {
    let rootfs = stage.text("bundle/rootfs");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&rootfs))
}

/// A container that runs until it is killed.
async fn running(id: &str, change: impl FnOnce(&mut Value)) -> Option<(Stage, Shim)> {
    let stage = Stage::new(id).await?;
    stage.configure(&["sleep", "1000"], change);
    let shim = stage.start().await;
    shim.create(stage.create_request(&stage.log_uri(), &stage.log_uri())).await;
    shim.start("").await;
    Some((stage, shim))
}

async fn end(stage: Stage, shim: Shim) {
    shim.kill("", 9).await;
    assert_eq!(shim.wait("").await, 137);
    shim.delete("").await;
    assert!(!is_mounted(&stage));
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn it_leaves_the_hosts_mount_table_and_lives_on() {
    let Some((stage, shim)) = running("hidden", |_| {}).await else { return };
    assert!(is_mounted(&stage), "the look finds what is there");
    let begun = Instant::now();
    while is_mounted(&stage) {
        assert!(begun.elapsed() < PATIENCE, "it stays mounted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It is all there for the container, and for processes that come later.
    shim.exec("e", &["sh", "-c", "echo written >/tmp/file && [ \"$(cat /tmp/file)\" = written ]"], |_| {}).await;
    shim.start("e").await;
    assert_eq!(shim.wait("e").await, 0);
    shim.delete("e").await;
    assert_eq!(fs::read_to_string(stage.path("upper/tmp/file")).unwrap(), "written\n");
    end(stage, shim).await;
}

#[tokio::test]
async fn it_stays_for_hooks_that_may_look_for_it() {
    let hooked = running("hooked", |spec| {
        spec["hooks"] = serde_json::json!({ "poststop": [{ "path": "/bin/true" }] });
    });
    let Some((stage, shim)) = hooked.await else { return };
    // The quiet after which it would have gone is over.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(is_mounted(&stage));
    end(stage, shim).await;
}

#[tokio::test]
async fn it_goes_with_a_shim_that_is_killed_after_it_was_hidden() {
    let Some((stage, shim)) = running("orphaned", |_| {}).await else { return };
    let begun = Instant::now();
    while is_mounted(&stage) {
        assert!(begun.elapsed() < PATIENCE, "it stays mounted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(shim.pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    harness::within(shim.client.closed()).await;
    assert!(stage.delete().status.success());
    stage.assert_clean();
}
