//! One contestant of the whole-stack rows: a process with a stack of its own, told by lines what to do.
//!
//! The benchmark starts two of itself, one with our daemons and one with Debian's dockerd, and asks them in turn. A line
//! names one of the [`TASKS`]; the answer is a line with one figure. So both stacks live at the same time in namespaces of their
//! own, and every comparison is interleaved.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use integration::Stack;
use integration::stack::ours::Settings;

use crate::measure::{ms, pss_kib, timed};

/// Does something on a stack and returns a figure.
type Task = fn(&mut Stack) -> f64;

/// What a contestant can be told. The word is what goes over the pipe.
pub(crate) const TASKS: [(&str, Task); 12] = [
    ("run-bridge", |stack| run_true(stack, "bridge")),
    ("run-none", |stack| run_true(stack, "none")),
    ("detached", |stack| command_ms(stack, &["run", "-d", "--rm", &busybox(stack), "true"])),
    ("exec", |stack| command_ms(stack, &["exec", "bench", "true"])),
    ("pull", pull),
    ("output", output),
    ("fifty", fifty),
    ("shim-pss", shim_pss),
    ("daemons-pss", daemons_pss),
    ("start-bench", start_long_running),
    ("add-fifty", add_fifty),
    ("remove-more", remove_more),
];

fn busybox(stack: &Stack) -> String {
    stack.busybox().to_owned()
}

/// Serves the pipe until it ends. `ours` says whose stack it is.
pub(crate) fn serve(ours: bool) {
    let answer = |stack: &mut Stack| {
        println!("ready");
        for line in stdin().lines() {
            let line = line.expect("the benchmark's pipe");
            let task = TASKS.iter().find(|(name, _)| *name == line).unwrap_or_else(|| panic!("unknown task {line}"));
            println!("{}", (task.1)(stack));
            stdout().flush().expect("the benchmark's pipe");
        }
    };
    // As people have it: engined's own choice of what it makes ahead.
    let settings = Settings { prepared: Some(8), ..Settings::default() };
    if ours { integration::ours_with(settings, answer) } else { integration::theirs(answer) }
}

fn run_true(stack: &mut Stack, network: &str) -> f64 {
    command_ms(stack, &["run", "--rm", "--network", network, &busybox(stack), "true"])
}

/// Milliseconds of one call of the command line.
fn command_ms(stack: &Stack, arguments: &[&str]) -> f64 {
    ms(timed(&mut stack.call(arguments).into_command()).wall)
}

fn start_long_running(stack: &mut Stack) -> f64 {
    command_ms(stack, &["run", "-d", "--name", "bench", &busybox(stack), "sleep", "100000"])
}

/// Milliseconds of a pull of the benchmark's layers, from nothing.
fn pull(stack: &mut Stack) -> f64 {
    let image = stack.image("layers");
    let layout = integration::programs::images().join("layers");
    stack.registry().add(&layout, "layers", "latest").expect("the image layers: run 'make bench'");
    let cost = command_ms(stack, &["pull", "-q", &image]);
    stack.run(&["rmi", &image]).ok();
    cost
}

/// Milliseconds of 200 MB of lines through the foreground into a file.
fn output(stack: &mut Stack) -> f64 {
    let file = stack.site().path("tmp/output");
    let script = format!(
        "$CLI run --rm {} sh -c 'yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 200000000' >{}",
        stack.busybox(),
        file.display()
    );
    let start = Instant::now();
    stack.shell(&script).limit(Duration::from_secs(300)).output().ok();
    let wall = ms(start.elapsed());
    let size = std::fs::metadata(&file).expect("the output").len();
    assert_eq!(size, 200_000_000, "the output is not whole");
    std::fs::remove_file(&file).expect("remove the output");
    wall
}

/// Milliseconds until fifty containers run that were started at once.
fn fifty(stack: &mut Stack) -> f64 {
    let script = format!(
        "for i in $(seq 50); do $CLI run -d --label bench=fifty {} sleep 100000 >/dev/null & done; wait",
        stack.busybox()
    );
    let start = Instant::now();
    stack.shell(&script).limit(Duration::from_secs(300)).output().ok();
    let wall = ms(start.elapsed());
    let running = stack.text(&["ps", "-q", "--filter", "label=bench=fifty"]);
    assert_eq!(running.lines().count(), 50, "not all fifty run");
    let mut remove = vec!["rm", "-f"];
    remove.extend(running.lines());
    stack.call(&remove).limit(Duration::from_secs(300)).output().ok();
    wall
}

