//! A connection that broke, set up again: with growing pauses, up to a bound.

use std::time::{Duration, Instant};

use strata_fault::GrpcCode;

use super::Engine;
use crate::error::Error;

/// Changes the bound, in seconds.
const VARIABLE: &str = "STRATA_RECONNECT_TIMEOUT";
/// How long an engined that is being restarted or upgraded may stay away.
const BOUND_S: u64 = 60;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The patience left for one lost connection.
pub(crate) struct Patience {
    bound: Duration,
    since: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        let said = std::env::var(VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
        Patience { bound: Duration::from_secs(said.unwrap_or(BOUND_S)), since: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Waits before the next attempt; gives up with `last` when the bound is reached.
    pub(crate) async fn wait(&mut self, last: Error) -> Result<(), Error> {
        if self.since.elapsed() + self.pause > self.bound {
            return Err(Error::GaveUp { after_s: self.bound.as_secs(), source: Box::new(last) });
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

impl Engine {
    /// Connects anew, as often as `patience` allows.
    pub(crate) async fn reconnect(&mut self, patience: &mut Patience) -> Result<(), Error> {
        loop {
            match self.renew().await {
                Ok(()) => return Ok(()),
                Err(error) if may_pass(&error) => patience.wait(error).await?,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether an error can go away by itself: a connection that broke, a daemon that is not there or not ready yet.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Broken { .. } | Error::Handshake { .. } => true,
        Error::Connect { source, .. } => source.kind() != std::io::ErrorKind::PermissionDenied,
        Error::Engine(fault) => fault.grpc == GrpcCode::Unavailable,
        _ => false,
    }
}
