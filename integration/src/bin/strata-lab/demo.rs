//! The demo: the whole path of a container, step by step, each step checked.
//!
//! It has a directory of its own and works on the machine itself, as a person would, not in a lab. Whatever happens, it
//! takes everything away at the end; what it could not take away is an error.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use integration::installation::{self, Installation};
use integration::registry::free_port;
use integration::stack::ours::{client, socket};
use integration::terminal::Terminal;
use integration::{Call, http, wait};
use nix::sys::signal::Signal;

use crate::narrator::Narrator;
use crate::screen;

/// Shows everything.
pub(crate) fn run() -> Result<(), String> {
    let root = PathBuf::from(format!("/tmp/strata-demo-{}", std::process::id()));
    let before = installation::look(&root);
    let mut narrator = Narrator::default();
    println!(
        "Everything below is real: Debian's nginx, from Debian's registry, through five programs down to the kernel."
    );
    println!("All state is in {}; it is removed at the end.", root.display());
    let shown = Installation::start(&root).and_then(|installation| {
        let mut demo = Demo { port: free_port(), installation, narrator: &mut narrator };
        // A failed expectation of the harness is a panic; the clean-up must come nevertheless.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| demo.all()));
        demo.installation.leave_running();
        outcome.unwrap_or_else(|_| Err("the demo broke off".to_owned()))
    });
    if shown.is_err() {
        show_logs(&root);
    }
    let removed = clean_up(&root, &before, &mut narrator, shown.is_ok());
    shown.and(removed)?;
    narrator.end();
    Ok(())
}

