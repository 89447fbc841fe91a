//! The helper as a program. That there are tests here has cargo build it beside shimd, whose tests start it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs it with all of its input.
fn run(input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shimd-registry"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start it");
    // One that has seen enough may close its input first.
    let _ = child.stdin.take().expect("its input").write_all(input);
    child.wait_with_output().expect("wait for it")
}

#[test]
fn it_ends_with_its_input_and_has_said_nothing() {
    let output = run(b"");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn an_order_without_bounds_is_refused() {
    let output = run(&[0xff; 64]);
    assert!(!output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("shimd-registry: "), "{output:?}");
}
