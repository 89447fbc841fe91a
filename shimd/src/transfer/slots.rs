//! How many transfers there are at once. The right to be one of them stays with the work: file work on its own thread
//! goes on for a while after the client went away, and counts as long.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::diff::holding;
use crate::error::{Error, Result};

/// Transfers at once; more wait. Each has some threads of those for file work, which others need too.
const AT_ONCE: usize = 32;
/// Transfers that wait, and how long. Those at work may themselves wait for their clients.
const WAITING_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(300);

/// The rights to be one of the transfers under way.
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    waiting: Semaphore,
    patience: Duration,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::new(AT_ONCE, WAITING_MAX, PATIENCE)
    }
}

impl Slots {
    fn new(at_once: usize, waiting: usize, patience: Duration) -> Slots {
        Slots { free: Arc::new(Semaphore::new(at_once)), waiting: Semaphore::new(waiting), patience }
    }

    /// Does `work` when its turn comes.
    pub(super) async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let too_many = || Error::TooMany { what: "transfers".to_owned() };
        let slot = match self.free.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                let _place = self.waiting.try_acquire().map_err(|_| too_many())?;
                let turn = tokio::time::timeout(self.patience, self.free.clone().acquire_owned()).await;
                // The semaphore is never closed.
                turn.map_err(|_| too_many())?.map_err(|_| too_many())?
            }
        };
        holding(Arc::new(slot), work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::run_blocking;

    #[tokio::test]
    async fn a_slot_stays_with_work_that_its_client_left() {
        let slots = Arc::new(Slots::new(1, 1, Duration::from_secs(60)));
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let of = slots.clone();
        let client = tokio::spawn(async move {
            of.within(run_blocking(move || {
                let _ = begin.send(());
                let _ = ended.recv();
                Ok(())
            }))
            .await
        });
        begun.await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        assert_eq!(slots.free.available_permits(), 0, "its work goes on");
        end.send(()).unwrap();
        slots.within(async { Ok(()) }).await.unwrap();
        assert_eq!(slots.free.available_permits(), 1);
    }

    #[tokio::test]
    async fn neither_those_who_wait_nor_their_time_is_without_bound() {
        let slots = Arc::new(Slots::new(1, 1, Duration::from_millis(200)));
        let of = slots.clone();
        let busy = tokio::spawn(async move { of.within(std::future::pending::<Result<()>>()).await });
        tokio::task::yield_now().await;
        let of = slots.clone();
        let waits = tokio::spawn(async move { of.within(async { Ok(()) }).await });
        tokio::task::yield_now().await;
        let begun = std::time::Instant::now();
        assert!(matches!(slots.within(async { Ok(()) }).await, Err(Error::TooMany { .. })));
        assert!(begun.elapsed() < Duration::from_millis(100), "it was to wait, too");
        assert!(matches!(waits.await.unwrap(), Err(Error::TooMany { .. })));
        busy.abort();
        let _ = busy.await;
        slots.within(async { Ok(()) }).await.unwrap();
    }
}
