//! How long each part of a container's life takes, and how fast output comes through; not a test but a measurement:
//! `cargo nextest run -p containerd-shim-strata-v1 --test speed --run-ignored only --no-capture`.
//!
//! STRATA_TEST_SHIM and STRATA_TEST_RUNTIME choose what is measured, containerd's own shim too.

#![allow(dead_code, reason = "the harness is shared with the tests")]

mod harness;

use std::time::{Duration, Instant};

use harness::Stage;
use proto_shim::task::ShutdownRequest;

const CYCLES: usize = 60;

/// The stages of a cycle and how long each took, over all cycles.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<Duration>)>);

impl Table {
    fn note(&mut self, stage: &'static str, begun: &mut Instant) {
        let took = begun.elapsed();
        match self.0.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, times)) => times.push(took),
            None => self.0.push((stage, vec![took])),
        }
        *begun = Instant::now();
    }

    fn print(mut self) {
        for (stage, times) in &mut self.0 {
            times.sort();
            println!("{stage:>9}  median {:>9.3?}  best {:>9.3?}", times[times.len() / 2], times[0]);
        }
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn the_stages_of_a_life() {
    let mut table = Table::default();
    for cycle in 0..CYCLES {
        let Some(stage) = Stage::new(&format!("speed-{cycle}")).await else { return };
        stage.configure(&["true"], |_| {});
        let mut begun = Instant::now();
        let shim = stage.start().await;
        table.note("shim", &mut begun);
        shim.create(stage.create_request("", "")).await;
        table.note("create", &mut begun);
        shim.start("").await;
        table.note("start", &mut begun);
        shim.wait("").await;
        table.note("wait", &mut begun);
        shim.delete("").await;
        table.note("delete", &mut begun);
        // The stock shim closes the connection before it answers.
        let _ = shim.traced::<_, ()>("Shutdown", ShutdownRequest { id: stage.id.clone(), now: true }).await;
        table.note("shutdown", &mut begun);
    }
    table.print();
}

#[tokio::test]
#[ignore = "a measurement"]
async fn output_into_the_log() {
    const BYTES: u64 = 2_000_000_000;
    let Some(stage) = Stage::new("throughput").await else { return };
    let lines = "a line of output as programs like to write them\n".repeat(20_000);
    std::fs::write(stage.path("lower/lines"), &lines).unwrap();
    let rounds = BYTES / lines.len() as u64;
    let script = format!("i=0; while [ $i -lt {rounds} ]; do echo /lines; i=$((i+1)); done | xargs cat");
    std::os::unix::fs::symlink("busybox", stage.path("lower/bin/xargs")).unwrap();
    stage.configure(&["sh", "-c", &script], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request(&stage.log_uri(), &stage.log_uri())).await;
    let begun = Instant::now();
    shim.start("").await;
    assert_eq!(shim.wait("").await, 0);
    let seconds = begun.elapsed().as_secs_f64();
    let usage = std::fs::read_to_string(format!("/proc/{}/stat", shim.pid)).unwrap();
    let ticks: Vec<&str> = usage.split(' ').collect();
    println!("{:.0} MB/s; the shim took {} + {} ticks", BYTES as f64 / 1e6 / seconds, ticks[13], ticks[14]);
    shim.delete("").await;
    shim.shutdown().await;
}
