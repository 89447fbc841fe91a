//! The progress of a pull, as docker shows it: on a terminal a line per layer that changes in place, elsewhere a line
//! whenever a layer reaches its next phase.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use proto_engine::{PullProgress, pull_progress::Phase};

use super::{human, image, quote};
use crate::terminal::size;

/// Drawing more often than this shows nothing more.
const REDRAW: Duration = Duration::from_millis(50);
/// Width of a bar, without its brackets.
const BAR_WIDTH: usize = 50;
/// Below this many columns a line has no bar.
const BAR_COLUMNS: usize = 110;

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Stdout,
    Stderr,
    Nowhere,
}

struct Layer {
    digest: String,
    phase: Phase,
    current: u64,
    total: u64,
}

/// The display of one pull.
pub(crate) struct Display {
    target: Target,
    on_terminal: bool,
    columns: usize,
    rows: usize,
    named: bool,
    layers: Vec<Layer>,
    /// Lines drawn, which the next drawing overwrites.
    drawn: usize,
    last_drawing: Option<Instant>,
}

impl Display {
    pub(crate) fn new(target: Target) -> Display {
        let (columns, rows) = match target {
            Target::Stdout => (size::columns(rustix::stdio::stdout()), size::rows(rustix::stdio::stdout())),
            Target::Stderr => (size::columns(rustix::stdio::stderr()), size::rows(rustix::stdio::stderr())),
            Target::Nowhere => (None, None),
        };
        Display {
            target,
            on_terminal: columns.is_some(),
            columns: columns.unwrap_or(0),
            rows: rows.unwrap_or(24),
            named: false,
            layers: Vec::new(),
            drawn: 0,
            last_drawing: None,
        }
    }

    /// Takes in one message; an error is the stream's it is written to.
    pub(crate) fn update(&mut self, progress: &PullProgress) -> io::Result<()> {
        if !progress.image.is_empty() && !self.named {
            self.named = true;
            self.line(&heading(&progress.image))?;
        }
        if progress.digest.is_empty() {
            return Ok(());
        }
        let phase_changed = self.note(progress);
        if !self.on_terminal {
            return if phase_changed { self.phase_line(progress) } else { Ok(()) };
        }
        let recent = self.last_drawing.is_some_and(|at| at.elapsed() < REDRAW);
        if phase_changed || !recent { self.draw() } else { Ok(()) }
    }

    /// One more line below the layers.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        self.drawn = 0;
        self.write(&format!("{text}\n"))
    }

    /// Remembers what a message says; whether its layer reached another phase.
    fn note(&mut self, progress: &PullProgress) -> bool {
        let phase = progress.phase();
        match self.layers.iter_mut().find(|layer| layer.digest == progress.digest) {
            Some(layer) => {
                let changed = layer.phase != phase;
                (layer.phase, layer.current, layer.total) = (phase, progress.current, progress.total);
                changed
            }
            None => {
                let digest = progress.digest.clone();
                self.layers.push(Layer { digest, phase, current: progress.current, total: progress.total });
                true
            }
        }
    }

    fn phase_line(&mut self, progress: &PullProgress) -> io::Result<()> {
        // Without a terminal docker says when a layer is begun, loaded and in place, not what lies between.
        match progress.phase() {
            Phase::Unspecified | Phase::Resolving | Phase::Downloading => Ok(()),
            phase => self.write(&format!("{}: {}\n", quote::short_id(&progress.digest), phase_words(phase))),
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        let layers = visible(&self.layers, self.rows);
        for layer in &layers {
            let line: String = layer_line(layer, self.columns).chars().take(self.columns.max(20)).collect();
            text.push_str(&format!("\x1b[2K\r{line}\n"));
        }
        self.drawn = layers.len();
        self.last_drawing = Some(Instant::now());
        self.write(&text)
    }

    fn write(&self, text: &str) -> io::Result<()> {
        match self.target {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()
            }
            Target::Stderr => io::stderr().lock().write_all(text.as_bytes()),
            Target::Nowhere => Ok(()),
        }
    }
}