/// Starts fifty more and leaves them running; returns how many run now.
fn add_fifty(stack: &mut Stack) -> f64 {
    let running = |stack: &Stack| stack.text(&["ps", "-q", "--filter", "label=bench=more"]).lines().count();
    let before = running(stack);
    let script = format!(
        "for i in $(seq 50); do $CLI run -d --label bench=more {} sleep 100000 >/dev/null; done",
        stack.busybox()
    );
    stack.shell(&script).limit(Duration::from_secs(600)).output().ok();
    let after = running(stack);
    assert_eq!(after, before + 50, "not all fifty run");
    after as f64
}

/// Milliseconds until those are gone.
fn remove_more(stack: &mut Stack) -> f64 {
    let script = "$CLI rm -f $($CLI ps -q --filter label=bench=more)";
    let start = Instant::now();
    stack.shell(script).limit(Duration::from_secs(600)).output().ok();
    let wall = ms(start.elapsed());
    assert_eq!(stack.text(&["ps", "-q", "--filter", "label=bench=more"]), "", "some are still there");
    wall
}

/// KiB of the shim of a container after one exec and 10 MB of output, 10 s idle.
fn shim_pss(stack: &mut Stack) -> f64 {
    let image = busybox(stack);
    let id = stack.detached(&["--name", "pss", &image, "sh", "-c", "yes | head -c 10000000; sleep 100000"]);
    stack.run(&["exec", "pss", "true"]).ok();
    std::thread::sleep(Duration::from_secs(10));
    let shims = processes(|command| command.contains("containerd-shim") && command.contains(&id));
    assert!(!shims.is_empty(), "no shim of {id} is found");
    let kib: u64 = shims.iter().filter_map(|pid| pss_kib(*pid)).sum();
    stack.run(&["rm", "-f", "pss"]).ok();
    kib as f64
}

/// KiB of the two daemons, idle.
fn daemons_pss(_: &mut Stack) -> f64 {
    std::thread::sleep(Duration::from_secs(10));
    let names = ["engined", "shimd", "dockerd", "containerd"];
    let mine = std::process::id();
    let daemons = processes(|command| {
        let program = command.split('\0').next().unwrap_or_default();
        names.iter().any(|name| program.rsplit('/').next() == Some(name))
    });
    daemons.iter().filter(|pid| descends_from(**pid, mine)).filter_map(|pid| pss_kib(*pid)).sum::<u64>() as f64
}

/// The processes whose command line (its words end with NUL bytes, proc(5)) is wanted.
fn processes(is_wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_wanted(&String::from_utf8_lossy(&command))
    })
    .collect()
}

fn descends_from(pid: u32, ancestor: u32) -> bool {
    let parent = |pid: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid > 1) {
        if pid == ancestor {
            return true;
        }
        next = parent(pid);
    }
    false
}

/// The benchmark's end of a contestant.
pub(crate) struct Contestant {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Contestant {
    /// Starts the process `which` (`ours` or `theirs`) and waits until its stack answers.
    pub(crate) fn start(which: &str) -> Contestant {
        let program = std::env::current_exe().expect("the benchmark's own program");
        let mut child = Command::new(program)
            .args(["--contestant", which])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a contestant");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        let mut contestant = Contestant { child, stdin, stdout };
        assert_eq!(contestant.line(), "ready", "the stack of {which} did not start");
        contestant
    }

    /// Does one task and returns its figure.
    pub(crate) fn ask(&mut self, task: &str) -> f64 {
        let stdin = self.stdin.as_mut().expect("the contestant's input");
        writeln!(stdin, "{task}").expect("the contestant is there");
        let line = self.line();
        line.parse().unwrap_or_else(|error| panic!("{task} answered {line:?}: {error}"))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the contestant's output");
        line.trim_end().to_owned()
    }

    /// Ends it, and with it its stack and its look for what was left behind.
    pub(crate) fn end(mut self) {
        self.stdin = None;
        let status = self.child.wait().expect("wait for a contestant");
        assert!(status.success(), "a contestant ended with {status}");
    }
}
