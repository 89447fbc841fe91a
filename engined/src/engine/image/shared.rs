//! One pull per image, however many ask for it; and what each of them is told about it.
//!
//! The pull is a task of its own. Each asker holds a share of it and listens to its board; when the last share is
//! dropped, because every client has gone, the task is aborted. The board says where each layer is *now*, so a slow
//! listener loses steps in between and never holds the pull back, and a late one sees at once how far things are.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use strata_fault::{Fault, Layer, code};
use strata_registry::Descriptor;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::{Images, Phase, Progress, Pulled, Wanted, pull as pulling};

/// How often a listener is told: as often as an eye can follow.
const TELL_PAUSE: Duration = Duration::from_millis(50);
/// How long a listener that does not listen is waited for with the last news.
const LAST_NEWS: Duration = Duration::from_millis(500);

/// The pulls that are under way.
#[derive(Default)]
pub(super) struct Pulls(Mutex<Vec<(Wanted, Weak<Running>)>>);

/// A pull under way.
struct Running {
    board: watch::Receiver<Vec<Progress>>,
    outcome: watch::Receiver<Option<Result<Pulled, Fault>>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pulls {
    /// The pull that is under way for `wanted`, else the one that `start` makes.
    fn join_or_start(&self, wanted: &Wanted, start: impl FnOnce() -> Running) -> Arc<Running> {
        let mut pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|(_, running)| running.strong_count() > 0);
        let same = pulls.iter().filter(|(other, _)| other == wanted).find_map(|(_, running)| running.upgrade());
        if let Some(running) = same.filter(|running| running.outcome.borrow().is_none()) {
            return running;
        }
        let running = Arc::new(start());
        pulls.push((wanted.clone(), Arc::downgrade(&running)));
        running
    }

    /// Whether more than one pull is under way.
    pub(super) fn are_several(&self) -> bool {
        let pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.iter().filter(|(_, running)| running.strong_count() > 0).count() > 1
    }
}

/// Takes part in the pull of `wanted`.
pub(super) async fn pull(images: &Arc<Images>, wanted: Wanted, progress: Sender<Progress>) -> Result<Pulled, Fault> {
    let running = images.pulls.join_or_start(&wanted, || start(Arc::clone(images), wanted.clone()));
    let (mut board, mut outcome) = (running.board.clone(), running.outcome.clone());
    let mut listener = Listener { progress, told: Vec::new() };
    loop {
        let news = board.borrow_and_update().clone();
        listener.tell(&news);
        tokio::select! {
            biased;
            finished = finished(&mut outcome) => {
                let news = board.borrow().clone();
                listener.tell_last(&news).await;
                return finished;
            }
            () = next_news(&mut board) => {}
        }
    }
}

fn start(images: Arc<Images>, wanted: Wanted) -> Running {
    let (board_sender, board) = watch::channel(Vec::new());
    let (outcome_sender, outcome) = watch::channel(None);
    let work = async move {
        let result = pulling::pull(&images, &wanted, &Board(board_sender)).await;
        // Nobody listens when all have gone, and then nobody minds.
        let _ = outcome_sender.send(Some(result));
    };
    // The spans of the pull belong to the first who asked for it.
    Running { board, outcome, task: tokio::spawn(work.in_current_span()) }
}

async fn finished(outcome: &mut watch::Receiver<Option<Result<Pulled, Fault>>>) -> Result<Pulled, Fault> {
    let result = outcome.wait_for(Option::is_some).await.map(|result| result.clone());
    result.ok().flatten().unwrap_or_else(|| {
        // The task ends without a result only by a bug in it.
        Err(Fault::new(Layer::Engine, "pull", code::UNKNOWN, "pull an image").cause("the pull ended without a word"))
    })
}

async fn next_news(board: &mut watch::Receiver<Vec<Progress>>) {
    sleep(TELL_PAUSE).await;
    if board.changed().await.is_err() {
        // The task has ended, and its outcome is the next thing to happen.
        std::future::pending::<()>().await;
    }
}

/// Somebody who wants to know.
struct Listener {
    progress: Sender<Progress>,
    /// What it has been told, in the board's order.
    told: Vec<Progress>,
}

impl Listener {
    /// Tells what is new. What does not fit now is told the next time, if it is still news then.
    fn tell(&mut self, news: &[Progress]) {
        for (number, entry) in news.iter().enumerate() {
            if self.told.get(number) == Some(entry) {
                continue;
            }
            match self.progress.try_send(entry.clone()) {
                Err(TrySendError::Full(_)) => return,
                Ok(()) | Err(TrySendError::Closed(_)) => self.remember(number, entry),
            }
        }
    }