/// The layers that a terminal of so many rows has room for (the cursor cannot go back beyond its top): all, else those
/// that are under way before those that are done or wait.
fn visible(layers: &[Layer], rows: usize) -> Vec<&Layer> {
    let room = rows.saturating_sub(1).max(1);
    if layers.len() <= room {
        return layers.iter().collect();
    }
    let is_active = |layer: &&Layer| matches!(layer.phase, Phase::Downloading | Phase::Verifying | Phase::Extracting);
    let mut chosen: Vec<&Layer> = layers.iter().filter(is_active).take(room).collect();
    let others = layers.iter().rev().filter(|layer| !is_active(layer));
    chosen.extend(others.take(room - chosen.len()));
    chosen
}

/// `latest: Pulling from library/busybox`
fn heading(reference: &str) -> String {
    let (name, digest) = reference.split_once('@').map_or((reference, None), |(name, digest)| (name, Some(digest)));
    let (repository, tag) = image::split_tag(name);
    let path = repository.split_once('/').map_or(repository, |(_, path)| path);
    format!("{}: Pulling from {path}", digest.unwrap_or(tag))
}

fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified | Phase::Resolving => "Pulling fs layer",
        Phase::Waiting => "Waiting",
        Phase::Downloading => "Downloading",
        Phase::Verifying => "Verifying Checksum",
        Phase::Extracting => "Extracting",
        Phase::Done => "Pull complete",
        Phase::Exists => "Already exists",
    }
}

fn layer_line(layer: &Layer, columns: usize) -> String {
    let start = format!("{}: {}", quote::short_id(&layer.digest), phase_words(layer.phase));
    if !matches!(layer.phase, Phase::Downloading | Phase::Extracting) || layer.total == 0 {
        return start;
    }
    let amounts = format!("{}/{}", human::fine_size(layer.current), human::fine_size(layer.total));
    if columns < BAR_COLUMNS {
        return format!("{start} {amounts}");
    }
    format!("{start} {}  {amounts}", bar(layer.current, layer.total))
}

fn bar(current: u64, total: u64) -> String {
    let filled = (current.min(total) as u128 * BAR_WIDTH as u128 / u128::from(total.max(1))) as usize;
    let head = if filled < BAR_WIDTH { ">" } else { "" };
    format!("[{}{head}{}]", "=".repeat(filled), " ".repeat(BAR_WIDTH - filled - head.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(phase: Phase, current: u64) -> Layer {
        Layer { digest: format!("sha256:{}", "ab".repeat(32)), phase, current, total: 10_000_000 }
    }

    #[test]
    fn a_layer_on_a_wide_and_a_narrow_terminal() {
        assert_eq!(
            layer_line(&layer(Phase::Downloading, 5_000_000), 120),
            "abababababab: Downloading [=========================>                        ]  5MB/10MB"
        );
        assert_eq!(layer_line(&layer(Phase::Extracting, 1_234_567), 80), "abababababab: Extracting 1.235MB/10MB");
        assert_eq!(layer_line(&layer(Phase::Done, 0), 80), "abababababab: Pull complete");
    }

    #[test]
    fn a_low_terminal_shows_what_is_under_way() {
        let layers: Vec<Layer> =
            [Phase::Done, Phase::Downloading, Phase::Waiting, Phase::Extracting].map(|phase| layer(phase, 0)).into();
        let phases = |rows| visible(&layers, rows).iter().map(|layer| layer.phase).collect::<Vec<_>>();
        assert_eq!(phases(5).len(), 4);
        assert_eq!(phases(4), [Phase::Downloading, Phase::Extracting, Phase::Waiting]);
        assert_eq!(phases(1), [Phase::Downloading]);
    }

    #[test]
    fn a_bar_never_runs_over() {
        assert_eq!(bar(20, 10).len(), BAR_WIDTH + 2);
        assert_eq!(bar(0, 0).len(), BAR_WIDTH + 2);
    }

    #[test]
    fn the_heading_names_tag_and_repository() {
        assert_eq!(heading("docker.io/library/busybox:latest"), "latest: Pulling from library/busybox");
        assert_eq!(heading("localhost:5000/nginx@sha256:00"), "sha256:00: Pulling from nginx");
    }
}
