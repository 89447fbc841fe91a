//! One contestant of the supervisors' rows: a process with shimd or Debian's containerd, told by lines what to do.

use std::io::{Write, stdin, stdout};
use std::path::PathBuf;

use integration::{Daemonship, Supervised};
use tokio::runtime::Runtime;

use super::api::Api;
use super::{crowd, floor, layers, output, store, tasks};
use crate::measure::{ms, timed};

/// A supervisor, a client of its API, and what tasks leave for each other.
pub(crate) struct Served<'a> {
    pub(super) supervised: &'a mut Supervised,
    pub(super) runtime: Runtime,
    pub(super) api: Api,
    pub(super) socket: PathBuf,
    pub(super) crowd: crowd::Crowd,
    pub(super) layers: layers::Source,
    /// What the last output has made the shim's memory grow.
    pub(super) growth_kib: f64,
    /// Numbers the containers, whose names are all different.
    count: usize,
}

/// Does something and returns a figure.
type Task = fn(&mut Served<'_>) -> f64;

/// What a contestant can be told.
const TASKS: [(&str, Task); 28] = [
    ("ctr-run", ctr_run),
    ("task", tasks::one),
    ("task-16", tasks::sixteen),
    ("daemon-pss", crowd::daemon_pss),
    ("shims-1", |served| crowd::shims_pss(served, 1)),
    ("shims-100", |served| crowd::shims_pss(served, 100)),
    ("shims-500", |served| crowd::shims_pss(served, 500)),
    ("restart", crowd::restart),
    ("disperse", crowd::disperse),
    ("pull-gzip", |served| layers::pull(served, layers::GZIP)),
    ("pull-zstd", |served| layers::pull(served, layers::ZSTD)),
    ("transfer-gzip", |served| layers::transfer(served, layers::GZIP)),
    ("transfer-zstd", |served| layers::transfer(served, layers::ZSTD)),
    ("download-gzip", |served| floor::download(served, layers::GZIP).wall_ms),
    ("download-zstd", |served| floor::download(served, layers::ZSTD).wall_ms),
    ("digest-gzip", |served| floor::digest(served, layers::GZIP).wall_ms),
    ("digest-zstd", |served| floor::digest(served, layers::ZSTD).wall_ms),
    ("write-gzip", |served| floor::write(served, layers::GZIP).wall_ms),
    ("write-zstd", |served| floor::write(served, layers::ZSTD).wall_ms),
    ("busy-gzip", |served| floor::busy(served, layers::GZIP)),
    ("busy-zstd", |served| floor::busy(served, layers::ZSTD)),
    ("unpack", layers::unpack),
    ("output", output::through_the_log),
    ("output-growth", output::growth),
    ("fill", store::fill),
    ("empty", store::empty),
    ("inspect", store::inspect),
    ("list", store::list),
];

/// Serves the pipe until it ends.
pub(crate) fn serve(daemonship: Daemonship) {
    integration::supervised_by(daemonship, |supervised| {
        let mut served = Served::new(supervised);
        println!("ready");
        for line in stdin().lines() {
            let line = line.expect("the benchmark's pipe");
            let task = TASKS.iter().find(|(name, _)| *name == line).unwrap_or_else(|| panic!("unknown task {line}"));
            println!("{}", (task.1)(&mut served));
            stdout().flush().expect("the benchmark's pipe");
        }
    });
}

impl<'a> Served<'a> {
    fn new(supervised: &'a mut Supervised) -> Served<'a> {
        let name = runtime_name(supervised);
        supervised.run(&["containers", "create", "--runtime", name, supervised.busybox(), "template", "true"]).ok();
        let socket = supervised.socket().to_owned();
        // One thread: the client shall take little of what the daemons have.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let api = runtime.block_on(Api::connect(&socket, supervised.namespace(), name));
        let layers = layers::Source::default();
        Served { supervised, runtime, api, socket, crowd: crowd::Crowd::default(), layers, growth_kib: 0.0, count: 0 }
    }

    /// A name that no container has had.
    pub(super) fn next_name(&mut self) -> String {
        self.count += 1;
        format!("bench-{}", self.count)
    }
}

/// Whose shim runs the containers: that of the daemon's own house.
fn runtime_name(supervised: &Supervised) -> &'static str {
    if supervised.is_ours() { "io.containerd.strata.v1" } else { "io.containerd.runc.v2" }
}

/// Milliseconds of `ctr run --rm` of `true`.
fn ctr_run(served: &mut Served<'_>) -> f64 {
    let name = served.next_name();
    let supervised = &served.supervised;
    let arguments = ["run", "--rm", "--runtime", runtime_name(supervised), supervised.busybox(), &name, "true"];
    ms(timed(&mut supervised.ctr(&arguments).into_command()).wall)
}