fn show_logs(root: &std::path::Path) {
    for name in ["engined", "shimd"] {
        let text = std::fs::read_to_string(root.join(format!("log/{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("---- end of the log of {name}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
    }
}

fn clean_up(
    root: &std::path::Path,
    before: &integration::leak::Snapshot,
    narrator: &mut Narrator,
    told: bool,
) -> Result<(), String> {
    if told {
        narrator.step("Everything is removed, and nothing is left over");
    }
    let troubles = installation::remove(root);
    if !troubles.is_empty() {
        return Err(troubles.join("\n"));
    }
    let mut left = Vec::new();
    wait::poll(Duration::from_secs(5), || {
        left = installation::left_over(root, before, &installation::look(root));
        left.is_empty().then_some(())
    });
    let what = "no mount, cgroup, network namespace, link, nftables rule, process or file is left";
    if left.is_empty() {
        narrator.check(what, true)
    } else {
        Err(format!("left behind:\n{}", installation::report(&left)))
    }
}

struct Demo<'a> {
    installation: Installation,
    narrator: &'a mut Narrator,
    port: u16,
}

impl Demo<'_> {
    fn all(&mut self) -> Result<(), String> {
        self.nginx_from_a_registry()?;
        self.looking_at_it()?;
        self.a_second_run()?;
        self.in_the_foreground()?;
        self.where_the_time_goes()?;
        self.nothing_is_lost()
    }

    fn strata(&self, arguments: &[&str]) -> Call {
        Call::new(client(&self.installation.site)).args(arguments)
    }

    fn image(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.installation.registry_port)
    }

    fn terminal(&self, arguments: &[&str]) -> Terminal {
        let mut command: Command = client(&self.installation.site);
        command.args(arguments);
        Terminal::start(command, 24, 100)
    }

    fn page(&self) -> Option<String> {
        let (status, body) = http::get(&format!("127.0.0.1:{}", self.port), "/")?;
        (status == 200).then_some(body)
    }

    fn logged(&self, container: &str) -> String {
        let output = self.strata(&["logs", container]).output();
        output.text() + &output.errors()
    }

    fn nginx_from_a_registry(&mut self) -> Result<(), String> {
        self.narrator.step("nginx, from a registry, in the background, with a published port");
        let publish = format!("127.0.0.1:{}:80", self.port);
        let image = self.image("nginx");
        let arguments = ["run", "-d", "--name", "web", "-p", &publish, &image];
        self.narrator.command(&format!("strata {}", arguments.join(" ")));
        // In a terminal, as that is where the progress bars are.
        let mut terminal = self.terminal(&arguments);
        let code = terminal.end();
        let screen = terminal.screen();
        self.narrator.show(&screen::last_frame(&screen));
        self.narrator.check("the client ended with 0", code == 0)?;
        let id = screen.lines().rev().map(str::trim).find(|line| line.len() == 64);
        self.narrator.check("it printed the container's id", id.is_some())?;
        let body = wait::poll(Duration::from_secs(10), || self.page());
        self.narrator.command(&format!("curl http://127.0.0.1:{}/", self.port));
        self.narrator.show(body.as_deref().unwrap_or("no answer"));
        self.narrator.check(
            "a page comes back over the published port",
            body.is_some_and(|body| body.contains("Hello from nginx")),
        )
    }

    fn looking_at_it(&mut self) -> Result<(), String> {
        self.narrator.step("Looking at it: ps, logs -f, exec -it, inspect, events, stop, rm");
        let listed = self.narrator.run("strata ps", self.strata(&["ps"]))?.text();
        self.narrator.check(
            "the list shows it with its port",
            listed.contains("web") && listed.contains(&format!("127.0.0.1:{}->80/tcp", self.port)),
        )?;
        self.logs_follow()?;
        self.exec_in_a_terminal()?;
        let format = "{{.State.Status}} {{.NetworkSettings.IPAddress}} {{.Config.Image}}";
        let said = self.narrator.run(
            &format!("strata inspect --format '{format}' web"),
            self.strata(&["inspect", "--format", format, "web"]),
        )?;
        self.narrator.check("inspect knows its state, address and image", said.text().starts_with("running 1"))?;
        self.events_of_a_life()
    }

    fn logs_follow(&mut self) -> Result<(), String> {
        self.narrator.command("strata logs -f web");
        let following = self.strata(&["logs", "-f", "web"]).start();
        let fetched = self.page().is_some();
        following.expect("GET / HTTP/1.0");
        following.signal(Signal::SIGTERM);
        self.narrator.show(&following.end().text());
        self.narrator.check("logs -f shows the request as it comes", fetched)
    }

    fn exec_in_a_terminal(&mut self) -> Result<(), String> {
        self.narrator.command("strata exec -it web sh");
        let mut terminal = self.terminal(&["exec", "-it", "web", "sh"]);
        terminal.expect("# ");
        terminal.send("ps -o pid,args | head -4; stty size; exit 3\n");
        let code = terminal.end();
        self.narrator.show(&screen::last_frame(&terminal.screen()));
        let is_seen = terminal.screen().contains("nginx: master") && terminal.screen().contains("24 100");
        self.narrator
            .check("a shell in a terminal of our size sees nginx, and its exit code comes back", is_seen && code == 3)
    }

    fn events_of_a_life(&mut self) -> Result<(), String> {
        let watching = self
            .strata(&["events", "--filter", "type=container", "--format", "{{.Action}} {{.Actor.Attributes.name}}"])
            .start();
        std::thread::sleep(Duration::from_millis(300));
        let busybox = self.image("busybox");
        self.narrator.run(
            "strata run -d --name short busybox sleep 1000",
            self.strata(&["run", "-d", "--name", "short", &busybox, "sleep", "1000"]),
        )?;
        self.narrator.run("strata stop -t 1 short", self.strata(&["stop", "-t", "1", "short"]))?;
        self.narrator.run("strata rm short", self.strata(&["rm", "short"]))?;
        watching.expect("destroy short");
        watching.signal(Signal::SIGTERM);
        let seen = watching.end().text();
        self.narrator
            .command("strata events --filter type=container --format '{{.Action}} {{.Actor.Attributes.name}}'");
        self.narrator.show(&seen);
        let in_order = ["create short", "start short", "die short", "destroy short"];
        let places: Vec<_> = in_order.iter().map(|event| seen.lines().position(|line| line == *event)).collect();
        self.narrator.check("events told its life in order", places.iter().all(Option::is_some) && places.is_sorted())
    }

    fn a_second_run(&mut self) -> Result<(), String> {
        self.narrator.step("A second run of the image downloads nothing");
        let log = self.installation.site.path("log/registry.log");
        let fetched = || std::fs::read_to_string(&log).unwrap_or_default().matches("/blobs/sha256:").count();
        let before = fetched();
        let image = self.image("nginx");
        let start = Instant::now();
        self.narrator
            .run(&format!("strata run --rm {image} nginx -v"), self.strata(&["run", "--rm", &image, "nginx", "-v"]))?;
        let took = start.elapsed();
        self.narrator.check(
            &format!("the registry served {} blobs before and none now; it took {took:.0?}", before),
            before > 0 && fetched() == before,
        )
    }

    fn in_the_foreground(&mut self) -> Result<(), String> {
        self.narrator.step("In the foreground: a terminal, resize, Ctrl-C, detach keys, exit codes, binary data");
        let busybox = self.image("busybox");
        self.narrator.command("strata run --rm -it busybox sh");
        let mut terminal = self.terminal(&["run", "--rm", "-it", &busybox, "sh"]);
        terminal.expect("/ # ");
        terminal.resize(40, 120);
        std::thread::sleep(Duration::from_millis(200));
        terminal.send("stty size\n");
        terminal.expect("40 120");
        terminal.send("sleep 1000\n");
        terminal.expect("sleep 1000");
        std::thread::sleep(Duration::from_millis(300));
        terminal.send("\u{3}");
        terminal.expect("/ # ");
        terminal.send("exit 5\n");
        let code = terminal.end();
        self.narrator.show(&screen::last_frame(&terminal.screen()));
        self.narrator.check("the new size arrived, Ctrl-C ended sleep and not the shell, the code is 5", code == 5)?;
        self.narrator.check("our terminal is as it was", terminal.is_cooked())?;
        self.detach_keys(&busybox)?;
        self.narrator.run_for(
            7,
            "strata run --rm busybox sh -c 'exit 7'",
            self.strata(&["run", "--rm", &busybox, "sh", "-c", "exit 7"]),
        )?;
        self.narrator.check("the client ended with the program's 7", true)?;
        let data: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        self.narrator.command("strata run --rm -i busybox cat <5-MB-of-binary-data");
        let output = self.strata(&["run", "--rm", "-i", &busybox, "cat"]).input(&data).output();
        self.narrator.check("5 MB of binary data came back byte for byte", output.code == 0 && output.stdout == data)
    }

    fn detach_keys(&mut self, busybox: &str) -> Result<(), String> {
        self.narrator.command("strata run -it --name left busybox sh      (and then ctrl-p ctrl-q)");
        let mut terminal = self.terminal(&["run", "-it", "--name", "left", busybox, "sh"]);
        terminal.expect("/ # ");
        terminal.send("\u{10}\u{11}");
        let code = terminal.end();
        let state = self.strata(&["inspect", "--format", "{{.State.Status}}", "left"]).output().text();
        self.narrator.check("the detach keys left it running", code == 0 && state == "running")?;
        self.strata(&["rm", "-f", "left"]).output().ok();
        Ok(())
    }

    fn where_the_time_goes(&mut self) -> Result<(), String> {
        self.narrator.step("Where the time goes: the ten steps of one run");
        let busybox = self.image("busybox");
        let output = self
            .narrator
            .run("strata run --rm --trace busybox true", self.strata(&["run", "--rm", "--trace", &busybox, "true"]))?;
        let text = output.text() + &output.errors();
        let steps = [
            "parse",
            "validate",
            "pull",
            "configure",
            "take over",
            "assemble",
            "connect",
            "create",
            "start",
            "watch",
            "report",
        ];
        let missing: Vec<_> =
            steps.iter().filter(|step| !text.to_lowercase().replace('-', " ").contains(**step)).collect();
        self.narrator.check(
            &format!(
                "every step is there with its time{}",
                if missing.is_empty() { String::new() } else { format!(" (missing: {missing:?})") }
            ),
            missing.is_empty(),
        )?;
        let file = self.installation.site.path("tmp/trace.html");
        let path = file.display().to_string();
        self.narrator.run(
            &format!("strata run --rm --trace {path} busybox true"),
            self.strata(&["run", "--rm", "--trace", &path, &busybox, "true"]),
        )?;
        let page = std::fs::read_to_string(&file).unwrap_or_default();
        let is_offline = !page.contains("src=\"http") && !page.contains("href=\"http");
        self.narrator.check(
            &format!("the timeline is one HTML page of {} KB that loads nothing from elsewhere", page.len() / 1024),
            page.contains("</html>") && is_offline,
        )
    }

    fn nothing_is_lost(&mut self) -> Result<(), String> {
        self.narrator.step("kill -9 of engined, then of shimd, with nginx answering throughout");
        let visitor = Visitor::start(self.port);
        self.kill_and_restart("engined")?;
        self.kill_and_restart("shimd")?;
        let (asked, unanswered) = visitor.end();
        self.narrator
            .check(&format!("nginx answered all of {asked} requests meanwhile"), asked > 0 && unanswered == 0)?;
        let logged = wait::poll(Duration::from_secs(5), || {
            let count = self.logged("web").matches("visit").count();
            (count >= asked).then_some(count)
        });
        self.narrator.check(&format!("the log has each of the {asked} requests, once"), logged == Some(asked))?;
        let shown = self.narrator.run("strata ps", self.strata(&["ps"]))?.text();
        self.narrator.check("the list shows it as before", shown.contains("web") && shown.contains("Up "))?;
        self.narrator.run("strata stop web", self.strata(&["stop", "web"]))?;
        let code = self.strata(&["inspect", "--format", "{{.State.ExitCode}}", "web"]).output().text();
        self.narrator.check("nginx ended by its own stop signal, with 0", code == "0")?;
        self.narrator.run("strata rm web", self.strata(&["rm", "web"]))?;
        Ok(())
    }

    fn kill_and_restart(&mut self, name: &str) -> Result<(), String> {
        let busybox = self.image("busybox");
        let script = "n=0; while :; do n=$((n + 1)); echo tick $n; sleep 0.1; done";
        let id = self.strata(&["run", "-d", "--rm", &busybox, "sh", "-c", script]).output().ok().text();
        let gap = self.strata(&["run", "-d", &busybox, "sh", "-c", "sleep 0.7; exit 42"]).output().ok().text();
        let ours = &mut self.installation.ours;
        let daemon = if name == "engined" { ours.engined() } else { ours.supervisor() };
        self.narrator.command(&format!("kill -9 {}      # {name}", daemon.pid()));
        daemon.kill();
        // Long enough for the second container to end while nobody looks.
        std::thread::sleep(Duration::from_millis(1500));
        self.narrator.command(&format!("{name} &"));
        let pid = if name == "engined" {
            ours.restart_engined();
            ours.engined().pid()
        } else {
            ours.restart_supervisor();
            ours.supervisor().pid()
        };
        installation::note_daemon(&self.installation.site, name, pid)?;
        let at = socket(&self.installation.site);
        let answers =
            || std::os::unix::net::UnixStream::connect(&at).is_ok() && self.strata(&["ps", "-q"]).output().code == 0;
        self.narrator.check(
            &format!("{name} is back and answers"),
            wait::poll(Duration::from_secs(10), || answers().then_some(())).is_some(),
        )?;
        let code = self.strata(&["wait", &gap]).output().text();
        self.narrator.check("the exit code of a container that ended in the gap is known: 42", code == "42")?;
        let log = self.logged(&id);
        let ticks: Vec<u32> = log.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect();
        let is_whole = ticks.iter().copied().eq(1..=ticks.len() as u32) && ticks.len() > 12;
        self.narrator.check(&format!("the log of another has its {} lines and no gap", ticks.len()), is_whole)?;
        self.strata(&["rm", "-f", &id]).output();
        self.strata(&["rm", "-f", &gap]).output().ok();
        Ok(())
    }
}

/// Fetches the page again and again.
struct Visitor {
    over: Arc<AtomicBool>,
    counts: Arc<Mutex<(usize, usize)>>,
    thread: JoinHandle<()>,
}

impl Visitor {
    fn start(port: u16) -> Visitor {
        let (over, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((0, 0))));
        let (stop, tally) = (Arc::clone(&over), Arc::clone(&counts));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let answer = http::get(&format!("127.0.0.1:{port}"), "/index.html?visit");
                let is_answered = answer.is_some_and(|(status, _)| status == 200);
                let mut counts = tally.lock().expect("nobody panics with it");
                counts.0 += 1;
                counts.1 += usize::from(!is_answered);
                drop(counts);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Visitor { over, counts, thread }
    }

    /// How many requests there were, and how many of them had no answer.
    fn end(self) -> (usize, usize) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        *self.counts.lock().expect("nobody panics with it")
    }
}