    async fn tell_last(&mut self, news: &[Progress]) {
        let rest: Vec<(usize, &Progress)> =
            news.iter().enumerate().filter(|(number, entry)| self.told.get(*number) != Some(entry)).collect();
        let telling = async {
            for (_, entry) in rest {
                if self.progress.send(entry.clone()).await.is_err() {
                    return;
                }
            }
        };
        // One who has stopped to listen gets the result all the same.
        let _ = timeout(LAST_NEWS, telling).await;
    }

    fn remember(&mut self, number: usize, entry: &Progress) {
        match self.told.get_mut(number) {
            Some(told) => *told = entry.clone(),
            // Entries are told in order, so the next one is the one after the last.
            None => self.told.push(entry.clone()),
        }
    }
}

/// Where each layer is now. The first entry is about the image.
pub(super) struct Board(watch::Sender<Vec<Progress>>);

impl Board {
    /// A board that nobody looks at.
    #[cfg(test)]
    pub(super) fn unseen() -> Board {
        Board(watch::channel(Vec::new()).0)
    }

    pub(super) fn resolving(&self, image: &str) {
        let entry =
            Progress { digest: String::new(), phase: Phase::Resolving, current: 0, total: 0, image: image.to_owned() };
        self.0.send_modify(|board| board.push(entry));
    }

    pub(super) fn waiting(&self, layers: &[Descriptor]) {
        let entry = |layer: &Descriptor| Progress {
            digest: layer.digest.to_string(),
            phase: Phase::Waiting,
            current: 0,
            total: layer.size,
            image: String::new(),
        };
        self.0.send_modify(|board| board.extend(layers.iter().map(entry)));
    }

    /// The layer with that number, from 0, has come to `phase`; its bytes are all there from Verifying on.
    pub(super) fn phase(&self, layer: usize, phase: Phase) {
        self.change(layer, |entry| {
            entry.phase = phase;
            if phase >= Phase::Verifying {
                entry.current = entry.total;
            }
        });
    }

    pub(super) fn downloaded(&self, layer: usize, bytes: u64) {
        self.change(layer, |entry| {
            entry.phase = Phase::Downloading;
            entry.current = bytes;
        });
    }

    fn change(&self, layer: usize, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(|board| {
            // The first entry is the image's.
            if let Some(entry) = board.get_mut(layer + 1) {
                change(entry);
            }
        });
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn layer(size: u64) -> Descriptor {
        let digest = strata_registry::Digest::of(&size.to_be_bytes());
        Descriptor { media_type: String::new(), digest, size, annotations: Default::default(), platform: None }
    }

    #[test]
    fn a_listener_hears_what_is_new_and_no_more() {
        let board = Board::unseen();
        let (sender, mut heard) = tokio::sync::mpsc::channel(16);
        let mut listener = Listener { progress: sender, told: Vec::new() };
        board.resolving("i");
        board.waiting(&[layer(10), layer(20)]);
        listener.tell(&board.0.borrow().clone());
        listener.tell(&board.0.borrow().clone());
        board.downloaded(1, 5);
        board.downloaded(1, 6);
        listener.tell(&board.0.borrow().clone());
        board.phase(1, Phase::Done);
        listener.tell(&board.0.borrow().clone());
        drop(listener);
        let mut all = Vec::new();
        while let Ok(entry) = heard.try_recv() {
            all.push((entry.phase, entry.current, entry.total));
        }
        use Phase::*;
        assert_eq!(all, [(Resolving, 0, 0), (Waiting, 0, 10), (Waiting, 0, 20), (Downloading, 6, 20), (Done, 20, 20)]);
    }

    #[tokio::test]
    async fn a_full_listener_is_told_later() {
        let board = Board::unseen();
        let (sender, mut heard) = tokio::sync::mpsc::channel(1);
        let mut listener = Listener { progress: sender, told: Vec::new() };
        board.resolving("i");
        board.waiting(&[layer(10)]);
        listener.tell(&board.0.borrow().clone());
        assert_eq!(heard.recv().await.unwrap().phase, Phase::Resolving);
        let news = board.0.borrow().clone();
        listener.tell_last(&news).await;
        assert_eq!(heard.recv().await.unwrap().phase, Phase::Waiting);
    }
}
